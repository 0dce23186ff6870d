//! What the build, the demo and the tests need on this machine.

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use testbed::{as_child, root, target};

/// A program and the Debian package that holds it.
pub(crate) struct Tool {
    /// Looked for on the path.
    pub(crate) program: &'static str,
    /// Installed if it is not there.
    pub(crate) package: &'static str,
}

/// What shows the report's page.
pub(crate) const BROWSER: Tool = Tool { program: "chromium", package: "chromium" };
/// What fetches packages of JavaScript.
pub(crate) const NPM: Tool = Tool { program: "npm", package: "npm" };

/// What VMs and swap need.
pub(crate) const TESTBED: [Tool; 4] = [
    Tool { program: testbed::qemu::QEMU, package: "qemu-system-x86" },
    Tool { program: "as", package: "binutils" },
    Tool { program: "mkswap", package: "util-linux" },
    Tool { program: "swapon", package: "mount" },
];

/// Runs a command with its output shown. It ends with us.
///
/// # Errors
/// It cannot be started, or fails.
pub(crate) fn show(command: &mut Command) -> Result<()> {
    let command = as_child(command, Signal::SIGKILL);
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(status.success(), "{command:?} failed: {status}");
    Ok(())
}

/// Runs a command of a package manager, whose output goes to a log.
///
/// # Errors
/// It cannot be started, or fails; the log is named, and its end shown.
pub(crate) fn quietly(command: &mut Command) -> Result<()> {
    let path = target().join("set-up.log");
    let failed = || format!("cannot write {}", path.display());
    std::fs::create_dir_all(target()).with_context(failed)?;
    let mut log = OpenOptions::new().append(true).create(true).open(&path).with_context(failed)?;
    writeln!(log, "\n# {command:?}").with_context(failed)?;
    let start = log.metadata()?.len() as usize;
    let status = as_child(command, Signal::SIGKILL)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .status()
        .with_context(|| format!("cannot run {command:?}"))?;
    if status.success() {
        return Ok(());
    }
    let text = std::fs::read(&path).unwrap_or_default();
    let said = String::from_utf8_lossy(text.get(start..).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = said.lines().collect();
    let end = lines[lines.len().saturating_sub(20)..].join("\n");
    bail!("{command:?} failed: {status}; see {}, which ends with\n{end}", path.display())
}

/// Stops another user with the one line to type.
///
/// # Errors
/// Not root.
pub(crate) fn require_root(task: &str) -> Result<()> {
    if is_root()? {
        return Ok(());
    }
    bail!("this needs root; run: sudo env \"PATH=$PATH\" \"HOME=$HOME\" cargo xtask {task}")
}

fn is_root() -> Result<bool> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    Ok(uid.and_then(|uids| uids.split_whitespace().nth(1)) == Some("0"))
}

/// Installs the packages of what is missing.
///
/// # Errors
/// A package cannot be installed.
pub(crate) fn install(tools: &[Tool]) -> Result<()> {
    let is_missing = |tool: &&Tool| !on_path(tool.program);
    let packages: Vec<&str> = tools.iter().filter(is_missing).map(|tool| tool.package).collect();
    if packages.is_empty() { Ok(()) } else { install_packages(&packages) }
}

/// Installs packages.
///
/// # Errors
/// One cannot be installed.
pub(crate) fn install_packages(packages: &[&str]) -> Result<()> {
    ensure!(on_path("apt-get"), "missing: {}; install them", packages.join(", "));
    println!("installing Debian packages: {}", packages.join(" "));
    quietly(Command::new("apt-get").args(["update", "-qq"]))?;
    let mut install = Command::new("apt-get");
    install.env("DEBIAN_FRONTEND", "noninteractive");
    quietly(install.args(["install", "-y", "-qq", "--no-install-recommends"]).args(packages))
}

/// The SHA-256 of a file.
///
/// # Errors
/// It cannot be read.
pub(crate) fn sha256(path: &Path) -> Result<String> {
    let sum = testbed::run(Command::new("sha256sum").arg(path))?;
    sum.split_whitespace().next().map(str::to_owned).context("sha256sum says nothing")
}

/// Whether the program can be run by its name.
pub(crate) fn on_path(program: &str) -> bool {
    find(program).is_ok()
}

/// The file of a program that can be run by its name.
///
/// # Errors
/// There is none.
pub(crate) fn find(program: &str) -> Result<PathBuf> {
    let sbin = ["/usr/sbin", "/sbin"].map(Into::into);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut files = std::env::split_paths(&path).chain(sbin).map(|dir| dir.join(program));
    files.find(|file| file.is_file()).with_context(|| format!("no {program}"))
}

/// Unpacks of an archive what is beneath its only folder; all of it, or what the patterns name.
///
/// # Errors
/// tar is missing or fails.
pub(crate) fn unpack(archive: &Path, folder: &Path, only: &[&str]) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut tar = Command::new("tar");
    tar.arg("--extract").arg("--file").arg(archive).arg("--directory").arg(folder);
    quietly(tar.args(["--strip-components=1", "--wildcards"]).args(only))
}

/// Gives what root wrote to the user who ran sudo: builds, and what the package
/// managers keep in the home that `require_root` has passed on.
///
/// # Errors
/// It cannot be given away.
pub(crate) fn give_to_user_behind_sudo() -> Result<()> {
    let (Ok(uid), Ok(gid)) = (std::env::var("SUDO_UID"), std::env::var("SUDO_GID")) else {
        return Ok(());
    };
    let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
    let is_theirs = std::fs::metadata(&home).is_ok_and(|home| home.uid().to_string() == uid);
    let kept = [".cargo", ".rustup", ".npm", ".cache/pip"].map(|name| home.join(name));
    let paths = kept.into_iter().filter(|_| is_theirs).chain([target(), root().join("Cargo.lock")]);
    let existing = paths.filter(|path| path.exists());
    let mut chown = Command::new("chown");
    testbed::run(chown.arg("-R").arg(format!("{uid}:{gid}")).args(existing)).map(drop)
}

/// The source of the standard library, for the eBPF target.
///
/// # Errors
/// rustup is missing, or cannot install it.
pub(crate) fn rust_source() -> Result<()> {
    if has_library("src/rust/library/core")? {
        return Ok(());
    }
    println!("installing the source of Rust's core library");
    quietly(Command::new("rustup").args(["component", "add", "rust-src"]))
        .context("the eBPF target has no ready-made core library; install Rust with rustup")
}

/// Whether the compiler has that among its libraries.
fn has_library(path: &str) -> Result<bool> {
    let sysroot = testbed::run(Command::new("rustc").args(["--print", "sysroot"]))?;
    Ok(Path::new(sysroot.trim()).join("lib/rustlib").join(path).exists())
}

/// Rust's library for another target.
///
/// # Errors
/// It cannot be installed.
pub(crate) fn rust_target(name: &str) -> Result<()> {
    if has_library(name)? {
        return Ok(());
    }
    println!("installing Rust's library for {name}");
    quietly(Command::new("rustup").args(["target", "add", name]))
        .with_context(|| format!("install Rust's library for {name}"))
}

/// A program from Rust's registry that the build or the tests need, at the version that is known
/// to work.
pub(crate) struct Crate {
    name: &'static str,
    version: &'static str,
    /// Whether its own speed is worth that of its build.
    is_optimized: bool,
}

/// The linker of eBPF objects, of the version that knows the LLVM of the pinned compiler.
pub(crate) const BPF_LINKER: Crate =
    Crate { name: "bpf-linker", version: "0.10.1", is_optimized: true };
/// What holds the dependencies to `deny.toml`.
pub(crate) const CARGO_DENY: Crate = Crate::of("cargo-deny", "0.20.2");

impl Crate {
    /// One whose own speed matters little.
    pub(crate) const fn of(name: &'static str, version: &'static str) -> Self {
        Self { name, version, is_optimized: false }
    }

    /// Its path, once it is built.
    ///
    /// # Errors
    /// It cannot be built.
    pub(crate) fn path(&self) -> Result<PathBuf> {
        let Self { name, version, is_optimized } = self;
        let tools = target().join("tools");
        let program = tools.join("bin").join(name);
        // Not every program says its version; cargo keeps what it installed.
        let installed = std::fs::read_to_string(tools.join(".crates.toml")).unwrap_or_default();
        if program.is_file() && installed.contains(&format!("\"{name} {version} (")) {
            return Ok(program);
        }
        println!("building {name} {version}, which takes a minute or two");
        let mut install = Command::new("cargo");
        install.args(["install", name, "--quiet", "--locked", "--version", version, "--root"]);
        install.arg(&tools).env_remove("CARGO_TARGET_DIR");
        if !is_optimized {
            install.arg("--debug").env("CARGO_PROFILE_DEV_DEBUG", "0");
        }
        quietly(&mut install)?;
        Ok(program)
    }
}
