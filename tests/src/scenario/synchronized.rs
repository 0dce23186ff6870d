//! Jobs that start together: each VM is fine alone, and alone is how its owner tests it.

use crate::host::MemoryCgroup;
use crate::qemu::{Config, Vm};
use crate::record::Recording;
use crate::results::{json, rows};
use crate::scenario::print_report;
use crate::squeeze::Squeeze;
use crate::{PATIENCE, await_some};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::Path;
use std::time::{Duration, Instant};

const VMS: usize = 8;
/// MiB that each job walks, and that each guest has beside that and never touches.
const WALK: u64 = 48;
const IDLE: u64 = 64;
/// MiB that all of them may hold together: two or three of them fit.
const LIMIT: u64 = 160;
/// For how long the jobs are watched at least: swap states look at ten seconds.
const TIME: Duration = Duration::from_secs(12);

pub(super) fn run(dir: &Path) -> Result<()> {
    let alone = together(&dir.join("alone"), 1, Some(LIMIT))?;
    let free = together(&dir.join("unlimited"), VMS, None)?;
    let limited = together(&dir.join("limited"), VMS, Some(LIMIT))?;
    let sum = |paces: &[f64]| paces.iter().sum::<f64>();

    print_report(&dir.join("limited"))?;
    println!("\n                         guests saw                          host saw");
    println!("                         passes/s  of memory never used     swap state  mean stall");
    for (name, paces) in [("alone", &alone), ("unlimited", &free), ("limited", &limited)] {
        let summary = json(&dir.join(name), "summary.json")?;
        let stall = mean_stall(&summary)? * 100.0;
        let state = summary["host"]["swap"]["worst"].as_str().unwrap_or_default().to_owned();
        println!(
            "{:>2} VMs, {name:<12}  {:>12.1}  {IDLE} of {} MiB each  {state:>14}  {stall:>8.1} %",
            paces.len(),
            sum(paces),
            WALK + IDLE
        );
    }
    let left = sum(&limited) / sum(&free);
    println!("together they do {:.1} % of what they do without the limit", left * 100.0);
    ensure!(left <= 1.0 / 3.0, "throughput fell to {left:.2} alone");
    verdict(&dir.join("unlimited"), false)?;
    verdict(&dir.join("alone"), false)?;
    verdict(&dir.join("limited"), true)
}

/// Runs so many at once; gives the pace of each.
fn together(folder: &Path, vms: usize, limit: Option<u64>) -> Result<Vec<f64>> {
    let squeeze = Squeeze::to(limit.unwrap_or(4096))?;
    let cgroups: Vec<MemoryCgroup> =
        (0..vms).map(|n| squeeze.cgroup.child(&format!("vm-{n}"))).collect::<Result<_>>()?;
    let names: Vec<String> = (0..vms).map(|n| format!("batch-{n}")).collect();
    let mut running = Vec::new();
    for (name, cgroup) in names.iter().zip(&cgroups) {
        let config = Config { cgroup: Some(cgroup), stopped: true, ..Config::new(name, WALK) };
        running.push(Vm::start(&config)?);
    }
    // The jobs start together, and have all that they need once.
    running.iter_mut().try_for_each(Vm::resume)?;
    running.iter_mut().try_for_each(|vm| vm.await_passes(1))?;
    let recording = Recording::start(folder, ["--interval", "500ms"])?;
    let before: Vec<usize> = running.iter().map(Vm::passes).collect::<Result<_>>()?;
    let start = Instant::now();
    std::thread::sleep(TIME);
    if vms > 1 && limit.is_some() {
        await_some("thrashing of all", PATIENCE, || {
            let each = names.iter().map(|name| thrashes(folder, name));
            let each = each.collect::<Result<Vec<_>>>()?;
            Ok(each.iter().all(|thrashes| *thrashes).then_some(()))
        })?;
    }
    let time = start.elapsed().as_secs_f64();
    let after: Vec<usize> = running.iter().map(Vm::passes).collect::<Result<_>>()?;
    recording.end()?;
    let pace = |(after, before)| (after - before) as f64 / time;
    Ok(after.into_iter().zip(before).map(pace).collect())
}

/// Whether it was seen to thrash so far.
fn thrashes(folder: &Path, name: &str) -> Result<bool> {
    let rows = rows(folder, "vms.csv")?;
    Ok(rows.iter().any(|row| row["vm"] == name && row["swap_state"] == "thrashing"))
}

fn mean_stall(summary: &Value) -> Result<f64> {
    let vms = summary["vms"].as_array().context("no VMs")?;
    let shares = vms.iter().filter_map(|vm| vm["stall"]["share"].as_f64());
    Ok(shares.sum::<f64>() / vms.len() as f64)
}

/// Each VM by its name, and the host, in the right state.
fn verdict(folder: &Path, thrashes: bool) -> Result<()> {
    let summary = json(folder, "summary.json")?;
    let host = summary["host"]["swap"]["worst"].as_str().unwrap_or_default();
    if !thrashes {
        ensure!(host == "healthy", "{:#}", summary["host"]);
        return Ok(());
    }
    ensure!(host == "thrashing", "{:#}", summary["host"]);
    let overcommit = summary["host"]["overcommit"]["worst"].as_str().unwrap_or_default();
    ensure!(["approaching", "critical"].contains(&overcommit), "{:#}", summary["host"]);
    let vms = summary["vms"].as_array().context("no VMs")?;
    let thrashing = vms.iter().filter(|vm| vm["swap"]["worst"] == "thrashing").count();
    println!("{thrashing} of {} VMs are thrashing", vms.len());
    ensure!(thrashing == VMS, "{:#}", summary["vms"]);
    Ok(())
}
