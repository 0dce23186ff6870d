//! `overcommit export`

use crate::commands::SpanArgs;
use crate::terminal::print;
use anyhow::Result;
use overcommit_recording::export::files;
use overcommit_recording::export::files::{Format, Selection};
use overcommit_recording::model::pattern::Pattern;
use overcommit_recording::recording::run_file;
use overcommit_recording::recording::{Folder, Recording};
use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `export`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of the recording
    dir: PathBuf,
    /// What to write: an untagged HdrHistogram log, a percentile distribution, or the
    /// rows of intervals.csv
    #[arg(long)]
    format: Format,
    /// Only VMs of this name or uuid, or of a glob over either; id:100 for Proxmox,
    /// namespace/name for KubeVirt; may be repeated
    #[arg(long, value_name = "PATTERN", value_parser = Pattern::parse)]
    vm: Vec<Pattern>,
    /// Only this metric, or family as exit; may be repeated
    #[arg(long, value_name = "NAME")]
    metric: Vec<String>,
    #[command(flatten)]
    span: SpanArgs,
}

/// Writes one file a VM and metric into the recording's folder `export`.
///
/// # Errors
/// The folder is no recording, nothing in it is meant, or a file cannot be written.
pub fn run(args: &Args) -> Result<ExitCode> {
    let folder = Folder::open(&args.dir);
    run_file::read(folder.path())?;
    let span = args.span.read(&folder)?;
    let recording = Recording::open(&folder)?;
    let selection = Selection { vms: args.vm.clone(), metrics: args.metric.clone() };
    let files = files::write(&recording, span, args.format, &selection)?;
    print(
        &files.iter().map(|name| format!("{}\n", folder.file(name).display())).collect::<String>(),
    )?;
    Ok(ExitCode::SUCCESS)
}
