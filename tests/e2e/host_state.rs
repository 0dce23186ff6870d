//! What state is the host in, and each VM on it?

use crate::Tests;
use anyhow::{Result, ensure};
use std::collections::HashMap;
use std::path::Path;
use testbed::qemu::{Config, Vm};
use testbed::record::Recording;
use testbed::results::{figure, json, rows, sum, vm};
use testbed::squeeze::Squeeze;
use testbed::{PATIENCE, await_some};

pub(crate) const TESTS: Tests = &[("swap_states_tell_who_thrashes", swap_states)];

/// Waits until the last row of a VM says so.
fn await_state(folder: &Path, vm: &str, state: &str) -> Result<()> {
    await_some(&format!("{vm}: {state}"), PATIENCE, || {
        let rows = rows(folder, "vms.csv")?;
        let last = rows.iter().rev().find(|row| row["vm"] == vm);
        Ok(last.is_some_and(|row| row["swap_state"] == state).then_some(()))
    })
}

/// Whether a recording of hours, ended early, says the same of both VMs.
fn at_any_interval(folder: &Path) -> Result<()> {
    let rows = rows(folder, "vms.csv")?;
    let of = |name: &str| rows.iter().filter(|row| row["vm"] == name).collect::<Vec<_>>();
    let (squeezed, calm) = (of("squeezed"), of("calm"));
    // Two where the hour ends meanwhile.
    ensure!((1..=2).contains(&squeezed.len()), "{} rows", squeezed.len());
    let ns = |rows: &[&HashMap<String, String>], column: &str| {
        rows.iter().map(|row| Ok(row[column].parse::<u64>()?)).sum::<Result<u64>>()
    };
    println!("thrashing for {} ns", ns(&squeezed, "swap_thrashing_ns")?);
    ensure!(squeezed.iter().any(|row| row["swap_state"] == "thrashing"), "{squeezed:#?}");
    ensure!(ns(&squeezed, "swap_thrashing_ns")? > 0, "{squeezed:#?}");
    ensure!(calm.iter().any(|row| row["swap_state"] == "healthy"), "{calm:#?}");
    ensure!(ns(&calm, "swap_healthy_ns")? > 0 && ns(&calm, "swap_thrashing_ns")? == 0);
    let (counted, kernel) = (ns(&squeezed, "faults_counted")?, ns(&squeezed, "faults_kernel")?);
    ensure!(counted.abs_diff(kernel) * 100 <= kernel, "{counted} of {kernel} faults");
    let squeezed = vm(folder, "squeezed")?;
    let majors = figure(&squeezed, "fault.major", "count")?;
    ensure!(majors > 1_000, "{majors} major faults");
    Ok(())
}

fn swap_states() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let folder = dir.path().join("run");
    let squeeze = Squeeze::new()?;
    let _squeezed = Vm::start(&squeeze.config("squeezed"))?;
    let _calm = Vm::start(&Config::new("calm", 16))?;
    let hourly = Recording::start(&dir.path().join("hourly"), ["--interval", "1h"])?;
    let recording = Recording::start(&folder, ["--interval", "500ms"])?;
    await_state(&folder, "calm", "healthy")?;
    await_state(&folder, "squeezed", "thrashing")?;
    // The other looks at other moments.
    await_some("3 s of thrashing", PATIENCE, || {
        let rows = rows(&folder, "vms.csv")?;
        let thrashing = rows.iter().filter(|row| row["swap_state"] == "thrashing");
        Ok((thrashing.count() >= 6).then_some(()))
    })?;
    recording.end()?;
    at_any_interval(&hourly.end()?)?;

    // It is at a limit of its own, of which the host knows nothing.
    let summary = json(&folder, "summary.json")?;
    ensure!(summary["host"]["swap"]["worst"] == "healthy", "{:#}", summary["host"]);
    let squeezed = vm(&folder, "squeezed")?;
    ensure!(squeezed["swap"]["worst"] == "thrashing", "{squeezed:#}");
    ensure!(vm(&folder, "calm")?["swap"]["worst"] == "healthy");
    // Of an interval of half a second every second one has a look.
    let hosts = rows(&folder, "host.csv")?;
    let looked = hosts.iter().filter(|row| !row["swapped_in_pages_per_s"].is_empty()).count();
    ensure!(looked > 0 && looked < hosts.len(), "{looked} of {}", hosts.len());

    let limit = |name: &str| {
        let all = rows(&folder, "vms.csv")?;
        let last = all.into_iter().rev().find(|row| row["vm"] == name);
        anyhow::Ok(last.map(|row| row["cgroup_limit_bytes"].clone()).unwrap_or_default())
    };
    ensure!(limit("squeezed")? == (48u64 << 20).to_string() && limit("calm")?.is_empty());
    let left = squeezed["memory"]["cgroup_headroom_bytes"]["lower"].as_i64();
    ensure!(left.is_some_and(|left| left < 0), "it needs no more than it may hold: {squeezed:#}");

    let run = json(&folder, "run.json")?;
    let sources = &run["vms"][0]["swap_sources"];
    ensure!(sources["swapped_in"] == "memory.stat pgmajfault", "{sources}");
    ensure!(sources["swapped_out"] == "mm_vmscan_write_folio", "{sources}");
    // The VM's by the tracepoint, the host's by /proc/vmstat; nobody else swaps.
    let of_squeezed: Vec<_> =
        rows(&folder, "vms.csv")?.into_iter().filter(|row| row["vm"] == "squeezed").collect();
    let rate = "swapped_out_pages_per_s";
    let (counted, kernel) = (sum(&of_squeezed, rate)?, sum(&hosts, rate)?);
    println!("swapped out: {counted:.0} of the VM, {kernel:.0} of the host");
    ensure!(counted > 1_000.0 && (counted / kernel - 1.0).abs() < 0.05, "{counted}, {kernel}");
    Ok(())
}
