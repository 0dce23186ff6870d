//! `overcommit ab`

use crate::ab::{End, Plan, Side, difference_found};
use crate::commands::{SpanArgs, compare, default_out, require_root, signalled};
use crate::session::wait::Waiter;
use crate::terminal::say;
use anyhow::{Context, Result};
use overcommit_recording::format::text::{parse_duration, parse_interval, readable};
use overcommit_recording::model::pattern::Pattern;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Options of `ab`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  overcommit ab --a './load.sh old' --b './load.sh new'
  overcommit ab --runs 5 --a ./before.sh --b ./after.sh --out trial --fail-on-regression")]
pub struct Args {
    /// The command before the change, for a shell, run as the user who ran sudo
    #[arg(long, value_name = "COMMAND")]
    a: String,
    /// The command after it
    #[arg(long, value_name = "COMMAND")]
    b: String,
    /// Runs of each
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(5..=500))]
    runs: u32,
    /// Pause between runs
    #[arg(long, value_name = "D", allow_hyphen_values = true, default_value = "10s", value_parser = parse_duration)]
    pause: Duration,
    /// Seed for the random order of the runs
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Folder for the recordings, new, or one to resume [default: overcommit-ab-HOST-TIME]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Only VMs whose name or uuid matches PATTERN, which may be a glob; id:100 for Proxmox,
    /// namespace/name for KubeVirt; may be repeated
    #[arg(long, value_name = "PATTERN", value_parser = Pattern::parse)]
    vm: Vec<Pattern>,
    /// Length of an interval, 10ms to 1h
    #[arg(long, value_name = "D", allow_hyphen_values = true, default_value = "1s", value_parser = parse_interval)]
    interval: Duration,
    /// Skip the first D of each run, while the load warms up
    #[arg(long, value_name = "D", allow_hyphen_values = true, default_value = "0s", value_parser = parse_duration)]
    delay: Duration,
    #[command(flatten)]
    outcome: compare::OutcomeArgs,
}

/// Records both commands alternately, and compares them.
///
/// # Errors
/// A recording failed; what is recorded stays.
pub fn run(args: &Args) -> Result<ExitCode> {
    require_root()?;
    let out = match &args.out {
        Some(out) => out.clone(),
        None => default_out("overcommit-ab")?,
    };
    let seed = args.seed.unwrap_or_else(|| RandomState::new().hash_one(std::process::id()) >> 32);
    let plan = Plan::new([args.a.clone(), args.b.clone()], args.runs, args.pause, seed);
    let mut runs = Plan { record: record_options(args), ..plan }.resume(&out)?;
    announce(&runs.plan, &out);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let end = runtime.block_on(async { runs.record(&mut Waiter::new()?).await });
    if let End::Signal(signal) = end? {
        say(&format!(
            "overcommit: stopped; to resume, run the same command with --out {}",
            out.display()
        ));
        return Ok(signalled(signal));
    }
    let [a, b] = [Side::A, Side::B].map(|side| out.join(side.name()));
    let open = |dir| compare::open(dir, &SpanArgs::default()).context("the runs are recorded");
    args.outcome.compare(&open(&a)?, &open(&b)?)
}

fn record_options(args: &Args) -> Vec<String> {
    let ns = |duration: Duration| format!("{}ns", duration.as_nanos());
    let mut options = vec!["--interval".to_owned(), ns(args.interval)];
    options.extend(["--delay".to_owned(), ns(args.delay)]);
    for pattern in &args.vm {
        options.extend(["--vm".to_owned(), pattern.to_string()]);
    }
    options
}

fn announce(plan: &Plan, out: &Path) {
    let Plan { runs, seed, pause_ns, done, .. } = plan;
    let begun = if *done > 0 { format!(" {done} of them are done.") } else { String::new() };
    say(&format!(
        "overcommit: {runs} runs of each command, {} apart, in random order (--seed {seed}).{begun} \
         Recordings are written to {}.\n\
         overcommit: the time left is known after the first run. With {runs} runs of each, a \
         difference of {:.1} standard deviations between runs is detected 9 times out of 10, less \
         often where many figures are compared.",
        readable(*pause_ns),
        out.display(),
        difference_found(*runs)
    ));
}
