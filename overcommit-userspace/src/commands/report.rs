//! `overcommit report`

use crate::commands::print;
use crate::export::summary::Summary;
use crate::export::{hgrm, table};
use crate::recording::folder::{SUMMARY_CSV, SUMMARY_JSON};
use crate::recording::{Folder, Recording};
use anyhow::{Context, Result};
use clap::ValueEnum;
use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `report`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of the recording
    dir: PathBuf,
    /// How to print it
    #[arg(long, default_value = "text")]
    format: Format,
    /// Write to a file instead of the terminal
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Output formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table
    Text,
    /// summary.json
    Json,
}

/// Prints a recording from its files.
///
/// # Errors
/// The folder is no recording, or cannot be read or mended.
pub fn run(args: &Args) -> Result<ExitCode> {
    let text = rebuild(&Folder::open(&args.dir), args.format)?;
    match &args.out {
        Some(path) => {
            std::fs::write(path, text)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        None => print(&text)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes what a recording gets at its end, from its logs alone, and gives the
/// report. A recording that still runs is only read.
///
/// # Errors
/// As [`run`].
pub fn rebuild(folder: &Folder, format: Format) -> Result<String> {
    let recording = Recording::open(folder)?;
    let summary = Summary::of(&recording);
    let json = summary.json()?;
    if !recording.is_recording {
        folder.replace(SUMMARY_JSON, &json)?;
        folder.replace(SUMMARY_CSV, &summary.csv()?)?;
        for (vm, totals) in recording.run.vms.iter().zip(&recording.vms) {
            let plotted = totals.metrics.iter().filter(|(name, _)| is_plotted(name.as_str()));
            for (name, metric) in plotted {
                let name = format!("vms/{}/{}.hgrm", vm.folder, name.as_str());
                folder.replace(&name, hgrm::file(&metric.latencies).as_bytes())?;
            }
        }
    }
    Ok(match format {
        Format::Text => table::text(&recording.run, &summary),
        Format::Json => String::from_utf8(json).context("summary.json is not UTF-8")?,
    })
}

/// Metrics that get a percentile distribution at the end; `export` makes the others.
fn is_plotted(metric: &str) -> bool {
    metric.starts_with("fault.") || ["swapin", "stall.memory"].contains(&metric)
}
