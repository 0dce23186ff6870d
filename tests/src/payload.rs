//! Guests of ours, assembled when they are needed.

use crate::{root, run, target};
use anyhow::Result;
use std::path::PathBuf;
use std::process::Command;

/// Assembles the guest that walks its memory; gives the file to boot.
///
/// # Errors
/// The assembler or linker is missing, or fails.
pub fn walker() -> Result<PathBuf> {
    let source = root().join("tests/payload");
    let object = target().join("walker.o");
    let kernel = target().join("walker.elf");
    std::fs::create_dir_all(target())?;
    let source_file = source.join("walker.S");
    run(Command::new("as").arg("--32").arg("-o").arg(&object).arg(source_file))?;
    let script = source.join("walker.ld");
    run(Command::new("ld")
        .args(["-m", "elf_i386", "-T"])
        .arg(script)
        .arg("-o")
        .arg(&kernel)
        .arg(&object))?;
    Ok(kernel)
}
