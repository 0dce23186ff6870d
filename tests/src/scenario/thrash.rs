//! The cliff: a VM is fine as long as its working set fits, and stands still as soon as
//! it does not.

use crate::qemu::{Config, Vm};
use crate::record::Recording;
use crate::results::{json, median, rows};
use crate::scenario::{Row, figure, print_report};
use crate::squeeze::Squeeze;
use crate::{PATIENCE, await_some};
use anyhow::{Context, Result, ensure};
use std::path::Path;

/// MiB that the VM may hold.
const LIMIT: u64 = 256;
/// Working sets in per cent of that.
const STEPS: [u64; 7] = [50, 80, 100, 105, 110, 120, 150];
/// Share of its time that a VM waits from which it is over the cliff: below what any machine
/// shows there, and above what a VM that fits does.
const CLIFF: f64 = 0.02;
/// Intervals of each step that are looked at.
const INTERVALS: usize = 6;

/// What was seen of a step.
struct Step {
    percent: u64,
    passes_per_s: f64,
    stall: f64,
    swapped_in: f64,
}

pub(super) fn run(dir: &Path) -> Result<()> {
    let squeeze = Squeeze::to(LIMIT)?;
    let folder = dir.join("thrash");
    let recording = Recording::start(&folder, ["--interval", "500ms", "--slo", "stall.share<2%"])?;
    let mut steps = Vec::new();
    for percent in STEPS {
        steps.push(step(&squeeze, &folder, percent)?);
    }
    // One was broken: the exit code says so.
    let status = recording.interrupted()?;
    print(&steps);
    ensure!(status.code() == Some(3), "overcommit record ended with {status}");

    let first = steps.iter().find(|step| step.stall > CLIFF).context("there is no cliff")?;
    println!("the cliff is at {} % of the limit", first.percent);
    ensure!((95..=115).contains(&first.percent), "the cliff is at {} %", first.percent);
    verdict(&folder, first.percent)
}

/// A VM that walks so much, for some intervals after it has walked it twice.
fn step(squeeze: &Squeeze, folder: &Path, percent: u64) -> Result<Step> {
    let name = format!("db-{percent}");
    let config =
        Config { cgroup: Some(&squeeze.cgroup), ..Config::new(&name, LIMIT * percent / 100) };
    let mut vm = Vm::start(&config)?;
    vm.await_passes(2)?;
    let of_vm = || -> Result<Vec<Row>> {
        Ok(rows(folder, "vms.csv")?.into_iter().filter(|row| row["vm"] == name).collect())
    };
    let (before, passes, start) = (of_vm()?.len(), vm.passes()?, std::time::Instant::now());
    let rows = await_some("intervals", PATIENCE, || {
        // Without the one that was open meanwhile.
        let rows = of_vm()?;
        Ok((rows.len() > before + INTERVALS).then(|| rows[before + 1..].to_vec()))
    })
    .with_context(|| format!("of {name}; recorded are {}", recorded(folder)))?;
    let passes_per_s = (vm.passes()? - passes) as f64 / start.elapsed().as_secs_f64();
    let each = |column: &str| rows.iter().map(|row| figure(row, column)).collect::<Result<_>>();
    let looked: Vec<f64> = rows
        .iter()
        .filter(|row| !row["swapped_in_pages_per_s"].is_empty())
        .map(|row| figure(row, "swapped_in_pages_per_s"))
        .collect::<Result<_>>()?;
    let (stall, swapped_in) = (median(each("stall_share")?), median(looked));
    if stall > CLIFF {
        // The state takes some seconds of swapping, of which a step may have had too few.
        await_some("pressure", PATIENCE, || {
            let rows = of_vm()?;
            let is_worse =
                |row: &Row| ["pressure", "thrashing"].contains(&row["swap_state"].as_str());
            Ok(rows.iter().any(is_worse).then_some(()))
        })
        .with_context(|| format!("of {name}"))?;
    }
    Ok(Step { percent, passes_per_s, stall, swapped_in })
}

/// What is recorded, in short.
fn recorded(folder: &Path) -> String {
    let run = json(folder, "run.json").unwrap_or_default();
    let vms = run["vms"].as_array().into_iter().flatten();
    let short = vms.map(|vm| format!("{} ({}, {})", vm["name"], vm["vm_id"], vm["ended_us"]));
    format!("{}: {}", run["recorded"], short.collect::<Vec<_>>().join(", "))
}

fn print(steps: &[Step]) {
    println!("\n               guest saw         host saw");
    println!("working set    passes/s    stall    pages in/s");
    for Step { percent, passes_per_s, stall, swapped_in } in steps {
        let stall = stall * 100.0;
        println!("{percent:>9} %  {passes_per_s:>10.1}  {stall:>6.1} %  {swapped_in:>10.0}");
    }
}

/// The right VMs, by name, with the right state.
fn verdict(folder: &Path, cliff: u64) -> Result<()> {
    print_report(folder)?;
    let summary = json(folder, "summary.json")?;
    // The limit is their own; the host has enough.
    ensure!(summary["host"]["swap"]["worst"] == "healthy", "{:#}", summary["host"]);
    let judged = summary["objectives"].as_array().context("no objectives")?;
    for (percent, judged) in STEPS.iter().zip(judged) {
        ensure!(judged["vm"] == format!("db-{percent}"), "{judged:#}");
        // Over its whole time, its start included: one at the cliff's edge may hold it.
        ensure!(*percent <= cliff || judged["verdict"] == "broken", "{judged:#}");
    }
    for vm in summary["vms"].as_array().context("no VMs")? {
        let name = vm["vm"].as_str().unwrap_or_default();
        let percent: u64 = name.trim_start_matches("db-").parse()?;
        let majors = crate::results::figure(vm, "fault.major", "count")?;
        ensure!(percent <= cliff || majors > 10_000, "{name} does not swap: {vm:#}");
        // Thrashing takes longer to tell than a step lasts.
        let is_worse =
            ["pressure", "thrashing"].contains(&vm["swap"]["worst"].as_str().unwrap_or(""));
        ensure!(percent <= cliff || is_worse, "{vm:#}");
    }
    Ok(())
}
