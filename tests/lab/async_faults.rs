//! Asynchronous page faults: the vCPU goes on while a kernel worker brings the page.

use crate::witness::Histogram;
use crate::{FUNCTION_BACKENDS, Scenario};
use anyhow::{Context, Result, ensure};
use std::time::Duration;
use testbed::await_some;
use testbed::host::{DiskSwap, MemoryCgroup, Setting, SmallPages, read};
use testbed::payload::Guest;
use testbed::qemu::{Config, Vm};
use testbed::record::Recording;
use testbed::results::{figure, json, only_vm};

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut scenarios: Vec<Scenario> = Vec::new();
    for backend in FUNCTION_BACKENDS {
        let taken = move || workers_count(backend);
        scenarios.push((format!("async_faults_{backend}"), Box::new(taken)));
    }
    scenarios.push(("async_faults_not_without_interrupts".to_owned(), Box::new(control)));
    scenarios
}

const PATIENCE: Duration = Duration::from_secs(120);
/// The lab's slow disk.
const DISK: &str = "/dev/vda";
/// MiB that the guest walks, and may hold.
const WALK: u64 = 64;
const LIMIT: u64 = 48;
/// Majors that make a share worth a look.
const MAJORS: u64 = 600;
/// Majors after which QEMU has its own memory back.
const WARM: u64 = 300;

/// Whether the kernel is of that series.
fn runs(series: &str) -> Result<bool> {
    Ok(read("/proc/sys/kernel/osrelease")?.starts_with(series))
}

/// A VM whose memory lies on a slow disk in part.
struct Swapped {
    vm: Vm,
    cgroup: MemoryCgroup,
    _swap: DiskSwap,
    _settings: (SmallPages, Setting),
}

impl Swapped {
    /// Without readahead, but on 6.1, which then reads while the caller waits, also for
    /// one that does not want to (`swap_cluster_readahead`).
    ///
    /// Filled without a limit, then squeezed while it stands still.
    fn start(guest: Guest) -> Result<Self> {
        let readahead = if runs("6.1.")? { "3" } else { "0" };
        let settings = (SmallPages::new()?, Setting::new("/proc/sys/vm/page-cluster", readahead)?);
        let swap = DiskSwap::new(DISK)?;
        let cgroup = MemoryCgroup::new("lab")?;
        let config = Config { cgroup: Some(&cgroup), guest, ..Config::new("swapped", WALK) };
        let mut vm = Vm::start(&config)?;
        vm.await_passes(1)?;
        vm.stop()?;
        // The kernel says that it found too little when it did not find all of it.
        let _ = cgroup.reclaim(WALK - LIMIT + 24);
        cgroup.limit(LIMIT)?;
        let before = cgroup.stat("pgmajfault")?;
        vm.resume()?;
        await_some("major faults", PATIENCE, || {
            Ok((cgroup.stat("pgmajfault")? >= before + WARM).then_some(()))
        })?;
        vm.stop()?;
        Ok(Self { vm, cgroup, _swap: swap, _settings: settings })
    }
}

fn workers_count(backend: &str) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut swapped = Swapped::start(Guest::Interruptible)?;
    let recording = Recording::start(&dir.path().join("run"), ["--backend", backend])?;
    let begun = Histogram::start("kvm/kvm_async_pf_not_present", "token")?;
    let ended = Histogram::start("kvm/kvm_async_pf_ready", "token")?;
    let qemu_before = swapped.vm.faults()?[1];
    let before = swapped.cgroup.stat("pgmajfault")?;
    swapped.vm.resume()?;
    await_some("major faults", PATIENCE, || {
        Ok((swapped.cgroup.stat("pgmajfault")? >= before + MAJORS).then_some(()))
    })?;
    swapped.vm.stop()?;
    let folder = recording.end()?;
    let (begun, ended) = (begun.total()?, ended.total()?);
    let by_memcg = swapped.cgroup.stat("pgmajfault")? - before;
    let by_qemu = swapped.vm.faults()?[1] - qemu_before;
    let summary = only_vm(&folder)?;
    let apf = figure(&summary, "apf", "count").unwrap_or(0);
    let majors = figure(&summary, "fault.major", "count")?;
    let outside = summary["taken_by"]["outside"].as_u64().context("nobody took any")?;
    let run = json(&folder, "run.json")?;
    println!("apf: counted {apf}, ftrace {begun} begun, {ended} ready");
    println!(
        "majors: counted {majors}, {outside} faults from outside; memcg {by_memcg}, QEMU {by_qemu}"
    );
    println!("{} {} {}", run["vms"][0]["vcpu_times"], summary["not_counted"], summary["stall"]);
    ensure!(apf > MAJORS / 2, "{apf} asynchronous page faults are too few");
    ensure!(apf.abs_diff(ended) <= 3.max(ended / 100), "apf {apf}, ftrace {ended}");
    // The vCPU's attempt starts the read, which memcg counts, and a worker ends it. Of
    // QEMU's own majors some only waited for a page that was on its way.
    ensure!(
        by_memcg * 100 >= outside * 99 && by_memcg * 100 <= (outside + by_qemu) * 101,
        "memcg counts {by_memcg}, workers {outside}, QEMU {by_qemu}"
    );
    ensure!(by_qemu * 10 < majors, "QEMU's own stat has {by_qemu} of {majors}");
    ensure!(outside * 10 > majors * 9, "{outside} of {majors} majors by workers");
    Ok(())
}

fn control() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut swapped = Swapped::start(Guest::Walker)?;
    let recording = Recording::start(&dir.path().join("run"), [""; 0])?;
    let begun = Histogram::start("kvm/kvm_async_pf_not_present", "token")?;
    let before = swapped.vm.faults()?[1];
    swapped.vm.resume()?;
    await_some("major faults", PATIENCE, || {
        Ok((swapped.vm.faults()?[1] >= before + MAJORS / 2).then_some(()))
    })?;
    swapped.vm.stop()?;
    let summary = only_vm(&recording.end()?)?;
    let apf = figure(&summary, "apf", "count").unwrap_or(0);
    ensure!(begun.total()? == 0 && apf == 0, "{apf} asynchronous page faults");
    let outside = summary["taken_by"]["outside"].as_u64().context("nobody took any")?;
    let majors = figure(&summary, "fault.major", "count")?;
    println!("no asynchronous page faults in {majors} majors, {outside} from outside");
    ensure!(majors >= MAJORS / 2 && outside * 10 <= majors, "{outside} of {majors} from outside");
    Ok(())
}
