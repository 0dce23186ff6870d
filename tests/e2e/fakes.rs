//! Processes that only claim to be VMs, as any user can start them.

use crate::Tests;
use anyhow::{Context, Result, ensure};
use aya::maps::{Array, Map, MapData, loaded_maps};
use nix::sys::signal::Signal;
use overcommit::kernel::possible_cpus;
use overcommit::probes::decide::Backend;
use overcommit::probes::object::Sizes;
use overcommit::probes::slots::{Kind, Slots};
use overcommit::probes::{Kernel, Probes};
use overcommit_ebpf::layout::{LifecycleKind, Loss, Metric};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering::SeqCst;
use testbed::qemu::{Config, Vm};
use testbed::record::Recording;
use testbed::results::{json, rows, run, vm};
use testbed::{PATIENCE, as_child, await_some};

pub(crate) const TESTS: Tests = &[
    ("fakes_hide_no_vm_and_take_little_memory", fakes),
    ("vms_that_come_and_go_without_end_are_kept_to_a_bound", without_end),
    ("latencies_without_memory_are_lost_by_name", no_chunks),
    ("a_list_that_was_empty_is_left_alone_for_a_while", empty_list),
];

/// More than there are slots for VMs to come.
const FAKES: usize = 300;
/// A user who logs in.
const USER: u32 = 1234;
/// What the recorder may hold, in KiB.
const HELD_KIB: u64 = 80 << 10;

/// VMs that ended and are kept.
const KEPT: usize = 500;

struct Fakes(Vec<Child>);

impl Fakes {
    fn start(dir: &Path) -> Result<Self> {
        let program = program(dir)?;
        let mut fakes = Self(Vec::new());
        for _ in 0..FAKES {
            fakes.add(Command::new(&program).uid(USER))?;
        }
        Ok(fakes)
    }

    fn add(&mut self, program: &mut Command) -> Result<()> {
        program.arg("600").current_dir("/").stdin(Stdio::null());
        self.0.push(as_child(program, Signal::SIGKILL).spawn()?);
        Ok(())
    }
}

impl Drop for Fakes {
    fn drop(&mut self) {
        for fake in &mut self.0 {
            let _ = fake.kill();
            let _ = fake.wait();
        }
    }
}

/// A program that is called like a hypervisor.
fn program(dir: &Path) -> Result<PathBuf> {
    fs::set_permissions(dir, Permissions::from_mode(0o755))?;
    let program = dir.join("qemu-system-x86_64");
    if !program.exists() {
        fs::copy("/bin/sleep", &program)?;
    }
    Ok(program)
}

/// They may be there when a recording begins, and come while it runs.
fn fakes() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let folder = dir.path().join("run");
    let before = Fakes::start(dir.path())?;
    let told = dir.path().join("told");
    let recording = Recording::start_told(&folder, &told, ["--interval", "100ms"])?;
    let status = fs::read_to_string(format!("/proc/{}/status", recording.pid()))?;
    let held = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let held: u64 = held.trim().trim_end_matches(" kB").parse()?;
    println!("{held} KiB with {FAKES} fakes");
    ensure!(held < HELD_KIB, "{held} KiB with {FAKES} fakes");
    let _later = Fakes::start(dir.path())?;
    await_some("fakes without a slot", PATIENCE, || {
        let run = json(&folder, "run.json")?;
        Ok((run["not_counted"]["vms_without_slot"].as_u64() > Some(0)).then_some(()))
    })?;
    await_some("word of them", PATIENCE, || {
        Ok(fs::read_to_string(&told)?.contains("not every VM is recorded").then_some(()))
    })?;
    let _victim = Vm::start(&Config::new("victim", 16))?;
    await_some("rows of the victim", PATIENCE, || {
        let rows = rows(&folder, "vms.csv").unwrap_or_default();
        Ok(rows.iter().any(|row| row["vm"] == "victim").then_some(()))
    })?;
    drop(before);
    recording.end()?;
    let run = json(&folder, "run.json")?;
    let unserved = run["not_counted"]["unserved"].as_array().context("no names")?;
    ensure!(!unserved.is_empty() && unserved.len() <= 16, "{unserved:?}");
    Ok(())
}

/// The one that was there all the time is among those that are kept, and the recording can be read
/// though its recorder is killed.
fn without_end() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (program, folder) = (program(dir.path())?, dir.path().join("run"));
    let _victim = Vm::start(&Config::new("victim", 16))?;
    let mut recording = Recording::start(&folder, ["--interval", "100ms"])?;
    let left_out = || {
        let run = json(&folder, "run.json")?;
        anyhow::Ok(run["not_counted"]["vms_left_out"].as_u64().context("no vms_left_out")?)
    };
    while left_out()? < 50 {
        let start = |_| as_child(Command::new(&program).arg("0"), Signal::SIGKILL).spawn();
        let mut wave = (0..16).map(start).collect::<Result<Vec<Child>, _>>()?;
        wave.iter_mut().try_for_each(|fake| fake.wait().map(drop))?;
    }
    recording.signal(Signal::SIGKILL)?;
    recording.wait()?;
    let kept = json(&folder, "run.json")?["vms"].as_array().context("no vms")?.len();
    // Beside them are the victim and those of the last intervals.
    ensure!((KEPT..KEPT + 100).contains(&kept), "{kept} VMs are kept");
    let folders = fs::read_dir(folder.join("vms"))?.count();
    ensure!((kept..kept + 100).contains(&folders), "{folders} folders for {kept} VMs");
    let path = folder.to_string_lossy().into_owned();
    let output = run(["report", &path])?;
    let report = String::from_utf8(output.stdout)?;
    ensure!(report.contains("not kept"), "{report}");
    vm(&folder, "victim")?;
    Ok(())
}

/// The loader is told before it comes to that; what it makes then is used, and taken back from VMs
/// that are gone.
fn no_chunks() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let program = program(dir.path())?;
    let sizes = Sizes {
        vms: FAKES as u32,
        threads: 4 * FAKES as u32,
        cpus: possible_cpus()?,
        follow_exec: true,
        ..Sizes::TRIAL
    };
    let (mut probes, mut rings) = Probes::attach(&Kernel::read()?, Backend::Perf, &[], sizes)?;
    probes.slots.chunks.top_up(0, 0)?;
    let mut fakes = Fakes(Vec::new());
    while losses(&probes.slots, Loss::BucketsFull) == 0 {
        ensure!(fakes.0.len() < FAKES - 1, "{} chunks are left", probes.slots.chunks.left());
        fakes.add(&mut Command::new(&program))?;
    }
    let mut told = rings.events.by_ref().map(|event| event.kind);
    ensure!(told.any(|kind| kind == LifecycleKind::FewChunks), "nobody was told");
    probes.slots.chunks.top_up(fakes.0.len(), 0)?;
    let (slot, lost) = (fakes.0.len(), losses(&probes.slots, Loss::BucketsFull));
    fakes.add(&mut Command::new(&program))?;
    await_some("faults of one more", PATIENCE, || {
        Ok((counted(&probes.slots, slot as u32).1 > 0).then_some(()))
    })?;
    drop(fakes);
    let used = 0..=slot as u32;
    ensure!(
        losses(&probes.slots, Loss::BucketsFull) == lost,
        "there are chunks, and latencies are lost"
    );
    for slot in used.clone() {
        let (counted, taken) = counted(&probes.slots, slot);
        ensure!(counted == taken, "slot {slot}: {counted} of {taken}");
    }
    used.into_iter().try_for_each(|slot| {
        probes.slots.close(slot);
        probes.slots.free(slot)
    })?;
    let (left, made) = (probes.slots.chunks.left(), probes.slots.chunks.made());
    ensure!(left == made, "{left} of {made} chunks are free in the end");
    Ok(())
}

/// Its lock is one for the whole host, and would be taken for each fault.
fn empty_list() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let program = dir.path().join("qemu-system-x86_64");
    fs::copy("/bin/dd", &program)?;
    let sizes =
        Sizes { vms: 8, threads: 2, cpus: possible_cpus()?, follow_exec: true, ..Sizes::TRIAL };
    let (probes, _rings) = Probes::attach(&Kernel::read()?, Backend::Perf, &[], sizes)?;
    let lost = || losses(&probes.slots, Loss::ThreadsFull);
    let mut until = empty_until()?;
    // One whose faults find an entry, or not; entries are not given back here.
    let touch = || {
        let arguments = ["if=/dev/zero", "of=/dev/null", "bs=64K", "count=1", "status=none"];
        testbed::run(Command::new(&program).args(arguments))
    };
    touch()?;
    ensure!(lost() == 0, "there is an entry, and {} faults are lost", lost());
    until.set(0, u64::MAX, 0)?;
    touch()?;
    let without_a_look = lost();
    ensure!(without_a_look > 0, "the list was looked at");
    until.set(0, 0, 0)?;
    touch()?;
    ensure!(lost() == without_a_look, "an entry is free, and was not taken");
    touch()?;
    ensure!(lost() > without_a_look, "no entry is left, and nothing is lost");
    ensure!(until.get(&0, 0)? > 0, "the list was empty, and is looked at for each fault");
    Ok(())
}

/// Until when each list is not looked at, of the recorder that was started last.
pub(crate) fn empty_until() -> Result<Array<MapData, u64>> {
    let maps = loaded_maps().flatten().filter(|map| map.name() == b"EMPTY_UNTIL");
    let map = maps.map(|map| map.id()).max().context("no map EMPTY_UNTIL")?;
    Ok(Array::try_from(Map::Array(MapData::from_id(map)?))?)
}

/// Latencies of all VMs that were lost for that cause.
fn losses(slots: &Slots, loss: Loss) -> u64 {
    slots.vms.iter().map(|vm| vm.lost[loss as usize].load(SeqCst)).sum()
}

/// Faults in the histograms of a slot, and faults that it took.
fn counted(slots: &Slots, slot: u32) -> (u64, u64) {
    let held = slots.holdings().remove(&slot).unwrap_or_default();
    let mut counted = 0;
    for (index, kind) in slots.histograms_of(slot, &held) {
        if matches!(kind, Kind::Own(Metric::FaultMinor | Metric::FaultMajor)) {
            let chunks = slots.histograms.get(index).into_iter().flat_map(|one| one.chunks());
            let chunks = chunks.filter_map(|(_, number)| slots.chunks.get(number));
            let buckets = chunks.flat_map(|chunk| &chunk.buckets);
            counted += buckets.map(|bucket| bucket.load(SeqCst)).sum::<u64>();
        }
    }
    let taken = slots.vms.get(slot as usize).into_iter().flat_map(|vm| &vm.taken_by);
    (counted, taken.map(|count| count.load(SeqCst)).sum())
}
