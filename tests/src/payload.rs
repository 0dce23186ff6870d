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
    /// Executes CPUID instead, which KVM answers itself; on x86 alone.
    Cpuid,
    /// Has a guest of its own walk; on AMD alone.
    Nested,
    /// Halts until its timer fires, over and over; on arm64 alone.
    Idle,
    /// Linux with one program that walks; only in the lab, which has a kernel for it.
    Linux,
    /// Linux with this machine's root, read-only, and [`crate::qemu::Config::script`] in
    /// a shell.
    Shell,
}

impl Guest {
    /// The file to boot.
    const fn name(self) -> &'static str {
        match self {
            Self::Walker => "walker",
            Self::Interruptible => "walker-sti",
            Self::Paravirtual => "walker-apf",
            Self::Device => "walker-device",
            Self::Cpuid => "walker-cpuid",
            Self::Nested => "walker-nested",
            Self::Idle => "walker-idle",
            Self::Linux => "linux",
            Self::Shell => "shell",
        }
    }
}

/// What a guest's code is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Processor {
    /// x86, from 32 bits on.
    X86,
    /// arm64.
    Arm64,
}

impl Processor {
    /// That of this host.
    const HOST: Self = if cfg!(target_arch = "aarch64") { Self::Arm64 } else { Self::X86 };

    /// The guests that there are for it.
    const fn guests(self) -> &'static [Guest] {
        match self {
            Self::X86 => &[
                Guest::Walker,
                Guest::Interruptible,
                Guest::Paravirtual,
                Guest::Device,
                Guest::Cpuid,
                Guest::Nested,
            ],
            Self::Arm64 => &[Guest::Walker, Guest::Device, Guest::Idle],
        }
    }

    /// What the names of its files end in.
    const fn suffix(self) -> &'static str {
        match self {
            Self::X86 => "",
            Self::Arm64 => "-arm64",
        }
    }

    /// What the names of its assembler and linker begin with.
    fn tools(self) -> &'static str {
        if self == Self::Arm64 && Self::HOST != self { "aarch64-linux-gnu-" } else { "" }
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
    without_system(guest, Processor::HOST, std::env::var_os(WORKS).is_some())
}

fn without_system(guest: Guest, processor: Processor, works: bool) -> Result<PathBuf> {
    let source = format!("walker{}", processor.suffix());
    let script = root().join("tests/payload").join(&source).with_extension("ld");
    let symbol = |name: &str, set: bool| format!("--defsym={name}={}", u8::from(set));
    let symbols = [
        symbol("STI", matches!(guest, Guest::Interruptible | Guest::Paravirtual)),
        symbol("APF", guest == Guest::Paravirtual),
        symbol("DEVICE", guest == Guest::Device),
        symbol("CPUID", guest == Guest::Cpuid),
        symbol("NESTED", guest == Guest::Nested),
        symbol("IDLE", guest == Guest::Idle),
        format!("--defsym=WORK={}", if works { WORK } else { 0 }),
    ];
    let (width, format) = match processor {
        Processor::X86 => (&["--32"][..], &["-m", "elf_i386"][..]),
        Processor::Arm64 => (&[][..], &[][..]),
    };
    let assembler = symbols.iter().map(String::as_str).chain(width.iter().copied());
    let linker = format.iter().chain([&"-T"]).map(OsStr::new).chain([script.as_os_str()]);
    let works = if works { "-works" } else { "" };
    let name = format!("{}{works}{}", guest.name(), processor.suffix());
    build(&name, &source, processor.tools(), assembler, linker)
}

/// Assembles the program of a Linux guest, which walks that many MiB.
///
/// # Errors
/// As [`kernel`].
pub fn init(mebibytes: u64) -> Result<PathBuf> {
    build("guest-init", "init", "", ["--64", &format!("--defsym=MIB={mebibytes}")], [""; 0])
}

/// Builds a file if it is older than its sources, or not there.
fn build<'a>(
    name: &str,
    source: &str,
    tools: &str,
    assembler: impl IntoIterator<Item = &'a str>,
    linker: impl IntoIterator<Item = impl AsRef<OsStr>>,
) -> Result<PathBuf> {
    let source = root().join("tests/payload").join(source);
    let built = target().join(name).with_extension("elf");
    let code = source.with_extension("S");
    if is_newer(&built, [&code, &source.with_extension("ld")]) {
        return Ok(built);
    }
    std::fs::create_dir_all(target())?;
    let object = target().join(name).with_extension("o");
    run(Command::new(format!("{tools}as")).args(assembler).arg("-o").arg(&object).arg(code))?;
    run(Command::new(format!("{tools}ld")).args(linker).arg("-o").arg(&built).arg(&object))?;
    Ok(built)
}

/// Assembles every guest for that processor.
///
/// # Errors
/// As [`kernel`].
pub fn assemble(processor: Processor) -> Result<()> {
    let all = processor.guests().iter().flat_map(|guest| [(*guest, false), (*guest, true)]);
    all.into_iter().try_for_each(|(guest, works)| without_system(guest, processor, works).map(drop))
}

fn is_newer<'a>(built: &Path, sources: impl IntoIterator<Item = &'a PathBuf>) -> bool {
    let time = |path: &Path| path.metadata().and_then(|data| data.modified()).ok();
    let built = time(built);
    built.is_some() && sources.into_iter().all(|source| time(source) <= built)
}
