//! What counts as a stall and what does not.

use crate::Scenario;
use crate::counts::exits_agree;
use crate::witness::{Exits, Histogram, IS_ARM64, is_intel, of_memory_exits};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};
use testbed::host::{MemoryCgroup, Setting, read, write};
use testbed::payload::Guest;
use testbed::qemu::{Config, Vm};
use testbed::record::Recording;
use testbed::results::{fault_share, figure, json, only_vm, rows, vm, within_a_percent};
use testbed::squeeze::Squeeze;
use testbed::swap::ZramSwap;
use testbed::{PATIENCE, await_some};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        ("pause_and_device_are_no_stall".to_owned(), Box::new(pause_and_device)),
        ("migration_is_no_stall".to_owned(), Box::new(migration)),
        ("a_vm_that_runs_vms_waits_for_none_of_it".to_owned(), Box::new(nested)),
        ("postcopy_is_a_wait_for_another_process".to_owned(), Box::new(postcopy)),
        ("a_swapped_device_model_is_a_stall".to_owned(), Box::new(swapped_device_model)),
        ("pages_that_leave_the_guest_are_counted".to_owned(), Box::new(invalidations)),
        ("an_idle_arm64_guest_is_idle".to_owned(), Box::new(idle)),
    ]
}

/// Passes of a guest that halts, 16 times each, for 10 ms.
const HALTS: usize = 20;

/// A guest on arm64 that waits for an interrupt is idle, and waits for no memory.
fn idle(dir: &Path) -> Result<()> {
    let mut guest =
        Vm::start(&Config { guest: Guest::Idle, stopped: true, ..Config::new("idle", 1) })?;
    let recording = Recording::start(&dir.join("run"), [""; 0])?;
    let exits = Exits::start()?;
    let start = Instant::now();
    guest.resume()?;
    guest.await_passes(HALTS)?;
    guest.stop()?;
    let passed = start.elapsed().as_nanos() as u64;
    let summary = only_vm(&recording.end()?)?;
    exits_agree(&summary, &exits.counts()?)?;
    let of = |metric: &str, key| figure(&summary, metric, key);
    let (halts, halted) = (of("idle", "count")?, of("idle", "sum_ns")?);
    println!("{halts} halts of {halted} ns in {passed} ns; {}", summary["stall"]);
    ensure!(halts >= HALTS as u64 * 16 && halts.abs_diff(of("exit.wfx", "count")?) <= 3, "{halts}");
    ensure!(halted <= passed && halted * 2 >= passed, "{halted} ns of {passed} ns");
    ensure!(summary["stall"]["share"].as_f64().is_some_and(|share| share < 0.05), "{summary:#}");
    Ok(())
}

/// For how long the squeezed VM is stopped: more than two whole intervals.
const PAUSE: Duration = Duration::from_secs(3);
/// Reads of a device's register: one for each page of so many MiB.
const READS: u64 = 4;
/// Majors before the pause, and after it.
const MAJORS: u64 = 1_500;

fn pause_and_device(dir: &Path) -> Result<()> {
    let squeeze = Squeeze::new()?;
    let device = Config { guest: Guest::Device, stopped: true, ..Config::new("device", READS) };
    let mut device = Vm::start(&device)?;
    let mut squeezed = Vm::start(&Config { stopped: true, ..squeeze.config("squeezed") })?;
    let recording = Recording::start(&dir.join("run"), [""; 0])?;
    device.resume()?;
    device.await_passes(1)?;
    device.stop()?;
    squeezed.resume()?;
    squeezed.await_majors(MAJORS)?;
    squeezed.stop()?;
    std::thread::sleep(PAUSE);
    squeezed.resume()?;
    squeezed.await_majors(MAJORS)?;
    let folder = recording.end()?;
    pause_is_no_stall(&folder)?;
    device_is_no_stall(&folder)
}

fn pause_is_no_stall(folder: &Path) -> Result<()> {
    let run = json(folder, "run.json")?;
    let time = &vcpu(&run, "squeezed")?;
    let paused = time["paused_ns"].as_u64().context("no pauses")?;
    let pause = PAUSE.as_nanos() as u64;
    println!("paused {paused} ns of {pause}: {time}");
    ensure!(paused + pause / 100 >= pause, "paused {paused} ns of {pause}");
    let summary = vm(folder, "squeezed")?;
    for metric in summary["metrics"].as_array().context("no metrics")? {
        let longest = metric["max_ns"].as_u64().unwrap_or(0);
        ensure!(longest < pause, "the pause is in {}: {metric}", metric["metric"]);
    }
    let rows = rows(folder, "vms.csv")?;
    let of_squeezed = rows.iter().filter(|row| row["vm"] == "squeezed");
    let shares: Vec<f64> = of_squeezed.filter_map(|row| row["stall_share"].parse().ok()).collect();
    println!("shares {shares:?}");
    ensure!(shares.iter().all(|share| *share <= 1.0), "a share above the whole: {shares:?}");
    ensure!(shares.contains(&0.0), "no interval was free of stalls: {shares:?}");
    ensure!(shares.iter().any(|share| *share >= 0.2), "no stall at all: {shares:?}");
    Ok(())
}

/// Rounds in which the guest's writes are logged, and the memory that it writes, in MiB.
const ROUNDS: u64 = 3;
const WRITTEN: u64 = 16;

/// A VM that is copied while it writes leaves its guest for each first write to a page, and waits
/// for no memory: the page is there.
fn migration(dir: &Path) -> Result<()> {
    let mut vm = Vm::start(&Config::new("mover", WRITTEN))?;
    // All its memory has been touched.
    vm.await_passes(1)?;
    let recording = Recording::start(&dir.join("run"), [""; 0])?;
    vm.execute("migrate-set-parameters", json!({ "max-bandwidth": 64 << 20 }))?;
    vm.execute("migrate", json!({ "uri": "exec:cat > /dev/null" }))?;
    await_some("rounds of the migration", PATIENCE, || {
        let state = vm.execute("query-migrate", json!({}))?;
        ensure!(state["status"] != "failed", "{state}");
        let rounds = state["ram"]["dirty-sync-count"].as_u64().unwrap_or(0);
        Ok((rounds >= ROUNDS || state["status"] == "completed").then_some(()))
    })?;
    let summary = self::vm(&recording.end()?, "mover")?;
    let exits = of_memory_exits(&summary, "count");
    let stalls = figure(&summary, "stall.memory", "count").unwrap_or(0);
    let share = summary["stall"]["share"].as_f64().context("no stall")?;
    println!("{exits} exits for memory, {stalls} of them stalls, share {share}");
    ensure!(exits >= WRITTEN * 256 / 4, "{exits} exits are too few");
    ensure!(stalls * 20 <= exits && share <= 0.01, "{stalls} stalls of {exits}, share {share}");
    Ok(())
}

/// MiB that a guest within a guest walks, and how often.
const NESTED: u64 = 16;
const NESTED_PASSES: usize = 3;

/// A VM that runs one of its own leaves its guest for each page that it gives that one or takes from
/// it, and waits for no memory, which is there. What it then really waits for is a stall.
fn nested(dir: &Path) -> Result<()> {
    let squeeze = Squeeze::to(2 * NESTED + 64)?;
    let guest = Config { cgroup: Some(&squeeze.cgroup), ..Config::new("hypervisor", NESTED) };
    let mut vm = Vm::start(&Config { guest: Guest::Nested, ..guest })?;
    vm.await_passes(1)?;
    let exits = Histogram::start("kvm/kvm_nested_vmexit", "common_pid")?;
    let recording = Recording::start(&dir.join("healthy"), [""; 0])?;
    let passes = vm.passes()?;
    vm.await_passes(passes + NESTED_PASSES)?;
    vm.stop()?;
    let of_nested = exits.total()?;
    let summary = only_vm(&recording.end()?)?;
    let of_memory = of_memory_exits(&summary, "count");
    let stalls = figure(&summary, "stall.memory", "count").unwrap_or(0);
    let share = summary["stall"]["share"].as_f64().context("no stall")?;
    println!("{of_nested} exits, {of_memory} for memory: {stalls} stalls, share {share}");
    ensure!(of_nested.min(of_memory) >= NESTED * 256 * NESTED_PASSES as u64, "too few exits");
    ensure!(stalls * 20 <= of_memory && share <= 0.01, "{stalls} stalls, share {share}");

    // Some of it cannot be taken, which is said as an error.
    let _ = squeeze.cgroup.reclaim(squeeze.cgroup.charged()? >> 20);
    let recording = Recording::start(&dir.join("swapped"), [""; 0])?;
    vm.resume()?;
    vm.await_majors(NESTED * 256 / 2)?;
    vm.stop()?;
    let summary = only_vm(&recording.end()?)?;
    let majors = figure(&summary, "fault.major", "count")?;
    let stalls = figure(&summary, "stall.memory", "count")?;
    println!("{majors} major faults, {stalls} stalls");
    // A few are of QEMU's own memory.
    ensure!(stalls * 10 >= majors * 9, "{stalls} stalls are too few for {majors} major faults");
    Ok(())
}

/// MiB of a VM that arrives, and bytes a second of what nobody asks for.
const ARRIVING: u64 = 8;
const UNASKED: u64 = 512 << 10;

/// A VM that runs where it arrives before its memory does waits for whoever brings that.
fn postcopy(dir: &Path) -> Result<()> {
    let uri = json!({ "uri": format!("unix:{}", dir.join("migration").display()) });
    let mut source = Vm::start(&Config::new("leaves", ARRIVING))?;
    source.await_passes(1)?;
    let incoming = ["-incoming", "defer"];
    let mut target = Vm::start(&Config { more: &incoming, ..Config::new("arrives", ARRIVING) })?;
    let wanted = json!({ "capabilities": [{ "capability": "postcopy-ram", "state": true }] });
    for vm in [&mut source, &mut target] {
        vm.execute("migrate-set-capabilities", wanted.clone())?;
    }
    let slow = json!({ "max-bandwidth": UNASKED, "max-postcopy-bandwidth": UNASKED });
    source.execute("migrate-set-parameters", slow)?;
    target.execute("migrate-incoming", uri.clone())?;
    let recording = Recording::start(&dir.join("run"), [""; 0])?;
    let before = target.faults()?[1];
    source.execute("migrate", uri)?;
    source.execute("migrate-start-postcopy", json!({}))?;
    await_some("arrival", PATIENCE, || {
        let state = target.execute("query-migrate", json!({}))?;
        ensure!(state["status"] != "failed", "{state}");
        Ok((state["status"] == "completed").then_some(()))
    })?;
    target.stop()?;
    let of_kernel = target.faults()?[1] - before;
    let asked = source.execute("query-migrate", json!({}))?;
    let asked = asked["ram"]["postcopy-requests"].as_u64().context("no requests")?;
    let summary = vm(&recording.end()?, "arrives")?;
    let majors = figure(&summary, "fault.major", "count")?;
    println!("{majors} major faults for {asked} requests; the kernel counts {of_kernel}");
    // It counts no fault whose page was there when it looked again (`mm_account_fault`, mm/memory.c,
    // is not reached). QEMU asks once for a page that two of its threads wait for.
    let more = of_kernel + asked / 50;
    ensure!(asked >= 100 && majors.abs_diff(asked) <= more, "{summary:#}");
    let share = fault_share(&summary, "userfault")?;
    ensure!(share >= 0.5, "userfaults are {share} of the time of its faults");
    Ok(())
}

/// KVM's own tracepoint says how often it was told, of all VMs: there is one. Compaction is asked for by a
/// process that is none of the VM's.
fn invalidations(dir: &Path) -> Result<()> {
    let squeeze = Squeeze::new()?;
    let mut vm = Vm::start(&Config { stopped: true, ..squeeze.config("squeezed") })?;
    for backend in crate::FUNCTION_BACKENDS {
        let told = Histogram::start("kvm/kvm_unmap_hva_range", "common_pid")?;
        let stacks = Histogram::start("kvm/kvm_unmap_hva_range", "stacktrace")?;
        let recording = Recording::start(&dir.join(backend), ["--backend", backend])?;
        let (before, reclaimed_before) = (told.total()?, stacks.below("shrink_")?);
        vm.resume()?;
        vm.await_majors(MAJORS)?;
        vm.stop()?;
        let by_vm = told.total()? - before;
        write("/proc/sys/vm/compact_memory", "1")?;
        let by_others = told.total()? - before - by_vm;
        // Last: merged memory is under no pressure any more.
        let merges = Some(&backend) == crate::FUNCTION_BACKENDS.last();
        if merges {
            merge_once()?;
        }
        let by_all = told.total()? - before;
        let by_reclaim = stacks.below("shrink_")? - reclaimed_before;
        let summary = only_vm(&recording.end()?)?;
        let by = &summary["invalidations"];
        let of = |who: &str| by[who].as_u64().unwrap_or(0);
        let all: u64 = by.as_object().context("none")?.values().filter_map(Value::as_u64).sum();
        println!(
            "{backend}: {by}; KVM was told {by_vm} times, {by_reclaim} of them within reclaim, by \
             compaction {by_others}, with KSM {by_all}"
        );
        within_a_percent("invalidations", all, by_all, 0)?;
        ensure!(by_reclaim > 0 && of("reclaim").abs_diff(by_reclaim) <= 3, "{by}");
        ensure!(of("other").abs_diff(by_others) <= 3, "{by}, others {by_others}");
        ensure!(of("ksm").abs_diff(by_all - by_vm - by_others) <= 3, "{by}");
        ensure!((of("ksm") > 0) == merges, "{by}");
    }
    Ok(())
}

/// KSM goes through all memory twice: what has not changed since the first time is merged.
fn merge_once() -> Result<()> {
    let scans =
        || Ok::<_, anyhow::Error>(read("/sys/kernel/mm/ksm/full_scans")?.trim().parse::<u64>()?);
    let _pace = Setting::new("/sys/kernel/mm/ksm/pages_to_scan", "20000")?;
    let _runs = Setting::new("/sys/kernel/mm/ksm/run", "1")?;
    let enough = scans()? + 3;
    await_some("scans of KSM", PATIENCE, || Ok((scans()? >= enough).then_some(())))
}

/// A vCPU also waits for memory in exits that are not for memory: here QEMU's own, which its
/// device needs and the host has swapped out.
fn swapped_device_model(dir: &Path) -> Result<()> {
    let _small_pages = Setting::small_pages()?;
    let _swap = ZramSwap::new(256)?;
    let (in_memory_exits, waited) = cold(dir, Guest::Device, "all")?;
    ensure!(waited >= 2 * in_memory_exits, "{waited} ns, {in_memory_exits} in exits for memory");
    // On arm64 a device's register is memory, whose exits are followed either way.
    if !IS_ARM64 {
        // Its port is none.
        let (in_memory_exits, waited) = cold(dir, Guest::Cpuid, "memory")?;
        ensure!(waited > in_memory_exits, "{waited} ns, all in exits for memory");
    }
    Ok(())
}

/// What a guest waits in exits for memory, and in all, for a pass after the host took QEMU's memory.
fn cold(dir: &Path, guest: Guest, exits: &str) -> Result<(u64, u64)> {
    let cgroup = MemoryCgroup::new("cold")?;
    let config = Config { cgroup: Some(&cgroup), ..Config::new("device", READS) };
    let mut device = Vm::start(&Config { guest, ..config })?;
    device.await_passes(1)?;
    let recording = Recording::start(&dir.join(exits), ["--exits", exits])?;
    device.stop()?;
    // Some of it cannot be taken, which is said as an error.
    let _ = cgroup.reclaim(cgroup.charged()? >> 20);
    let before = device.faults()?[1];
    device.resume()?;
    let passes = device.passes()?;
    await_some("reads of the device", PATIENCE, || Ok((device.passes()? > passes).then_some(())))?;
    device.stop()?;
    let majors = device.faults()?[1] - before;
    let folder = recording.end()?;
    let summary = vm(&folder, "device")?;
    let in_memory_exits = figure(&summary, "stall.memory", "sum_ns").unwrap_or(0);
    let waited = summary["stall"]["waited_ns"].as_u64().context("no stall")?;
    println!(
        "--exits {exits}: {majors} major faults; waited {waited} ns, {in_memory_exits} in exits for memory"
    );
    ensure!(majors >= 20, "{majors} major faults are too few");
    let exits = &summary["not_counted"];
    ensure!(exits["entry_without_exit"] == 0 && exits["exit_without_entry"] == 0, "{exits}");
    Ok((in_memory_exits, waited))
}

/// A guest that only talks to a device waits for no memory, but for its own while it boots.
fn device_is_no_stall(folder: &Path) -> Result<()> {
    let device = vm(folder, "device")?;
    let of = |metric: &str, key: &str| figure(&device, metric, key).unwrap_or(0);
    let (reads, reading) = (of("exit.mmio", "count"), of("exit.mmio", "sum_ns"));
    let stalled = device["stall"]["waited_ns"].as_u64().context("no stall")?;
    let waited = of_memory_exits(&device, "sum_ns") + of("fault.minor", "sum_ns");
    let windows = [of("stall.memory", "count"), of_memory_exits(&device, "count")];
    println!("{reads} MMIO exits of {reading} ns; stalled {stalled} ns, windows {windows:?}");
    ensure!(reads >= READS * 256, "{reads} MMIO exits are too few");
    ensure!(windows[0] <= windows[1] && stalled <= waited, "stalled {stalled} ns of {waited}");
    let squeezed = vm(folder, "squeezed")?["stall"]["waited_ns"].as_u64().context("no stall")?;
    // Bochs is so slow that a boot is more than a hundredth of that.
    ensure!(is_intel() || stalled * 100 <= squeezed, "device {stalled} ns, squeezed {squeezed} ns");
    Ok(())
}

/// Totals of the only vCPU of a VM.
fn vcpu(run: &Value, name: &str) -> Result<Value> {
    let vms = run["vms"].as_array().context("no VMs")?;
    let vm = vms.iter().find(|vm| vm["name"] == name).context("no such VM")?;
    Ok(vm["vcpu_times"][0].clone())
}
