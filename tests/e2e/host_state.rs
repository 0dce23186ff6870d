//! What state is the host in, and each VM on it?

use crate::Tests;
use anyhow::{Result, ensure};
use std::path::Path;
use testbed::qemu::{Config, Vm};
use testbed::record::Recording;
use testbed::results::{json, rows, sum, vm};
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

fn swap_states() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let folder = dir.path().join("run");
    let squeeze = Squeeze::new()?;
    let _squeezed = Vm::start(&squeeze.config("squeezed"))?;
    let _calm = Vm::start(&Config::new("calm", 16))?;
    let recording = Recording::start(&folder, ["--interval", "500ms"])?;
    await_state(&folder, "calm", "healthy")?;
    await_state(&folder, "squeezed", "thrashing")?;
    recording.end()?;

    let summary = json(&folder, "summary.json")?;
    ensure!(summary["host"]["swap"]["worst"] == "thrashing", "{:#}", summary["host"]);
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
