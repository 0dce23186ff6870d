//! The stall share counts vCPU threads only.

use crate::Tests;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json as object};
use testbed::host::{MemoryCgroup, Setting};
use testbed::qemu::{Config, Vm};
use testbed::record::Recording;
use testbed::results::{figure, json, only_vm};
use testbed::swap::ZramSwap;

pub(crate) const TESTS: Tests = &[
    ("stall_share_by_thread_names", || stall_share(true)),
    ("stall_share_by_kvm_run", || stall_share(false)),
    ("stall_share_is_empty_where_vcpus_are_not_known", unknown_vcpus),
];

const WALK: u64 = 96;
const LIMIT: u64 = 64;
const MAJORS: u64 = 5_000;

/// A squeezed VM with two vCPUs, one of which walks.
fn squeezed<T>(
    accel: Option<&str>,
    debug_threads: bool,
    test: impl FnOnce(&mut Vm) -> Result<T>,
) -> Result<T> {
    let _small_pages = Setting::small_pages()?;
    let cgroup = MemoryCgroup::new("test")?;
    let _swap = ZramSwap::new(512)?;
    cgroup.limit(LIMIT)?;
    let plain = Config::new("squeezed", WALK);
    let config = Config {
        cgroup: Some(&cgroup),
        vcpus: 2,
        debug_threads,
        accel: accel.unwrap_or(plain.accel),
        ..plain
    };
    let mut vm = Vm::start(&config)?;
    vm.await_passes(1)?;
    test(&mut vm)
}

/// Records until the VM has taken so many majors more.
fn record(vm: &mut Vm, work: impl FnOnce(&mut Vm) -> Result<()>) -> Result<(Value, Value)> {
    let dir = tempfile::tempdir()?;
    let recording = Recording::start(&dir.path().join("run"), ["--interval", "100ms"])?;
    work(vm)?;
    let folder = recording.end()?;
    Ok((only_vm(&folder)?, json(&folder, "run.json")?))
}

fn stall_share(debug_threads: bool) -> Result<()> {
    squeezed(debug_threads.then_some("tcg"), debug_threads, |vm| {
        let (walking, run) = record(vm, |vm| vm.await_majors(MAJORS))?;
        // How busy the machine is says nothing of who is a vCPU.
        let of = |figure: &str| walking["stall"][figure].as_f64().context("the share is empty");
        let share = of("waited_ns")? / of("vcpu_ns")?;
        let known_by = if debug_threads { "name" } else { "kvm_run" };
        println!("walking: share {share}, vCPUs known by {}", run["vms"][0]["vcpus_known_by"]);
        ensure!(run["vms"][0]["vcpus_known_by"] == known_by, "{run:#}");
        ensure!(share > 0.05 && share <= 0.5, "one of two vCPUs walks, the share is {share}");

        // The guest stands still while QEMU's main thread reads its memory.
        vm.stop()?;
        let (read, _) = record(vm, |vm| {
            let whole = object!({ "val": 0, "size": WALK << 20, "filename": "/dev/null" });
            vm.execute("pmemsave", whole).map(drop)
        })?;
        let majors = figure(&read, "fault.major", "count")?;
        println!("reading: {majors} majors, stall {}", read["stall"]);
        ensure!(majors > 1_000, "the main thread did not fault");
        match read["stall"]["share"].as_f64() {
            Some(share) => {
                ensure!(share < 0.001, "the main thread's faults are a stall of {share}")
            }
            // Nobody can tell the vCPUs of a VM that stands still.
            None => ensure!(!debug_threads, "the share is empty"),
        }
        Ok(())
    })
}

fn unknown_vcpus() -> Result<()> {
    squeezed(Some("tcg"), false, |vm| {
        let (walking, run) = record(vm, |vm| vm.await_majors(MAJORS))?;
        ensure!(figure(&walking, "fault.major", "count")? >= MAJORS / 2);
        ensure!(walking["stall"].is_null(), "a share of unknown vCPUs: {walking:#}");
        ensure!(run["vms"][0]["vcpus_known_by"].is_null(), "{run:#}");
        Ok(())
    })
}
