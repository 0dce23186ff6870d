//! `overcommit report`

use crate::commands::{ObjectiveArgs, PLOTS, SpanArgs};
use crate::terminal::{print, say};
use anyhow::Result;
use overcommit_recording::recording::{Folder, run_file, single};
use overcommit_recording::report::{Format, View, rebuild};
use overcommit_recording::view::style::plain;
use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `report`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  overcommit report before
  overcommit report load --from steady --to end -v
  overcommit report load --slo 'stall.share<1%' --json
  overcommit report load --format html --out load.html")]
pub struct Args {
    /// Folder of the recording
    dir: PathBuf,
    /// How to print it
    #[arg(long, default_value = "text")]
    format: Format,
    /// Print it as JSON, as --format json does
    #[arg(long, conflicts_with = "format")]
    json: bool,
    /// Print every metric of every VM
    #[arg(short, long)]
    verbose: bool,
    /// Write to a file instead of the terminal
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    objectives: ObjectiveArgs,
    #[command(flatten)]
    span: SpanArgs,
}

/// Prints a recording from its files.
///
/// # Errors
/// The folder is no recording, or cannot be read or mended.
pub fn run(args: &Args) -> Result<ExitCode> {
    let folder = Folder::open(&args.dir)?;
    // Before marks are looked for in it.
    run_file::read(&folder)?;
    let view = View {
        format: if args.json { Format::Json } else { args.format },
        is_full: args.verbose,
        span: args.span.read(&folder)?,
        marks: args.span.marks(),
        objectives: args.objectives.read(),
        library: Some(PLOTS),
    };
    let report = rebuild(&folder, &view)?;
    match &args.out {
        Some(path) => single::put(path, plain(&report.text).as_bytes())?,
        None => print(&report.text)?,
    }
    if let Some(error) = report.not_written {
        say(&format!("overcommit: the summary is not written into the recording: {error:#}"));
    }
    Ok(ExitCode::from(report.code))
}
