//! Guests of ours, assembled when they are needed.

use crate::{root, run, target};
use anyhow::Result;
use std::path::{Path, PathBuf};
use std::process::Command;

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
        }
    }
}

/// Assembles a guest if it is not there yet; gives the file to boot.
///
/// # Errors
/// The assembler or linker is missing, or fails.
pub fn kernel(guest: Guest) -> Result<PathBuf> {
    let source = root().join("tests/payload");
    let kernel = target().join(guest.name()).with_extension("elf");
    let (code, script) = (source.join("walker.S"), source.join("walker.ld"));
    if is_newer(&kernel, [&code, &script]) {
        return Ok(kernel);
    }
    std::fs::create_dir_all(target())?;
    let object = target().join(guest.name()).with_extension("o");
    let mut assembler = Command::new("as");
    assembler.arg("--32");
    for (symbol, set) in [
        ("STI", matches!(guest, Guest::Interruptible | Guest::Paravirtual)),
        ("APF", guest == Guest::Paravirtual),
        ("DEVICE", guest == Guest::Device),
    ] {
        assembler.args(["--defsym", &format!("{symbol}={}", u8::from(set))]);
    }
    assembler.arg("-o").arg(&object).arg(code);
    run(&mut assembler)?;
    let mut linker = Command::new("ld");
    linker.args(["-m", "elf_i386", "-T"]).arg(script).arg("-o").arg(&kernel).arg(&object);
    run(&mut linker)?;
    Ok(kernel)
}

/// Assembles every guest.
///
/// # Errors
/// As [`kernel`].
pub fn assemble() -> Result<()> {
    Guest::ALL.into_iter().try_for_each(|guest| kernel(guest).map(drop))
}

fn is_newer<'a>(built: &Path, sources: impl IntoIterator<Item = &'a PathBuf>) -> bool {
    let time = |path: &Path| path.metadata().and_then(|data| data.modified()).ok();
    let built = time(built);
    built.is_some() && sources.into_iter().all(|source| time(source) <= built)
}
