//! `overcommit compare`

use crate::commands::SpanArgs;
use crate::compare::series::Side;
use crate::compare::{Compared, Comparison, compare};
use crate::format::text::readable;
use crate::recording::run_file;
use crate::recording::{Folder, Recording};
use crate::slo::judge::BROKEN;
use crate::terminal::print;
use anyhow::{Context, Result, ensure};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Options of `compare`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The recording before the change, or a folder with several
    base: PathBuf,
    /// The recording after it, or a folder with several
    dir: PathBuf,
    /// End with 3 if something is proven to be worse
    #[arg(long)]
    fail_on_regression: bool,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    span: SpanArgs,
}

/// Compares.
///
/// # Errors
/// One is no recording, or cannot be read.
pub fn run(args: &Args) -> Result<ExitCode> {
    let compared = compare(&open(&args.base, &args.span)?, &open(&args.dir, &args.span)?)?;
    if args.json {
        print(&format!("{}\n", serde_json::to_string_pretty(&compared)?))?;
    } else {
        print(&text(&compared))?;
    }
    let is_worse = compared.compared.iter().any(Compared::is_regression);
    Ok(ExitCode::from(if args.fail_on_regression && is_worse { BROKEN } else { 0 }))
}

/// A recording, or each of those in a folder.
fn open(dir: &Path, span: &SpanArgs) -> Result<Vec<Side>> {
    let is_recording = |dir: &Path| dir.join(crate::recording::folder::RUN_FILE).exists();
    let mut dirs = vec![dir.to_owned()];
    if !is_recording(dir) {
        let within = std::fs::read_dir(dir);
        let within = within.with_context(|| format!("cannot read {}", dir.display()))?;
        let within: Vec<PathBuf> =
            within.flatten().map(|entry| entry.path()).filter(|path| is_recording(path)).collect();
        ensure!(!within.is_empty(), "{} is no recording, and holds none", dir.display());
        dirs = within;
    }
    dirs.sort();
    let open = |dir: PathBuf| {
        let folder = Folder::open(&dir);
        run_file::read(&dir)?;
        let span = span.read(&folder)?;
        let side = Recording::open(&folder).and_then(|recording| Side::read(recording, span));
        side.with_context(|| format!("{}", dir.display()))
    };
    dirs.into_iter().map(open).collect()
}

fn text(compared: &Comparison) -> String {
    let mut text = String::new();
    for entry in &compared.compared {
        let _ = writeln!(text, "{}", line(entry));
    }
    if compared.compared.is_empty() {
        text.push_str("Nothing can be compared: no VM is on both sides.\n");
    }
    for vm in &compared.unmatched {
        let _ = writeln!(text, "{vm}: on one side alone, or not the only one there.");
    }
    for warning in &compared.warnings {
        let _ = writeln!(text, "Note: {warning}.");
    }
    text
}

fn line(entry: &Compared) -> String {
    let change = entry.change().map(|change| format!(" ({:+.0} %)", change * 100.0));
    let figures = format!(
        "{} → {}{}",
        shown(entry.figure, entry.base),
        shown(entry.figure, entry.new),
        change.unwrap_or_default()
    );
    let what = match entry.figure {
        "p99_ns" => format!("{} p99", entry.metric),
        "rate_per_s" => format!("{} rate", entry.metric),
        _ => entry.metric.clone(),
    };
    let claim = match (&entry.why_not, entry.p) {
        (Some(why), _) => format!("nothing can be claimed, {why}."),
        (None, Some(p)) if entry.is_real => {
            let word = if entry.new > entry.base { "WORSE" } else { "better" };
            format!("{word}, p = {p:.2e}.")
        }
        (None, p) => format!(
            "no difference can be claimed, p = {:.2}. Not proof of equality.",
            p.unwrap_or(1.0)
        ),
    };
    format!("{}: {what} {figures}: {claim}", entry.vm)
}

fn shown(figure: &str, value: f64) -> String {
    match figure {
        "p99_ns" => readable(value as u64),
        "share" => format!("{:.2} %", value * 100.0),
        _ => format!("{value:.1}/s"),
    }
}
