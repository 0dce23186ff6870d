//! What did the time of faults go into?

use crate::Tests;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;
use testbed::host::{MemoryCgroup, Setting};
use testbed::qemu::{Config, Vm};
use testbed::record::Recording;
use testbed::results::{StandIn, fault_share, figure, rows, starved_share, vm};
use testbed::squeeze::Squeeze;
use testbed::swap::SlowSwap;
use testbed::{PATIENCE, await_some};

pub(crate) const TESTS: Tests = &[
    ("reclaim_at_a_limit_is_named_kvm", at_a_limit),
    ("a_slow_swap_device_is_waited_for_and_no_reclaim_kvm", slow_device),
    ("waits_for_the_lock_of_the_address_space_are_named_kvm", lock),
    ("waits_for_a_cpu_in_a_fault_are_named_kvm", starved),
    ("a_slow_fault_says_where_it_slept_kvm", held),
];

type Row = HashMap<String, String>;

const MIB: u64 = 64;

/// Records a VM until it has had that many majors.
fn recorded(folder: &Path, guest: &mut Vm, majors: u64, options: &[&str]) -> Result<Value> {
    let recording = Recording::start(folder, [&["--interval", "500ms"], options].concat())?;
    let before = guest.faults()?[1];
    guest.resume()?;
    await_some("major faults", PATIENCE, || {
        Ok((guest.faults()?[1] >= before + majors).then_some(()))
    })?;
    guest.stop()?;
    recording.end()?;
    vm(folder, "squeezed")
}

/// What a stand-in costs, and the rows of its slow faults.
fn stands_in(mode: &str, number: &str, options: &[&str]) -> Result<(Value, Vec<Row>)> {
    let dir = tempfile::tempdir()?;
    let mut stand_in = StandIn::start([mode, number])?;
    let name = format!("stand-in-{}", stand_in.pid());
    let folder = dir.path().join("run");
    let options = [&["--vm", &name], options].concat();
    let recording = Recording::start(&folder, options)?;
    stand_in.work()?;
    recording.end()?;
    let vm = vm(&folder, &name)?;
    let time = &vm["fault_time"];
    let is_blind = time["swapin_ns"].is_null() && time["userfault_ns"].is_null();
    ensure!(is_blind, "seen without hooks: {time}");
    Ok((vm, rows(&folder, "slow-faults.csv").unwrap_or_default()))
}

fn lock() -> Result<()> {
    let (vm, _) = stands_in("locked", "100", &[])?;
    let share = fault_share(&vm, "lock")?;
    ensure!(share >= 0.7, "the lock is {share:.2} of the time: {vm:#}");
    Ok(())
}

fn starved() -> Result<()> {
    let (vm, _) = stands_in("starved", "10", &["--causes"])?;
    let share = starved_share(&vm)?;
    ensure!(share >= 0.7, "waits for a CPU are {share:.2} of the time: {vm:#}");
    Ok(())
}

fn held() -> Result<()> {
    let (vm, slow) = stands_in("held", "300", &["--slow-faults", "50ms"])?;
    let share = fault_share(&vm, "sleep")?;
    ensure!(share >= 0.9, "sleep is {share:.2} of the time: {vm:#}");
    // Beside it others may have waited for a CPU.
    let held = slow.iter().filter(|row| row["stack"].contains(";handle_userfault;"));
    let held: Vec<_> = held.collect();
    let [row] = held[..] else { bail!("{} slow faults: {slow:#?}", held.len()) };
    println!("{}", row["stack"]);
    let slept: u64 = row["sleep_ns"].parse()?;
    // The stand-in holds it that long; what comes on top is how late it is woken.
    ensure!(slept >= 300_000_000, "{row:#?}");
    Ok(())
}

/// Each page that comes back pushes another one out.
fn at_a_limit() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let folder = dir.path().join("run");
    let squeeze = Squeeze::new()?;
    let mut guest = Vm::start(&Config { stopped: true, ..squeeze.config("squeezed") })?;
    let vm = recorded(&folder, &mut guest, 20_000, &[])?;
    let share = fault_share(&vm, "reclaim")?;
    ensure!(share >= 0.5, "reclaim is {share:.2} of the time: {vm:#}");
    let (count, sum) = (figure(&vm, "reclaim", "count")?, figure(&vm, "reclaim", "sum_ns")?);
    println!("{count} times, {sum} ns");
    // Reclaim takes 32 pages or more at a time (SWAP_CLUSTER_MAX).
    ensure!(count > 300 && sum >= vm["fault_time"]["reclaim_ns"].as_u64().unwrap_or(0));
    let report = testbed::results::run(["report", &folder.to_string_lossy()])?;
    let text = String::from_utf8(report.stdout)?;
    // Wherever the lines end.
    let said = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let parts = said.split_once("its faults were").context("no parts")?.1;
    println!("{parts}");
    ensure!(parts.split_once(" % reclaim").is_some_and(|(share, _)| share.len() < 40), "{text}");
    Ok(())
}

/// What comes back has room: nothing is taken for it.
fn slow_device() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let _settings = [Setting::small_pages()?, Setting::no_readahead()?];
    let cgroup = MemoryCgroup::new("slow")?;
    // Each read takes longer than a wait for a CPU on a busy machine.
    let _swap = SlowSwap::new(512, 100)?;
    let mut guest = Vm::start(&Config { cgroup: Some(&cgroup), ..Config::new("squeezed", MIB) })?;
    guest.await_passes(1)?;
    guest.stop()?;
    cgroup.push_out()?;
    let folder = dir.path().join("run");
    let vm = recorded(&folder, &mut guest, 300, &["--slow-faults", "5ms"])?;
    let (reclaim, io) = (fault_share(&vm, "reclaim")?, fault_share(&vm, "io")?);
    ensure!(reclaim <= 0.01 && io >= 0.7, "reclaim {reclaim:.2}, device {io:.2}: {vm:#}");
    ensure!(figure(&vm, "fault.major", "p99_ns")? > 5_000_000, "the device is not slow: {vm:#}");
    let slow = rows(&folder, "slow-faults.csv")?;
    let ns = |row: &Row, column: &str| row[column].parse::<u64>().unwrap_or(0);
    // The others waited for a CPU.
    let waited = slow.iter().filter(|row| ns(row, "io_ns") * 2 > ns(row, "latency_ns"));
    let (swapped, other): (Vec<_>, Vec<_>) =
        waited.partition(|row| row["stack"].contains(";do_swap_page;"));
    println!("slow: {} of swap, {} of {}", swapped.len(), other.len(), slow.len());
    println!("{}", swapped.first().context("none waited for the device")?["stack"]);
    // Those read QEMU's own files.
    ensure!(swapped.len() > other.len() * 2, "{other:#?}");
    Ok(())
}
