//! How often does `compare` claim a difference where there is none, and how often does it find
//! one? Loads are made up, and judged by what judges the command's recordings.

mod load;
mod model;
mod runs;

use anyhow::{Result, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use load::{Load, Process};
use model::{latencies, write};
use overcommit_ebpf::layout::Metric;
use overcommit_recording::compare::series::Side;
use overcommit_recording::compare::{FigureName, compare};
use overcommit_recording::model::latencies::Latencies;
use overcommit_recording::recording::{Folder, Recording, Span};
use runs::{Plan, Said};
use std::path::Path;
use std::process::ExitCode;

/// Comparisons without a change, of each load and plan, and those in which latencies double;
/// so many times more if all is asked for.
const UNCHANGED: u64 = 100;
/// See [`UNCHANGED`].
const DOUBLED: u64 = 30;
/// Set to a number: so many times as many comparisons.
const TIMES: &str = "OVERCOMMIT_SIMULATE_TIMES";

const LOADS: [Load; 15] = [
    Load::Steady,
    Load::Drifting,
    Load::Bursts(15.0),
    Load::Bursts(60.0),
    Load::Episodes,
    Load::Pareto(1.1),
    Load::Pareto(1.5),
    Load::Wandering(60.0, 0.15),
    Load::Wandering(120.0, 0.15),
    Load::Wandering(300.0, 0.15),
    Load::Wandering(600.0, 0.15),
    Load::Wandering(3_600.0, 0.15),
    Load::WanderingRate(120.0, 0.1),
    Load::WanderingRate(300.0, 0.1),
    Load::Hourly,
];

fn main() -> ExitCode {
    let mut trials = Vec::new();
    let mut add = |name: String, run: Box<dyn FnOnce() -> Result<()> + Send>| {
        let run = move || run().map_err(|error| Failed::from(format!("{error:#}")));
        trials.push(Trial::test(name, run));
    };
    for plan in Plan::ALL {
        for load in LOADS {
            add(format!("{plan}, {load:?}"), Box::new(move || simulate(load, plan)));
        }
    }
    add("recordings are judged as their figures are".to_owned(), Box::new(recordings));
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn times() -> u64 {
    std::env::var(TIMES).ok().and_then(|times| times.parse().ok()).unwrap_or(1)
}

fn simulate(load: Load, plan: Plan) -> Result<()> {
    let said = |of: u64, from: u64, factor: f64| {
        let mut said = Said::default();
        (from..from + of).for_each(|seed| said.add(plan.compare(load, seed, factor)));
        said
    };
    let (unchanged, doubled) = (UNCHANGED * times(), DOUBLED * times());
    let false_alarms = said(unchanged, 0, 1.0);
    let found = said(doubled, 1_000_000, 2.0);
    println!(
        "{:<34} {:<26} without a change, of {unchanged}: {:>3} worse, {:>3} better, {:>3} not \
         judged; doubled, of {doubled}: {:>3} found, {:>3} not judged",
        plan.to_string(),
        format!("{load:?}"),
        false_alarms.worse,
        false_alarms.better,
        false_alarms.not_judged,
        found.worse,
        found.not_judged,
    );
    let worse = false_alarms.worse;
    ensure!(worse * 100 <= 4 * unchanged, "{worse} false alarms of {unchanged}");
    let is_found = plan.finds(load);
    ensure!(!is_found || found.worse * 100 >= 90 * doubled, "{} of {doubled}", found.worse);
    Ok(())
}

/// The same load as figures and as a recording that the command reads: the same is said.
fn recordings() -> Result<()> {
    let dir = tempfile::tempdir_in("/dev/shm")?;
    let run = |name: &str, seconds, seed, factor| -> Result<Vec<Side>> {
        let path = dir.path().join(name);
        let mut process = Process::new(Load::Drifting, seed);
        written(&path, seconds, || process.next(factor))?;
        let folder = Folder::open(&path)?;
        Ok(vec![Side::read(Recording::open(&folder)?, Span::WHOLE)?])
    };
    let base = run("base", 600, 1, 1.0)?;
    let same = compare(&base, &run("same", 600, 2, 1.0)?)?;
    ensure!(!same.is_worse() && same.is_judged(), "{same:#?}");
    let new = compare(&base, &run("new", 600, 3, 2.0)?)?;
    ensure!(new.is_worse(), "{new:#?}");
    let short = run("short", 60, 4, 1.0)?;
    let short = compare(&short, &short)?;
    ensure!(!short.is_judged(), "{short:#?}");
    let says = |why: &Option<String>| why.as_ref().is_some_and(|why| why.contains("60 s recorded"));
    ensure!(short.compared.iter().any(|entry| says(&entry.why_not)), "{short:#?}");
    // Where there was none, there are 50 a second.
    written(&dir.path().join("none"), 600, Vec::new)?;
    let none = Folder::open(&dir.path().join("none"))?;
    let none = vec![Side::read(Recording::open(&none)?, Span::WHOLE)?];
    let came = compare(&none, &base)?;
    let rate = came
        .compared
        .iter()
        .find(|entry| entry.metric == "fault.major" && entry.figure == FigureName::Rate);
    ensure!(rate.is_some_and(|rate| rate.is_regression() && rate.base == Some(0.0)), "{came:#?}");
    let went = compare(&base, &none)?;
    ensure!(!went.is_worse() && went.compared.iter().any(|entry| entry.is_real), "{went:#?}");
    Ok(())
}

fn written(path: &Path, seconds: u64, mut next: impl FnMut() -> Vec<f64>) -> Result<()> {
    write(path, 1, seconds, &[Metric::FaultMinor, Metric::FaultMajor], |_, metric| match metric {
        Metric::FaultMajor => latencies(next().into_iter().map(|ns| ns as u64)),
        _ => Latencies::empty(),
    })?;
    Ok(())
}
