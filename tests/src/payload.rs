//! Guests of ours, assembled when they are needed.

use crate::{root, run, target};
use anyhow::{Context, Result};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// What a guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guest {
    /// Walks its memory with interrupts off: the host can give it no page
    /// asynchronously.
    Walker,
    /// The same with interrupts on, of which none comes.
    Interruptible,
    /// The same; is told of a page that the host has to bring first, and halts until it
    /// is there.
    Paravirtual,
    /// Reads a device's register instead.
    Device,
    /// Linux with one program that walks; only in the lab, which has a kernel for it.
    Linux,
    /// Linux with this machine's root, read-only, and [`crate::qemu::Config::script`] in
    /// a shell.
    Shell,
}

impl Guest {
    const ALL: [Self; 4] = [Self::Walker, Self::Interruptible, Self::Paravirtual, Self::Device];

    /// The file to boot.
    const fn name(self) -> &'static str {
        match self {
            Self::Walker => "walker",
            Self::Interruptible => "walker-sti",
            Self::Paravirtual => "walker-apf",
            Self::Device => "walker-device",
            Self::Linux => "linux",
            Self::Shell => "shell",
        }
    }
}

/// Says where the kernel of a Linux guest is, in the environment.
pub const LINUX_KERNEL: &str = "OVERCOMMIT_GUEST_KERNEL";
/// The same of the initramfs of [`Guest::Linux`], with [`init`] in it.
pub const LINUX_INITRAMFS: &str = "OVERCOMMIT_GUEST_INITRAMFS";

/// The same of the initramfs of [`Guest::Shell`].
pub const SHELL_INITRAMFS: &str = "OVERCOMMIT_SHELL_INITRAMFS";

/// Says in the environment that guests shall work between two pages: in the lab, whose clock
/// counts instructions, they would else walk all the time and hardly any of it would pass.
pub const WORKS: &str = "OVERCOMMIT_GUEST_WORKS";
/// Instructions of that work.
const WORK: u32 = 400;

/// Files that this process knows itself, by the variables that would name them.
static FILES: OnceLock<Vec<(&'static str, PathBuf)>> = OnceLock::new();

/// Names the files of Linux guests for this process, once.
pub fn name_files(files: impl IntoIterator<Item = (&'static str, PathBuf)>) {
    FILES.get_or_init(|| files.into_iter().collect());
}

/// A file that this process or the environment names.
///
/// # Errors
/// Neither names it: the tests were not run by `cargo xtask`.
pub fn named_file(variable: &str) -> Result<PathBuf> {
    let own = FILES.get().into_iter().flatten().find(|(name, _)| *name == variable);
    let file = own.map(|(_, file)| file.clone());
    let file = file.or_else(|| std::env::var_os(variable).map(PathBuf::from));
    file.with_context(|| format!("{variable} is not set"))
}

/// Assembles a guest if it is not there yet; gives the file to boot.
///
/// # Errors
/// The assembler or linker is missing, or fails.
pub fn kernel(guest: Guest) -> Result<PathBuf> {
    if matches!(guest, Guest::Linux | Guest::Shell) {
        return named_file(LINUX_KERNEL);
    }
    multiboot(guest, std::env::var_os(WORKS).is_some())
}

fn multiboot(guest: Guest, works: bool) -> Result<PathBuf> {
    let script = root().join("tests/payload/walker.ld");
    let symbol = |name: &str, set: bool| format!("--defsym={name}={}", u8::from(set));
    let symbols = [
        symbol("STI", matches!(guest, Guest::Interruptible | Guest::Paravirtual)),
        symbol("APF", guest == Guest::Paravirtual),
        symbol("DEVICE", guest == Guest::Device),
        format!("--defsym=WORK={}", if works { WORK } else { 0 }),
    ];
    let assembler = symbols.iter().map(String::as_str).chain(["--32"]);
    let linker = ["-m", "elf_i386", "-T"].map(OsStr::new).into_iter().chain([script.as_os_str()]);
    let name = format!("{}{}", guest.name(), if works { "-works" } else { "" });
    build(&name, "walker.S", assembler, linker)
}

/// Assembles the program of a Linux guest, which walks that many MiB.
///
/// # Errors
/// As [`kernel`].
pub fn init(mebibytes: u64) -> Result<PathBuf> {
    build("guest-init", "init.S", ["--64", &format!("--defsym=MIB={mebibytes}")], [""; 0])
}

/// Builds a file if it is older than its sources, or not there.
fn build<'a>(
    name: &str,
    code: &str,
    assembler: impl IntoIterator<Item = &'a str>,
    linker: impl IntoIterator<Item = impl AsRef<OsStr>>,
) -> Result<PathBuf> {
    let source = root().join("tests/payload");
    let built = target().join(name).with_extension("elf");
    let code = source.join(code);
    if is_newer(&built, [&code, &source.join("walker.ld")]) {
        return Ok(built);
    }
    std::fs::create_dir_all(target())?;
    let object = target().join(name).with_extension("o");
    run(Command::new("as").args(assembler).arg("-o").arg(&object).arg(code))?;
    run(Command::new("ld").args(linker).arg("-o").arg(&built).arg(&object))?;
    Ok(built)
}

/// Assembles every guest.
///
/// # Errors
/// As [`kernel`].
pub fn assemble() -> Result<()> {
    let all = Guest::ALL.into_iter().flat_map(|guest| [(guest, false), (guest, true)]);
    all.into_iter().try_for_each(|(guest, works)| multiboot(guest, works).map(drop))
}

fn is_newer<'a>(built: &Path, sources: impl IntoIterator<Item = &'a PathBuf>) -> bool {
    let time = |path: &Path| path.metadata().and_then(|data| data.modified()).ok();
    let built = time(built);
    built.is_some() && sources.into_iter().all(|source| time(source) <= built)
}
