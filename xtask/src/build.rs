//! Builds the eBPF programs, and what else the binary carries, then the binary.

use crate::plots;
use crate::setup::{BPF_LINKER, require_root, rust_source, rust_target, show};
use anyhow::{Context, Result};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use testbed::{root, target};

/// Target of the programs: every architecture that overcommit knows is little-endian.
const EBPF_TARGET: &str = "bpfel-unknown-none";
/// Name of the binary that holds them.
const PROGRAMS: &str = "overcommit-programs";

/// What overcommit is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Arch {
    /// x86-64
    #[value(name = "x86_64")]
    X86_64,
    /// arm64
    #[value(name = "aarch64")]
    Aarch64,
}

impl Arch {
    /// That of this machine.
    pub(crate) const HOST: Self =
        if cfg!(target_arch = "aarch64") { Self::Aarch64 } else { Self::X86_64 };

    /// As Rust calls it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// Target of a binary that needs no library of the host.
    pub(crate) const fn static_target(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64-unknown-linux-musl",
            Self::Aarch64 => "aarch64-unknown-linux-musl",
        }
    }
}

/// Fetches the plots' library, and builds the programs into target/overcommit-programs-ARCH.o: they
/// read the registers of kernels of that architecture.
///
/// # Errors
/// A tool cannot be installed, or the build fails.
pub(crate) fn ebpf(arch: Arch) -> Result<()> {
    plots::fetch()?;
    show(cargo_ebpf("build", arch)?.arg("--quiet"))?;
    let built = ebpf_target(arch).join(EBPF_TARGET).join("release").join(PROGRAMS);
    let object = target().join(format!("{PROGRAMS}-{}.o", arch.name()));
    let failed = || format!("cannot copy {}", built.display());
    let new = with_names_for_btf(fs::read(&built).with_context(failed)?);
    // Left alone if it is the same, so that nothing is built again.
    if fs::read(&object).ok().as_ref() != Some(&new) {
        fs::write(&object, new).with_context(failed)?;
        println!("built {}", object.display());
    }
    Ok(())
}

fn ebpf_target(arch: Arch) -> PathBuf {
    target().join("ebpf").join(arch.name())
}

/// The object with names that BTF may have. The linker leaves those of unions as Rust spells them,
/// which the kernel refuses (`btf_union_check_meta`, kernel/bpf/btf.c); ours are of one kind.
fn with_names_for_btf(mut object: Vec<u8>) -> Vec<u8> {
    const UNION: &[u8] = b"\0MaybeUninit<";
    let starts: Vec<usize> =
        (0..object.len()).filter(|at| object[*at..].starts_with(UNION)).collect();
    for at in starts {
        let name = object[at + 1..].iter_mut().take_while(|byte| **byte != 0);
        name.filter(|byte| !byte.is_ascii_alphanumeric()).for_each(|byte| *byte = b'_');
    }
    object
}

/// A cargo command on the eBPF programs.
///
/// # Errors
/// A tool cannot be installed.
pub(crate) fn cargo_ebpf(command: &str, arch: Arch) -> Result<Command> {
    rust_source()?;
    let linker = BPF_LINKER.path()?;
    let mut cargo = Command::new("cargo");
    cargo.current_dir(root()).arg(command).args(["--release", "--package", "overcommit-ebpf"]);
    cargo.args(["--features", "programs", "--bin", PROGRAMS]);
    cargo.args(["-Z", "build-std=core", "--target", EBPF_TARGET]);
    cargo.arg("--target-dir").arg(ebpf_target(arch));
    cargo.env("AYA_BPF_TARGET_ARCH", arch.name());
    // The target has no ready-made core library; building one is not stable yet.
    cargo.env("RUSTC_BOOTSTRAP", "1");
    cargo.env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker);
    // Version 3 brings 32-bit arithmetic and atomic compare-and-exchange. Maps of maps are described
    // by BTF, which is made of the debug information.
    let flags = ["-Ctarget-cpu=v3", "-Cdebuginfo=2", "-Clink-arg=--btf"].join("\x1f");
    cargo.env("CARGO_ENCODED_RUSTFLAGS", format!("{flags}\x1f{}", without_paths()?));
    Ok(cargo)
}

/// Options of `build`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Build a static binary, which runs on any host of its architecture, however old its C library
    #[arg(long = "static")]
    is_static: bool,
    /// Architecture of the static binary
    #[arg(long, value_enum, default_value_t = Arch::HOST, requires = "is_static")]
    arch: Arch,
}

/// Builds everything, for this host or for any.
///
/// # Errors
/// As [`ebpf`]; or the target's library cannot be had.
pub(crate) fn run(args: &Args) -> Result<()> {
    if !args.is_static {
        return all();
    }
    let binary = static_binary(args.arch)?;
    println!("built {}", binary.display());
    Ok(())
}

/// Measures what tracing adds to a page fault.
///
/// # Errors
/// The build fails, or something cannot be traced.
pub(crate) fn bench(json: bool) -> Result<()> {
    require_root("bench")?;
    all()?;
    let mut cargo = Command::new("cargo");
    cargo.current_dir(root()).args(["bench", "--quiet", "--package", "overcommit-userspace"]);
    cargo.args(["--bench", "price", "--"]).args(json.then_some("--json"));
    show(cargo.env("OVERCOMMIT_BINARY", testbed::overcommit()))
}

/// Builds a static binary; gives its file.
///
/// # Errors
/// As [`run`].
pub(crate) fn static_binary(arch: Arch) -> Result<PathBuf> {
    ebpf(arch)?;
    let mut cargo = binary();
    cargo.env("CARGO_PROFILE_RELEASE_STRIP", "symbols");
    cargo.env("CARGO_ENCODED_RUSTFLAGS", without_paths()?);
    show(for_static_target(&mut cargo, arch)?)?;
    Ok(target().join(arch.static_target()).join("release/overcommit"))
}

/// Has cargo build for any host of that architecture.
///
/// # Errors
/// Rust's library for it cannot be had.
pub(crate) fn for_static_target(cargo: &mut Command, arch: Arch) -> Result<&mut Command> {
    let name = arch.static_target();
    rust_target(name)?;
    if arch != Arch::HOST {
        // Rust's own: one of this system links for this system.
        let linker = format!("CARGO_TARGET_{}_LINKER", name.to_uppercase().replace('-', "_"));
        cargo.env(linker, "rust-lld");
    }
    Ok(cargo.args(["--target", name]))
}

/// Flags that keep the builder's folders out of the binary: it is the same wherever it is built.
fn without_paths() -> Result<String> {
    let home = std::env::var("CARGO_HOME").or_else(|_| {
        std::env::var("HOME").map(|home| format!("{home}/.cargo")).context("HOME is not set")
    })?;
    // The library's source is installed, so that the compiler names its real place.
    let sysroot = testbed::run(Command::new("rustc").args(["--print", "sysroot"]))?;
    let sysroot = sysroot.trim().to_owned();
    let root = root().display().to_string();
    let paths = [(home, "/cargo"), (sysroot, "/rust"), (root, "/overcommit")];
    let flags = paths.map(|(path, name)| format!("--remap-path-prefix={path}={name}"));
    Ok(flags.join("\x1f"))
}

/// Builds the programs and the binary.
///
/// # Errors
/// As [`ebpf`].
pub(crate) fn all() -> Result<()> {
    ebpf(Arch::HOST)?;
    show(&mut binary())?;
    println!("built {}", testbed::overcommit().display());
    Ok(())
}

fn binary() -> Command {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(root()).args(["build", "--quiet", "--release"]);
    cargo.args(["--package", "overcommit-userspace"]);
    cargo
}
