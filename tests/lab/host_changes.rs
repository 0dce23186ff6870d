//! A host that changes while it is recorded.

use crate::Scenario;
use anyhow::{Context, Result, ensure};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;
use testbed::host::{read, write};
use testbed::qemu::{Config, Vm};
use testbed::record::Recording;
use testbed::results::{figure, lost, rows, vm};
use testbed::squeeze::Squeeze;
use testbed::undo::Undo;
use testbed::{PATIENCE, await_some, run};

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut scenarios: Vec<Scenario> = vec![
        ("kvm_comes_late".to_owned(), Box::new(kvm_late)),
        ("clock_steps_take_nothing".to_owned(), Box::new(clock_steps)),
        ("memory_goes_and_comes".to_owned(), Box::new(memory_hotplug)),
    ];
    if Path::new(SWITCH).exists() {
        scenarios.push(("cpu_goes_and_comes".to_owned(), Box::new(cpu_hotplug)));
    }
    scenarios
}

/// The switch of a second CPU, where there is one.
const SWITCH: &str = "/sys/devices/system/cpu/cpu1/online";
/// The lab's modules, with the order in which they are loaded.
const MODULES: &str = "/run/modules";

/// Loads what begins with kvm.
fn load_kvm() -> Result<()> {
    let order = read(Path::new(MODULES).join("order"))?;
    for module in order.lines().filter(|module| module.starts_with("kvm")) {
        let loaded = module.trim_end_matches(".ko").replace('-', "_");
        if !Path::new("/sys/module").join(loaded).exists() {
            run(Command::new("insmod").arg(Path::new(MODULES).join(module)))?;
        }
    }
    Ok(())
}

fn kvm_late(dir: &Path) -> Result<()> {
    let script =
        format!("cd {MODULES}\nfor module in $(grep ^kvm order); do insmod $module || :; done");
    let _loaded = Undo::script("kvm", &script)?;
    run(Command::new("rmmod").args(["kvm_amd", "kvm"]))?;
    let folder = dir.join("run");
    let recording = Recording::start(&folder, [""; 0])?;
    let before: serde_json::Value = serde_json::from_str(&read(folder.join("run.json"))?)?;
    let coverage = before["coverage"].as_array().context("no coverage")?;
    let exit = coverage.iter().find(|entry| entry["metric"] == "exit").context("no exit")?;
    ensure!(exit["coverage"] == "absent", "{exit}");
    load_kvm()?;
    let guest = Vm::start(&Config { accel: "kvm", ..Config::new("late", 16) })?;
    // The recording looks once a second.
    await_some("exits", PATIENCE, || {
        let rows = rows(&folder, "intervals.csv").unwrap_or_default();
        Ok(rows.iter().any(|row| row["metric"] == "exit.io").then_some(()))
    })?;
    drop(guest);
    let summary = vm(&recording.end()?, "late")?;
    ensure!(figure(&summary, "exit.io", "count")? > 0, "{summary:#}");
    // Or kvm could not be taken away again.
    run(Command::new("rmmod").args(["kvm_amd", "kvm"])).map(drop)
}

/// How the time of day is set, in hours; it is as before in the end.
const STEPS: [i64; 3] = [1, -2, 1];

fn clock_steps(dir: &Path) -> Result<()> {
    let folder = dir.join("run");
    let squeeze = Squeeze::new()?;
    let mut vm = squeeze.recorded(&folder)?;
    let start = Instant::now();
    vm.guest.resume()?;
    for hours in STEPS {
        let steps = || {
            let run: serde_json::Value = serde_json::from_str(&read(folder.join("run.json"))?)?;
            anyhow::Ok(run["clocks"]["steps"].as_array().context("no steps")?.len())
        };
        let seen = steps()?;
        let now = clock_gettime(ClockId::CLOCK_REALTIME)?;
        clock_settime(ClockId::CLOCK_REALTIME, now + TimeSpec::new(hours * 3_600, 0))?;
        await_some("the step", PATIENCE, || Ok((steps()? > seen).then_some(())))?;
    }
    vm.guest.stop()?;
    let elapsed = start.elapsed().as_secs_f64();
    let (folder, _) = vm.end()?;
    let intervals = rows(&folder, "host.csv")?;
    let lengths = intervals.iter().map(|row| Ok(row["length_s"].parse::<f64>()?));
    let lengths = lengths.collect::<Result<Vec<f64>>>()?;
    println!("{elapsed} s in {lengths:?}");
    ensure!(lengths.iter().all(|length| (0.0..60.0).contains(length)), "{lengths:?}");
    ensure!(lengths.iter().sum::<f64>() >= elapsed, "{lengths:?} of {elapsed} s");
    Ok(())
}

/// Where blocks of the host's memory are switched off and on.
const BLOCKS: &str = "/sys/devices/system/memory";

fn memory_hotplug(dir: &Path) -> Result<()> {
    let folder = dir.join("run");
    let squeeze = Squeeze::new()?;
    let mut vm = squeeze.recorded(&folder)?;
    vm.guest.resume()?;
    vm.guest.await_majors(MAJORS)?;
    let sizes = || -> Result<Vec<u64>> {
        let rows = rows(&folder, "host.csv")?;
        rows.iter().map(|row| Ok(row["memory_total_bytes"].parse()?)).collect()
    };
    let whole = await_some("an interval", PATIENCE, || Ok(sizes()?.pop()))?;
    let mut blocks: Vec<PathBuf> =
        glob::glob(&format!("{BLOCKS}/memory[0-9]*"))?.collect::<Result<_, _>>()?;
    blocks.sort();
    // What the kernel itself uses cannot be moved away.
    let gone = blocks.iter().rev().find(|block| write(block.join("state"), "offline").is_ok());
    let gone = gone.context("no block of memory can be switched off")?;
    let script = format!("echo online > {}/state", gone.display());
    let back = Undo::script("memory", &script)?;
    let await_size = |is_it: &dyn Fn(u64) -> bool| {
        await_some("a change of memory", PATIENCE, || {
            Ok(sizes()?.last().is_some_and(|size| is_it(*size)).then_some(()))
        })
    };
    await_size(&|size| size < whole)?;
    vm.guest.await_majors(MAJORS)?;
    drop(back);
    await_size(&|size| size == whole)?;
    vm.guest.await_majors(MAJORS)?;
    vm.end().map(drop)
}

/// Majors before the CPU goes, while it is away, and after.
const MAJORS: u64 = 1_000;

fn cpu_hotplug(dir: &Path) -> Result<()> {
    let squeeze = Squeeze::new()?;
    let _online = Undo::script("CPU 1", &format!("echo 1 > {SWITCH}"))?;
    let mut vm = squeeze.recorded(&dir.join("run"))?;
    vm.guest.resume()?;
    for switch in ["1", "0", "1"] {
        write(SWITCH, switch)?;
        vm.guest.await_majors(MAJORS)?;
    }
    let (_, summary) = vm.end()?;
    let stalls = figure(&summary, "stall.memory", "count")?;
    println!("{stalls} stalls, not counted {}", summary["not_counted"]);
    ensure!(lost(&summary) * 100 <= stalls, "{}", summary["not_counted"]);
    Ok(())
}
