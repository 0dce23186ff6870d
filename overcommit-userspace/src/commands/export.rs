//! `overcommit export`

use crate::commands::SpanArgs;
use crate::terminal::print;
use anyhow::Result;
use overcommit_recording::export::files::Selection;
use overcommit_recording::export::{self, Format};
use overcommit_recording::model::pattern::Pattern;
use overcommit_recording::recording::run_file;
use overcommit_recording::recording::{Folder, Owner, Recording};
use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `export`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  overcommit export load --vm web-01
  overcommit export load --metric fault.major --format hgrm --out plots
  overcommit export load --format perfetto        open it at ui.perfetto.dev")]
pub struct Args {
    /// Folder of the recording
    dir: PathBuf,
    /// What to write: for each VM and metric an untagged HdrHistogram log, a percentile
    /// distribution or the rows of intervals.csv; or one trace for Perfetto's viewer
    #[arg(long, default_value = "hlog")]
    format: Format,
    /// Only VMs whose name or uuid matches PATTERN, which may be a glob; id:100 for Proxmox,
    /// namespace/name for KubeVirt; may be repeated
    #[arg(long, value_name = "PATTERN", value_parser = Pattern::parse)]
    vm: Vec<Pattern>,
    /// Only this metric, or a family such as exit (every exit.*); may be repeated
    #[arg(long, value_name = "NAME")]
    metric: Vec<String>,
    #[command(flatten)]
    span: SpanArgs,
    /// Folder for the files, new or empty [default: export, in the recording's folder]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Writes the files, and prints where they are.
///
/// # Errors
/// The folder is no recording, nothing in it is meant, or a file cannot be written.
pub fn run(args: &Args) -> Result<ExitCode> {
    let folder = Folder::open(&args.dir)?;
    run_file::read(&folder)?;
    let span = args.span.read(&folder)?;
    let recording = Recording::open(&folder)?;
    let selection = Selection { vms: args.vm.clone(), metrics: args.metric.clone() };
    let out = args.out.as_deref().map(|out| Folder::make(out, Owner::behind_sudo()?));
    let out = out.transpose()?;
    let files = export::write(&recording, span, args.format, &selection, out.as_ref());
    let files = files.inspect_err(|_| out.iter().for_each(Folder::discard))?;
    print(&files.iter().map(|path| format!("{}\n", path.display())).collect::<String>())?;
    Ok(ExitCode::SUCCESS)
}
