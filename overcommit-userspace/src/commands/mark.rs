//! `overcommit mark`

use crate::kernel::clock;
use crate::terminal::say;
use anyhow::{Result, ensure};
use clap::builder::NonEmptyStringValueParser;
use overcommit_recording::format::text::time_of_day;
use overcommit_recording::recording::Folder;
use overcommit_recording::recording::run_file;
use overcommit_recording::recording::span::{self, Mark};
use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `mark`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example, while `overcommit record --out load` runs:
  overcommit mark load steady
  overcommit report load --from steady")]
pub struct Args {
    /// Folder of the recording
    dir: PathBuf,
    /// What begins now, such as ramp, steady or end
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    text: String,
}

/// Adds a line to marks.csv.
///
/// # Errors
/// The recording does not run, or the file cannot be written.
pub fn run(args: &Args) -> Result<ExitCode> {
    let dir = &args.dir;
    let folder = Folder::open(dir)?;
    let run = run_file::read(&folder)?;
    ensure!(
        run_file::is_recording(&run),
        "{} is not being recorded any more; marks can only be added while it is",
        dir.display()
    );
    let now = clock::now()?;
    let mark = Mark { at_us: now.realtime_ns / 1_000, text: args.text.clone() };
    span::add(&folder, &mark)?;
    let since_ns = now.boottime_ns.saturating_sub(run.clocks.start.boottime_ns);
    say(&format!(
        "overcommit: marked {:?} at {}, {:.1} s into {}",
        args.text,
        time_of_day(now.realtime_ns as f64 / 1e9),
        since_ns as f64 / 1e9,
        dir.display()
    ));
    Ok(ExitCode::SUCCESS)
}
