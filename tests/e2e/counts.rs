//! Every fault is counted, once, for the right VM.

use crate::Tests;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use std::collections::HashMap;
use std::process::Command;
use testbed::host::{MemoryCgroup, Setting};
use testbed::qemu::{Config, Vm, stat_field};
use testbed::record::Recording;
use testbed::results::{
    Killed, StandIn, faults_agree, figure, json, lost, only_vm, rows, vm, within_a_percent,
};
use testbed::swap::ZramSwap;
use testbed::{PATIENCE, as_child, await_some};

pub(crate) const TESTS: Tests = &[
    ("counts_agree_with_the_kernel_kvm", counts_agree_under_kvm),
    ("counts_agree_with_the_kernel_tcg", counts_agree_under_tcg),
    ("shared_memory_counts_to_the_vm_kvm", shared_memory_counts),
    ("shared_memory_written_from_outside_is_named_as_unseen_kvm", writes_from_outside_are_unseen),
    ("raw_faults_agree_with_the_histogram", raw_faults_agree),
    ("held_fault_is_one_event_and_a_full_stall_kvm", held_fault),
];

/// MiB that a squeezed guest walks, and may hold.
const WALK: u64 = 96;
const LIMIT: u64 = 64;
/// Majors that make a count worth comparing.
const MAJORS: u64 = 10_000;

fn counts_agree_under_kvm() -> Result<()> {
    counts_agree("kvm")
}

fn counts_agree_under_tcg() -> Result<()> {
    counts_agree("tcg")
}

fn counts_agree(accel: &str) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let _small_pages = Setting::small_pages()?;
    let cgroup = MemoryCgroup::new("test")?;
    let _swap = ZramSwap::new(512)?;
    cgroup.limit(LIMIT)?;
    let squeezed =
        Config { cgroup: Some(&cgroup), accel, stopped: true, ..Config::new("squeezed", WALK) };
    let mut squeezed = Vm::start(&squeezed)?;
    let mut calm = Vm::start(&Config { accel, stopped: true, ..Config::new("calm", WALK) })?;
    let mut bystander = Command::new(testbed::results::stand_in());
    bystander.args(["bystander", "600000"]);
    let bystander = Killed(as_child(&mut bystander, Signal::SIGKILL).spawn()?);

    let recording = Recording::start(&dir.path().join("run"), ["--interval", "200ms"])?;
    let before = [squeezed.faults()?, calm.faults()?];
    squeezed.resume()?;
    calm.resume()?;
    await_some("major faults", PATIENCE, || {
        Ok((squeezed.faults()?[1] >= before[0][1] + MAJORS).then_some(()))
    })?;
    calm.await_passes(2)?;
    squeezed.stop()?;
    calm.stop()?;
    let folder = recording.end()?;
    let after = [squeezed.faults()?, calm.faults()?];
    let bystander_pid = bystander.0.id();

    for (name, index) in [("squeezed", 0), ("calm", 1)] {
        let vm = vm(&folder, name)?;
        faults_agree(&format!("{accel} {name}"), &vm, before[index], after[index])?;
        ensure!(vm["metrics"][0]["coverage"] == "full", "{name} is not fully covered: {vm:#}");
    }
    let majors = |name| vm(&folder, name).and_then(|vm| figure(&vm, "fault.major", "count"));
    ensure!(majors("squeezed")? >= MAJORS, "too few majors to compare");
    ensure!(majors("calm")? * 100 <= majors("squeezed")?, "the calm VM is not calm");
    let run = json(&folder, "run.json")?;
    ensure!(run["vms"].as_array().map(Vec::len) == Some(2), "a bystander was recorded: {run:#}");
    ensure!(
        !run.to_string().contains(&format!("\"{bystander_pid}-")),
        "the bystander was recorded"
    );
    Ok(())
}

fn shared_memory_counts() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut stand_in = StandIn::start(["share", "20000"])?;
    let pid = stand_in.pid();
    let pattern = format!("stand-in-{pid}");
    let recording = Recording::start(&dir.path().join("run"), ["--vm", &pattern])?;
    stand_in.work()?;
    let folder = recording.end()?;
    let vm = only_vm(&folder)?;
    let by_others = vm["faults_by_others"].as_u64().unwrap_or(0);
    within_a_percent("faults of the process that shares", by_others, 20_000, lost(&vm))?;
    ensure!(figure(&vm, "fault.minor", "count")? >= by_others, "{vm:#}");
    Ok(())
}

fn writes_from_outside_are_unseen() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut stand_in = StandIn::start(["written", "5000"])?;
    let pattern = format!("stand-in-{}", stand_in.pid());
    let recording = Recording::start(&dir.path().join("run"), ["--vm", &pattern])?;
    stand_in.work()?;
    let folder = recording.end()?;
    let counted = figure(&only_vm(&folder)?, "fault.minor", "count")?;
    ensure!(counted < 5_000, "{counted} faults: this backend sees process_vm_writev after all");
    let coverage = json(&folder, "run.json")?["coverage"].to_string();
    ensure!(coverage.contains("process_vm_writev"), "what is not seen is not named: {coverage}");
    Ok(())
}

fn raw_faults_agree() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let _small_pages = Setting::small_pages()?;
    let cgroup = MemoryCgroup::new("test")?;
    let _swap = ZramSwap::new(512)?;
    cgroup.limit(LIMIT)?;
    let config = Config { cgroup: Some(&cgroup), stopped: true, ..Config::new("squeezed", WALK) };
    let mut vm = Vm::start(&config)?;
    let recording = Recording::start(&dir.path().join("run"), ["--slow-faults", "0ns"])?;
    vm.resume()?;
    await_some("major faults", PATIENCE, || Ok((vm.faults()?[1] >= MAJORS).then_some(())))?;
    vm.stop()?;
    let folder = recording.end()?;
    let summary = only_vm(&folder)?;
    let raw = rows(&folder, "slow-faults.csv")?;
    let dropped = summary["not_counted"]["slow_dropped"].as_u64().unwrap_or(0);
    let mut counted = 0;
    for metric in ["fault.minor", "fault.major"] {
        let of_metric = raw.iter().filter(|row| row["metric"] == metric);
        let mut latencies: Vec<u64> =
            of_metric.map(|row| row["latency_ns"].parse()).collect::<Result<_, _>>()?;
        latencies.sort_unstable();
        counted += figure(&summary, metric, "count")?;
        ensure!(dropped == 0 || metric == "fault.minor", "{dropped} dropped: nothing to compare");
        for (quantile, column) in [
            (0.5, "p50_ns"),
            (0.9, "p90_ns"),
            (0.99, "p99_ns"),
            (0.999, "p999_ns"),
            (1.0, "max_ns"),
        ] {
            let rank = (quantile * latencies.len() as f64).ceil() as usize;
            let exact = latencies[rank.max(1) - 1];
            let reported = figure(&summary, metric, column)?;
            println!("{metric} {column}: raw {exact}, histogram {reported}");
            ensure!(
                reported >= exact && (reported - exact) * 100 <= exact,
                "{metric} {column}: raw {exact}, histogram {reported}"
            );
        }
    }
    println!("raw {}, histogram {counted}, dropped {dropped}", raw.len());
    ensure!(raw.len() as u64 + dropped == counted, "raw {} + {dropped} of {counted}", raw.len());
    let is_placed = |row: &&HashMap<String, String>| !row["guest_address"].is_empty();
    let row = raw.iter().rfind(is_placed).context("no place in the guest")?;
    let ask = serde_json::json!({ "command-line": format!("gpa2hva {}", row["guest_address"]) });
    let answer = vm.execute("human-monitor-command", ask)?.to_string();
    println!("{answer} is {}", row["address"]);
    ensure!(answer.contains(&row["address"]), "{answer} is not {}", row["address"]);
    Ok(())
}

fn held_fault() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut stand_in = StandIn::start(["held", "3500"])?;
    let pattern = format!("stand-in-{}", stand_in.pid());
    let recording = Recording::start(&dir.path().join("run"), ["--vm", &pattern])?;
    let times = stand_in.work()?;
    let (held_ns, stood_ns) = times.split_once(' ').with_context(|| times.clone())?;
    let (held_ns, stood_ns): (u64, u64) = (held_ns.parse()?, stood_ns.parse()?);
    ensure!(stat_field(stand_in.pid(), 10)? > 0);
    let folder = recording.end()?;
    let vm = only_vm(&folder)?;
    let metrics = ["fault.minor", "fault.major"];
    let longest = metrics.map(|metric| figure(&vm, metric, "max_ns").unwrap_or(0));
    let max = longest[0].max(longest[1]);
    let is_between = (held_ns..=stood_ns).contains(&max);
    ensure!(is_between, "held {held_ns}, recorded {max}, stood still {stood_ns}");
    let intervals = rows(&folder, "intervals.csv")?;
    let long = intervals.iter().filter(|row| row["max_ns"].parse().unwrap_or(0) >= held_ns);
    ensure!(long.count() == 1, "the fault is not one event");
    let rows = rows(&folder, "vms.csv")?;
    let shares: Vec<f64> = rows.iter().filter_map(|row| row["stall_share"].parse().ok()).collect();
    println!("held {held_ns} ns, recorded {max} ns, shares {shares:?}");
    ensure!(shares.iter().all(|share| *share <= 1.0), "a share above the whole: {shares:?}");
    // Of 3.5 s two whole intervals at least, which are one if the first comes late.
    let full =
        rows.iter().filter(|row| row["stall_share"].parse().is_ok_and(|share: f64| share >= 0.99));
    let full_s: f64 = full.filter_map(|row| row["length_s"].parse::<f64>().ok()).sum();
    ensure!(full_s >= 1.9, "{full_s} s are full: {shares:?}");
    Ok(())
}
