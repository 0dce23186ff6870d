//! `overcommit anonymize`

use crate::commands::PLOTS;
use crate::terminal::print;
use anyhow::{Context, Result};
use overcommit_recording::anonymize::Pseudonyms;
use overcommit_recording::recording::{Folder, Owner, Recording, run_file};
use overcommit_recording::report::{Format, View, rebuild};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Options of `anonymize`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Names and UUIDs of VMs, and names of hosts, processes, threads, cgroups, swap files and marks become
pseudonyms. Memory addresses, labels, paths, and the command with its arguments are left out.
Figures, times, process ids and the kernel's release stay.

Examples:
  overcommit anonymize load --out for-support
  overcommit anonymize before after --out for-support    the same VM has the same pseudonym"
)]
pub struct Args {
    /// Folder of the recording, or folders of several
    #[arg(required = true)]
    dirs: Vec<PathBuf>,
    /// Folder for the copy, new or empty; copies of several are called 1, 2, … in it
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// Copies recordings without names, and prints where the copies are.
///
/// # Errors
/// A folder is no recording, or still being recorded; or a copy cannot be written.
pub fn run(args: &Args) -> Result<ExitCode> {
    let mut names = Pseudonyms::default();
    for (number, dir) in (1..).zip(&args.dirs) {
        let out = match args.dirs.len() {
            1 => args.out.clone(),
            _ => args.out.join(number.to_string()),
        };
        copy(dir, &out, &mut names).with_context(|| format!("cannot copy {}", dir.display()))?;
        print(&format!("{}\n", out.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn copy(dir: &Path, out: &Path, names: &mut Pseudonyms) -> Result<()> {
    let folder = Folder::open(dir)?;
    run_file::read(&folder)?;
    let recording = Recording::open(&folder)?;
    let copy = Folder::make(out, Owner::behind_sudo()?)?;
    names.copy(&recording, &copy).inspect_err(|_| copy.discard())?;
    let view = View::whole(Format::Text, false).drawn_by(PLOTS);
    rebuild(&copy, &view)?.not_written.map_or(Ok(()), Err)
}
