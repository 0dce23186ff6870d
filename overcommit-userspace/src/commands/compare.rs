//! `overcommit compare`

use crate::commands::SpanArgs;
use crate::terminal::{json, print, say};
use anyhow::{Context, Result, ensure};
use overcommit_recording::compare::compare;
use overcommit_recording::compare::series::Side;
use overcommit_recording::html;
use overcommit_recording::recording::{Folder, Recording, run_file, single};
use overcommit_recording::report::Format;
use overcommit_recording::slo::judge::{BROKEN, NOT_JUDGED};
use overcommit_recording::view::comparison_text;
use overcommit_recording::view::style::plain;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Options of `compare`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  overcommit compare before after
  overcommit compare runs-of-old runs-of-new --fail-on-regression
  overcommit compare before after --from steady --to end
  overcommit compare before after --format html --out change.html")]
pub struct Args {
    /// The recording before the change, or a folder with several
    base: PathBuf,
    /// The recording after it, or a folder with several
    dir: PathBuf,
    /// How to print it
    #[arg(long, default_value = "text", conflicts_with = "json")]
    format: Format,
    /// Write to a file instead of the terminal
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    outcome: OutcomeArgs,
    #[command(flatten)]
    span: SpanArgs,
}

/// Options that say what becomes of a comparison.
#[derive(Debug, clap::Args)]
pub struct OutcomeArgs {
    /// Exit with 3 if something is proven to be worse, and with 4 if nothing could be judged
    #[arg(long)]
    fail_on_regression: bool,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

/// Compares.
///
/// # Errors
/// One is no recording, or cannot be read.
pub fn run(args: &Args) -> Result<ExitCode> {
    let (base, new) = (open(&args.base, &args.span)?, open(&args.dir, &args.span)?);
    let format = if args.outcome.json { Format::Json } else { args.format };
    outcome(&base, &new, args.outcome.fail_on_regression, format, args.out.as_deref())
}

impl OutcomeArgs {
    /// Compares, prints what can be said, and gives the exit code.
    ///
    /// # Errors
    /// A recording cannot be read, or the outcome cannot be printed.
    pub fn compare(&self, base: &[Side], new: &[Side]) -> Result<ExitCode> {
        let format = if self.json { Format::Json } else { Format::Text };
        outcome(base, new, self.fail_on_regression, format, None)
    }
}

fn outcome(
    base: &[Side],
    new: &[Side],
    fails: bool,
    format: Format,
    out: Option<&Path>,
) -> Result<ExitCode> {
    let compared = compare(base, new)?;
    let text = match format {
        Format::Text => comparison_text::text(&compared),
        Format::Json => json(&compared)?,
        Format::Html => html::comparison(&compared, base, new)?,
    };
    match out {
        Some(path) => single::put(path, plain(&text).as_bytes())?,
        None => print(&text)?,
    }
    Ok(ExitCode::from(match fails {
        true if compared.is_worse() => BROKEN,
        true if !compared.is_judged() => {
            say("overcommit: nothing could be judged, so the exit code is 4");
            NOT_JUDGED
        }
        _ => 0,
    }))
}

/// The span of a recording, or of each of those in a folder.
///
/// # Errors
/// There is none, or one cannot be read.
pub(super) fn open(dir: &Path, span: &SpanArgs) -> Result<Vec<Side>> {
    let is_recording =
        |dir: &Path| dir.join(overcommit_recording::recording::folder::RUN_FILE).exists();
    let mut dirs = vec![dir.to_owned()];
    if !is_recording(dir) {
        let within = std::fs::read_dir(dir);
        let within = within.with_context(|| format!("cannot read {}", dir.display()))?;
        let within: Vec<PathBuf> =
            within.flatten().map(|entry| entry.path()).filter(|path| is_recording(path)).collect();
        ensure!(!within.is_empty(), "{} is not a recording and contains none", dir.display());
        dirs = within;
    }
    dirs.sort();
    let open = |dir: PathBuf| {
        let folder = Folder::open(&dir)?;
        run_file::read(&folder)?;
        let span = span.read(&folder)?;
        let side = Recording::open(&folder).and_then(|recording| Side::read(recording, span));
        side.with_context(|| format!("{}", dir.display()))
    };
    dirs.into_iter().map(open).collect()
}
