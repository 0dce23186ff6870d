//! What did the time of faults go into?

use crate::Tests;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::Path;
use std::time::Duration;
use testbed::await_some;
use testbed::host::{MemoryCgroup, Setting};
use testbed::qemu::{Config, Vm};
use testbed::record::Recording;
use testbed::results::{figure, vm};
use testbed::squeeze::Squeeze;
use testbed::swap::SlowSwap;

pub(crate) const TESTS: Tests = &[
    ("reclaim_at_a_limit_is_named_kvm", at_a_limit),
    ("a_slow_swap_device_is_no_reclaim_kvm", slow_device),
];

const PATIENCE: Duration = Duration::from_secs(60);
const MIB: u64 = 64;

/// Records a VM until it has had that many majors.
fn recorded(folder: &Path, guest: &mut Vm, majors: u64) -> Result<Value> {
    let recording = Recording::start(folder, ["--interval", "500ms"])?;
    let before = guest.faults()?[1];
    guest.resume()?;
    await_some("major faults", PATIENCE, || {
        Ok((guest.faults()?[1] >= before + majors).then_some(()))
    })?;
    guest.stop()?;
    recording.end()?;
    vm(folder, "squeezed")
}

/// The share of its faults' time that a VM spent in reclaim.
fn reclaimed(vm: &Value) -> Result<f64> {
    let time = &vm["fault_time"];
    println!("{time}");
    let of = |key: &str| time[key].as_u64().with_context(|| format!("no {key} in {time}"));
    let (reclaim, all) = (of("reclaim_ns")?, of("total_ns")?);
    ensure!(time["swapin_ns"].is_null(), "this backend sees no swap-ins: {time}");
    ensure!(reclaim <= all, "the part is more than the whole: {time}");
    let sums = figure(vm, "fault.minor", "sum_ns")? + figure(vm, "fault.major", "sum_ns")?;
    ensure!(all == sums, "{all} of {sums} ns");
    Ok(reclaim as f64 / all.max(1) as f64)
}

/// Each page that comes back pushes another one out.
fn at_a_limit() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let folder = dir.path().join("run");
    let squeeze = Squeeze::new()?;
    let mut guest = Vm::start(&Config { stopped: true, ..squeeze.config("squeezed") })?;
    let vm = recorded(&folder, &mut guest, 20_000)?;
    let share = reclaimed(&vm)?;
    ensure!(share >= 0.5, "reclaim is {share:.2} of the time: {vm:#}");
    let (count, sum) = (figure(&vm, "reclaim", "count")?, figure(&vm, "reclaim", "sum_ns")?);
    println!("{count} times, {sum} ns");
    // Reclaim takes 32 pages or more at a time (SWAP_CLUSTER_MAX).
    ensure!(count > 300 && sum >= vm["fault_time"]["reclaim_ns"].as_u64().unwrap_or(0));
    let report = testbed::results::run(["report", &folder.to_string_lossy()])?;
    let text = String::from_utf8(report.stdout)?;
    let said = text.lines().find(|line| line.contains("of its vCPU time to memory"));
    println!("{said:?}");
    ensure!(said.is_some_and(|line| line.contains("% reclaim")), "{text}");
    Ok(())
}

/// What comes back has room: nothing is taken for it.
fn slow_device() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let _settings = [Setting::small_pages()?, Setting::no_readahead()?];
    let cgroup = MemoryCgroup::new("slow")?;
    let _swap = SlowSwap::new(512, 600)?;
    let mut guest = Vm::start(&Config { cgroup: Some(&cgroup), ..Config::new("squeezed", MIB) })?;
    guest.await_passes(1)?;
    guest.stop()?;
    cgroup.push_out()?;
    let vm = recorded(&dir.path().join("run"), &mut guest, 3_000)?;
    let share = reclaimed(&vm)?;
    ensure!(share <= 0.01, "reclaim is {share:.2} of the time: {vm:#}");
    ensure!(figure(&vm, "fault.major", "p99_ns")? > 10_000_000, "the device is not slow: {vm:#}");
    Ok(())
}
