//! What did the time of faults go into? Each cause made dominant on purpose.

use crate::{FUNCTION_BACKENDS, Scenario};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use testbed::host::{MemoryCgroup, Setting};
use testbed::qemu::{Config, Vm};
use testbed::record::Recording;
use testbed::results::{StandIn, fault_share, figure, json, rows, skipped, vm};
use testbed::squeeze::Squeeze;
use testbed::swap::{DiskSwap, ZramSwap};
use testbed::{PATIENCE, await_some};

pub(crate) fn scenarios() -> Vec<Scenario> {
    let of = |cause: &str, run: Cause, backend: &'static str| -> Scenario {
        (format!("cause_{cause}_{backend}"), Box::new(move |dir: &Path| run(dir, backend)))
    };
    let mut scenarios =
        vec![of("lock", lock, "auto"), of("disk", disk, "auto"), of("zram", zram, "auto")];
    // Those have programs of either backend.
    for backend in FUNCTION_BACKENDS {
        scenarios.push(of("userfault", userfault, backend));
        scenarios.push(of("memory_high", memory_high, backend));
    }
    scenarios
}

type Cause = fn(&Path, &str) -> Result<()>;
type Row = HashMap<String, String>;

/// The share of a cause that dominates.
const MOST: f64 = 0.7;

/// What a stand-in costs, and the rows of its slow faults.
fn stands_in(dir: &Path, work: [&str; 2], backend: &str) -> Result<(Value, Vec<Row>, u64)> {
    let (folder, name) = recorded(&dir.join("run"), work, &["--backend", backend])?;
    Ok((vm(&folder, &name)?, rows(&folder, "slow-faults.csv")?, skipped(&folder, |_| true)?))
}

/// A recording of a stand-in with its name.
fn recorded(dir: &Path, work: [&str; 2], options: &[&str]) -> Result<(PathBuf, String)> {
    let mut stand_in = StandIn::start(work)?;
    let name = format!("stand-in-{}", stand_in.pid());
    let always = ["--vm", &name, "--slow-faults", "50ms"];
    let recording = Recording::start(dir, always.into_iter().chain(options.iter().copied()))?;
    stand_in.work()?;
    Ok((recording.end()?, name))
}

fn dominates(vm: &Value, part: &str) -> Result<()> {
    let share = fault_share(vm, part)?;
    ensure!(share >= MOST, "{part} is {share:.2} of the time: {vm:#}");
    Ok(())
}

/// Also where the kernel takes the lock before `handle_mm_fault` (6.1), and where the function in which
/// a reader waits for it cannot be hooked.
fn lock(dir: &Path, backend: &str) -> Result<()> {
    let without = ["--backend", backend, "--without", "rwsem_down_read_slowpath"];
    let hooked = FUNCTION_BACKENDS.map(|backend| (backend, vec!["--backend", backend]));
    for (name, options) in hooked.into_iter().chain([("tracepoints", without.to_vec())]) {
        let (folder, stand_in) = recorded(&dir.join(name), ["locked", "100"], &options)?;
        let run = json(&folder, "run.json")?;
        let hooks = run["backend"]["hooks"].as_array().into_iter().flatten();
        let hooked = hooks.filter(|hook| hook["purpose"] == "lock" && hook["missing"].is_null());
        ensure!((hooked.count() == 0) == (name == "tracepoints"), "{name}: {}", run["backend"]);
        dominates(&vm(&folder, &stand_in)?, "lock").context(name)?;
    }
    Ok(())
}

fn userfault(dir: &Path, backend: &str) -> Result<()> {
    let (vm, slow, skipped) = stands_in(dir, ["held", "300"], backend)?;
    let told = slow.first().context("no slow fault").and_then(|row| {
        dominates(&vm, "userfault")?;
        println!("{}", row["stack"]);
        let is_told = row["backing"] == "userfault" && row["stack"].contains(";handle_userfault");
        ensure!(is_told, "{row:#?}");
        Ok(())
    });
    match told {
        Err(error) if skipped > 0 => {
            println!("{skipped} programs were skipped, of the one fault perhaps: {error:#}");
            Ok(())
        }
        told => told,
    }
}

/// MiB of a guest, and bytes of it that are read back: from a slow disk, from memory.
const WALK: u64 = 16;
const FROM_DISK: u64 = 3 << 20;
const FROM_MEMORY: u64 = 12 << 20;

/// Records how a guest's memory, all of which is swapped out, is read: nothing is taken for
/// what comes back.
fn read_back(dir: &Path, size: u64, options: &[&str]) -> Result<(PathBuf, Value)> {
    let _settings = [Setting::small_pages()?, Setting::no_readahead()?];
    let cgroup = MemoryCgroup::new("read")?;
    let mut guest = Vm::start(&Config { cgroup: Some(&cgroup), ..Config::new("read", WALK) })?;
    guest.await_passes(1)?;
    guest.stop()?;
    // Some of it cannot be taken, which is said as an error.
    let _ = cgroup.reclaim(cgroup.charged()? >> 20);
    let recording = Recording::start(&dir.join("run"), options)?;
    let read = serde_json::json!({ "val": 2 << 20, "size": size, "filename": "/dev/null" });
    guest.execute("pmemsave", read)?;
    let folder = recording.end()?;
    let vm = vm(&folder, "read")?;
    Ok((folder, vm))
}

/// What was compressed is unpacked by whoever reads it: nobody sleeps.
fn zram(dir: &Path, backend: &str) -> Result<()> {
    let _swap = ZramSwap::new(256)?;
    let (_, vm) = read_back(dir, FROM_MEMORY, &["--backend", backend, "--causes"])?;
    dominates(&vm, "swapin")?;
    let asleep = fault_share(&vm, "swapin_io")? + fault_share(&vm, "io")?;
    ensure!(asleep <= 0.1, "{asleep:.2} of the time waits for a device: {vm:#}");
    Ok(())
}

/// What lies on a slow disk comes back to whoever reads it.
fn disk(dir: &Path, backend: &str) -> Result<()> {
    let _swap = DiskSwap::new(crate::disk())?;
    let (folder, vm) = read_back(dir, FROM_DISK, &["--backend", backend, "--slow-faults", "2ms"])?;
    dominates(&vm, "swapin")?;
    // The disk is slow by the machine's clock: the busier that one is, the shorter this takes by
    // the lab's. Of memory it is below 0.1.
    let asleep = fault_share(&vm, "swapin_io")?;
    ensure!(asleep >= 0.2, "{asleep:.2} of the time waits for a device: {vm:#}");
    let slow = rows(&folder, "slow-faults.csv")?;
    // Slow without sleep is the emulation.
    let is_one = |row: &&Row| row["backing"] == "swap" && row["swapin_io_ns"] != "0";
    let row = slow.iter().find(is_one).context("no slow swap-in")?;
    println!("{} of {}: {}", slow.len(), figure(&vm, "fault.major", "count")?, row["stack"]);
    let is_told = row["swap_device"] == "vda" && row["stack"].contains(";do_swap_page;");
    ensure!(is_told, "{row:#?}");
    Ok(())
}

/// Times that a VM is held back.
const HELD_BACK: u64 = 20;

/// A cgroup above its `memory.high` is held back after its faults.
fn memory_high(dir: &Path, backend: &str) -> Result<()> {
    let squeeze = Squeeze::to(1024)?;
    squeeze.cgroup.hold_back(32)?;
    let mut guest = Vm::start(&Config { stopped: true, ..squeeze.config("held") })?;
    let folder = dir.join("run");
    let recording = Recording::start(&folder, ["--interval", "500ms", "--backend", backend])?;
    guest.resume()?;
    let come = await_some("being held back", PATIENCE, || {
        let rows = rows(&folder, "intervals.csv")?;
        let held = rows.iter().filter(|row| row["metric"] == "memory.high");
        let count: u64 = held.map(|row| row["count"].parse::<u64>().unwrap_or(0)).sum();
        Ok((count >= HELD_BACK).then_some(()))
    });
    guest.explain(come)?;
    let vm = vm(&recording.end()?, "held")?;
    let held = figure(&vm, "memory.high", "sum_ns")?;
    println!("held back for {held} ns, in faults for {} ns", vm["fault_time"]["total_ns"]);
    ensure!(held > 0, "{vm:#}");
    Ok(())
}
