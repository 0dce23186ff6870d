//! Whose memory a fault fills counts, not who takes it; and nothing is lost when many
//! sleep in faults at once.

use crate::{FUNCTION_BACKENDS, Scenario};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::path::Path;
use testbed::host::{Setting, read};
use testbed::qemu::{Config, Vm, stat_field};
use testbed::record::Recording;
use testbed::results::{StandIn, figure, json, only_vm, skipped, vm, within_a_percent};
use testbed::scenario::restore::{measure, print};

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut scenarios: Vec<Scenario> = Vec::new();
    for backend in FUNCTION_BACKENDS {
        let outside = move |dir: &Path| outside_writes_count(dir, backend);
        scenarios.push((format!("outside_writes_{backend}"), Box::new(outside)));
        scenarios
            .push((format!("asleep_{backend}"), Box::new(move |dir: &Path| asleep(dir, backend))));
        let kinds = move |dir: &Path| kinds_count(dir, backend);
        scenarios.push((format!("backing_{backend}"), Box::new(kinds)));
        let restored = move |dir: &Path| restore(dir, backend);
        scenarios.push((format!("restore_{backend}"), Box::new(restored)));
    }
    scenarios.push(("huge_pages_are_seen_or_said_to_be_hidden".to_owned(), Box::new(huge_pages)));
    scenarios
}

/// MiB of huge pages that a guest touches for the first time, and that its firmware has.
const HUGE: u64 = 32;
const FIRMWARE: u64 = 64;

/// KVM's own faults of huge pages: all are counted, or the VM's faults are not said to be.
fn huge_pages(dir: &Path) -> Result<()> {
    let pool = (HUGE + FIRMWARE) / 2;
    let _pool = Setting::new("/proc/sys/vm/nr_hugepages", &pool.to_string())?;
    let memory = format!("memory-backend-memfd,id=ram,hugetlb=on,size={}M", HUGE + FIRMWARE);
    let more = ["-object", &memory, "-machine", "memory-backend=ram"];
    let config = Config { more: &more, stopped: true, ..Config::new("huge", HUGE) };
    let mut guest = Vm::start(&config)?;
    let recording = Recording::start(&dir.join("run"), [""; 0])?;
    guest.resume()?;
    guest.await_passes(1)?;
    guest.stop()?;
    let summary = only_vm(&recording.end()?)?;
    let is_hidden = read("/proc/kallsyms")?.contains(" follow_hugetlb_page\n");
    let coverage = &summary["metrics"][0]["coverage"];
    println!("hidden: {is_hidden}, {}; {coverage}", summary["faults_hidden"]);
    if is_hidden {
        ensure!(summary["faults_hidden"].is_string() && coverage == "partial", "{summary:#}");
        return Ok(());
    }
    ensure!(summary["faults_hidden"].is_null() && coverage == "full", "{summary:#}");
    let faults = figure(&summary, "backing.hugetlb", "count")?;
    ensure!(faults >= HUGE / 2, "{faults} faults of {} huge pages", HUGE / 2);
    Ok(())
}

/// Pages that another process writes.
const WRITTEN: u64 = 5_000;

fn outside_writes_count(dir: &Path, backend: &str) -> Result<()> {
    let mut stand_in = StandIn::start(["written", &WRITTEN.to_string()])?;
    let pattern = format!("stand-in-{}", stand_in.pid());
    let options = ["--backend", backend, "--vm", &pattern];
    let recording = Recording::start(&dir.join("run"), options)?;
    stand_in.work()?;
    let summary = only_vm(&recording.end()?)?;
    let outside = summary["taken_by"]["outside"].as_u64().context("nobody took any")?;
    within_a_percent("written from outside", outside, WRITTEN, 0)?;
    ensure!(summary["metrics"][0]["coverage"] == "full", "{summary:#}");
    Ok(())
}

/// Faults of each kind, and what the process takes beside.
const OF_EACH: u64 = 120;
const BESIDE: u64 = 60;

/// Each fault counts for what it took.
fn kinds_count(dir: &Path, backend: &str) -> Result<()> {
    let _pool = Setting::new("/proc/sys/vm/nr_hugepages", "2")?;
    let mut stand_in = StandIn::start(["kinds", &OF_EACH.to_string()])?;
    let pattern = format!("stand-in-{}", stand_in.pid());
    let options = ["--backend", backend, "--vm", &pattern];
    let recording = Recording::start(&dir.join("run"), options)?;
    let done = stand_in.work()?;
    let done: Vec<u64> =
        done.split(' ').map(str::parse).collect::<Result<_, _>>().with_context(|| done.clone())?;
    let [windows, waited_for] = done[..] else { bail!("the stand-in says {done:?}") };
    let folder = recording.end()?;
    let summary = only_vm(&folder)?;
    let missed = skipped(&folder, of_functions)?;
    let count = |kind: &str| figure(&summary, &format!("backing.{kind}"), "count");
    for (kind, least) in [
        ("anon", OF_EACH),
        ("shmem", OF_EACH),
        ("cow", 2 * OF_EACH),
        ("file", windows),
        ("hugetlb", 1),
        ("userfault", waited_for),
    ] {
        let counted = count(kind)?;
        println!("{backend}: {kind}: {counted} of {least}, {missed} missed");
        let is_it = counted + missed >= least && counted <= least + BESIDE;
        ensure!(is_it, "{kind}: {counted} of {least}, {missed} missed");
    }
    ensure!(count("swap").is_err() && count("numa").is_err(), "{summary:#}");
    let files = &json(&folder, "run.json")?["vms"][0]["file_faults"];
    let [cached, read] = ["cached", "read"].map(|key| files[key].as_u64().unwrap_or(0));
    ensure!(cached + read == count("file")?, "{files}");
    add_up(&summary)
}

/// MiB that a guest walks that is restored from a snapshot on the lab's disk.
const RESTORED: u64 = 16;

/// What it reads is of the file, what it writes a copy.
fn restore(dir: &Path, backend: &str) -> Result<()> {
    let options = ["--backend", backend, "--causes"];
    let walks = measure(dir, Path::new(crate::disk()), RESTORED, &["cold"], &options)?;
    print(&walks)?;
    let pages = RESTORED << 8;
    for walk in walks {
        add_up(&walk.vm)?;
        let (kind, least) =
            if walk.name.starts_with("reads") { ("file", pages / 16) } else { ("cow", pages) };
        let count = figure(&walk.vm, &format!("backing.{kind}"), "count")?;
        let missed = skipped(&walk.folder, of_functions)?;
        println!("{}: {count} of {kind}, {missed} missed", walk.name);
        let is_it = (count + missed) * 10 >= least * 9;
        ensure!(is_it, "{}: {count} of {kind}: {:#}", walk.name, walk.vm);
    }
    Ok(())
}

/// What faults took makes up all of them, to the nanosecond.
pub(crate) fn add_up(summary: &Value) -> Result<()> {
    for key in ["count", "sum_ns"] {
        let sum = |family: &str| -> u64 {
            let metrics = summary["metrics"].as_array().into_iter().flatten();
            let of =
                metrics.filter(|entry| entry["metric"].as_str().unwrap_or("").starts_with(family));
            of.filter_map(|entry| entry[key].as_u64()).sum()
        };
        let (parts, all) = (sum("backing."), sum("fault."));
        ensure!(parts == all, "{key}: {parts} in the parts, {all} in all: {summary:#}");
    }
    Ok(())
}

/// Threads that sleep at once, and their rounds.
const SLEEPERS: u64 = 64;
const ROUNDS: u64 = 10;
/// Pages that another process touches meanwhile.
const TOUCHED: u64 = 2_000;

fn asleep(dir: &Path, backend: &str) -> Result<()> {
    let mut sleepers = StandIn::start(["asleep", &SLEEPERS.to_string()])?;
    let mut other = StandIn::start(["touch", &TOUCHED.to_string()])?;
    let names = [sleepers.pid(), other.pid()].map(|pid| format!("stand-in-{pid}"));
    let options = ["--backend", backend, "--vm", &names[0], "--vm", &names[1]];
    let recording = Recording::start(&dir.join("run"), options)?;
    let before = [faults(sleepers.pid())?, faults(other.pid())?];
    let asleep = sleepers.work()?;
    ensure!(asleep == SLEEPERS.to_string(), "{asleep} of {SLEEPERS} threads sleep");
    other.work()?;
    sleepers.work()?;
    let after = [faults(sleepers.pid())?, faults(other.pid())?];
    let folder = recording.end()?;
    let missed = skipped(&folder, |program| program.ends_with("_fault"))?;
    for (index, least) in [(0, SLEEPERS * ROUNDS), (1, TOUCHED)] {
        let summary = vm(&folder, &names[index])?;
        let counted =
            figure(&summary, "fault.minor", "count")? + figure(&summary, "fault.major", "count")?;
        let kernel = after[index] - before[index];
        println!("{backend}: counted {counted} of {kernel}, missed {missed}");
        ensure!(kernel >= least, "{kernel} faults are too few");
        ensure!(counted <= kernel + 16, "{counted} counted of {kernel}");
        // A miss loses a fault at most.
        ensure!(kernel.saturating_sub(counted) <= missed, "{counted} of {kernel}: {missed} missed");
    }
    Ok(())
}

fn faults(pid: u32) -> Result<u64> {
    Ok(stat_field(pid, 10)? + stat_field(pid, 12)?)
}

/// Programs that tell a fault and what it took.
fn of_functions(program: &str) -> bool {
    ["fentry_", "fexit_", "kprobe_", "kretprobe_"].iter().any(|kind| program.starts_with(kind))
}
