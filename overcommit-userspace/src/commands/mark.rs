//! `overcommit mark`

use crate::kernel::clock;
use anyhow::{Context, Result, ensure};
use overcommit_recording::recording::folder::MARKS;
use overcommit_recording::recording::run_file;
use overcommit_recording::recording::{Folder, span};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `mark`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of the recording
    dir: PathBuf,
    /// What begins now, such as ramp, steady or end
    text: String,
}

/// Adds a line to marks.csv.
///
/// # Errors
/// The recording does not run, or the file cannot be written.
pub fn run(args: &Args) -> Result<ExitCode> {
    let dir = &args.dir;
    let runs = run_file::is_recording(&run_file::read(dir)?);
    ensure!(runs, "{} is not being recorded any more: marks are made meanwhile", dir.display());
    let line = span::line(clock::now()?.realtime_ns / 1_000, &args.text)?;
    // In one piece: others may mark too.
    let mut file = Folder::open(dir).append(MARKS)?;
    file.write_all(&line).with_context(|| format!("cannot write {MARKS}"))?;
    Ok(ExitCode::SUCCESS)
}
