//! Nothing is left behind, on any way out, and the kernel never complains.

use crate::Scenario;
use crate::spread::has_direct_calls;
use crate::witness::IS_ARM64;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use overcommit::probes::decide::Backend;
use overcommit::probes::object::Sizes;
use overcommit::probes::{Kernel, Probes, sight};
use overcommit_recording::model::coverage::Coverage;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::sleep;
use std::time::{Duration, Instant};
use testbed::host::read;
use testbed::qemu::{Config, Vm, stat_field};
use testbed::record::Recording;
use testbed::results::{run, self_tested};
use testbed::squeeze::Squeeze;
use testbed::swap::ZramSwap;
use testbed::{PATIENCE, await_some, overcommit};

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut scenarios: Vec<Scenario> = Vec::new();
    for backend in crate::FUNCTION_BACKENDS {
        let left = move |dir: &Path| nothing_is_left(dir, backend);
        scenarios.push((format!("nothing_is_left_{backend}"), Box::new(left)));
    }
    scenarios.push(("kills_leave_nothing".to_owned(), Box::new(killed_at_any_moment)));
    scenarios.push(("attach_in_a_storm".to_owned(), Box::new(attach_in_a_storm)));
    scenarios.push(("missing_functions".to_owned(), Box::new(missing_functions)));
    scenarios.push(("check_tells_the_truth".to_owned(), Box::new(check)));
    // Last: it reads what all others made the kernel say.
    scenarios.push(("z_kernel_never_complained".to_owned(), Box::new(no_complaints)));
    scenarios
}

const FUNCTION_BACKENDS: [Backend; 2] = [Backend::Fentry, Backend::Kprobe];
const KPROBE_EVENTS: &str = "/sys/kernel/tracing/kprobe_events";

/// Programs, links and maps of BPF, and events of tracefs, on the whole host.
fn loaded() -> Result<[usize; 4]> {
    let events = read(KPROBE_EVENTS)?.lines().count();
    Ok([
        aya::programs::loaded_programs().flatten().count(),
        aya::programs::loaded_links().flatten().count(),
        aya::maps::loaded_maps().flatten().count(),
        events,
    ])
}

/// The kernel frees programs and maps a moment after their last user is gone.
fn await_as_before(before: [usize; 4], what: &str) -> Result<()> {
    let come = await_some(what, PATIENCE, || Ok((loaded()? == before).then_some(())));
    come.with_context(|| {
        format!("{before:?} before, {:?} now: {:?}", loaded(), read(KPROBE_EVENTS))
    })
}

/// A recording in which there was no VM judged nothing.
fn ends_without_a_vm(recording: Recording) -> Result<()> {
    let status = recording.interrupted()?;
    ensure!(status.code() == Some(4), "{status}");
    Ok(())
}

fn nothing_is_left(dir: &Path, backend: &str) -> Result<()> {
    let before = loaded()?;
    let recording = Recording::start(&dir.join("regular"), ["--backend", backend])?;
    ensure!(loaded()?[0] > before[0], "no program was loaded");
    ends_without_a_vm(recording)?;
    await_as_before(before, "end of all programs after a regular end")?;

    let refused = run(["record", "--backend", backend, "--without", "handle_mm_fault"])?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.status.code() == Some(1), "{refused:?}");
    ensure!(said.contains("handle_mm_fault") && said.lines().count() <= 2, "{said}");
    await_as_before(before, "end of all programs after a failed load")?;

    let mut recording = Recording::start(&dir.join("killed"), ["--backend", backend])?;
    recording.signal(Signal::SIGKILL)?;
    recording.wait()?;
    let left = read(KPROBE_EVENTS)?;
    println!("{backend}: after kill -9: {left:?}");
    ensure!(backend != "kprobe" || left.contains("overcommit/"), "tracefs kept no event");
    ends_without_a_vm(Recording::start(&dir.join("next"), ["--backend", backend])?)?;
    await_as_before(before, "end of all programs after kill -9 and the next start")
}

/// Recorders that are killed, unless `OVERCOMMIT_LAB_KILLS` says how many.
const KILLS: u32 = 4;

/// The moments are spread over a start and a second of recording, each in the largest gap that those
/// before it have left.
fn killed_at_any_moment(dir: &Path) -> Result<()> {
    let kills = std::env::var("OVERCOMMIT_LAB_KILLS").ok().and_then(|kills| kills.parse().ok());
    let kills: u32 = kills.unwrap_or(KILLS);
    let before = loaded()?;
    let _guest = Vm::start(&Config::new("guest", 4))?;
    let (mut loading, mut counting, mut readable) = (0, 0, 0);
    for backend in crate::FUNCTION_BACKENDS {
        let start = Instant::now();
        Recording::start(&dir.join(backend), ["--backend", backend])?.end()?;
        let length = start.elapsed() + Duration::from_secs(1);
        for number in 0..kills / 2 {
            let folder = dir.join(format!("{backend}-{number}"));
            let mut recording = Recording::begin(&folder, ["--backend", backend])?;
            let golden_ratio = (5_f64.sqrt() - 1.0) / 2.0;
            sleep(length.mul_f64((f64::from(number) * golden_ratio).fract()));
            loading += usize::from(loaded()?[0] > before[0]);
            recording.signal(Signal::SIGKILL)?;
            recording.wait()?;
            await_some("end of its programs and maps", PATIENCE, || {
                Ok((loaded()?[..3] == before[..3]).then_some(()))
            })
            .with_context(|| format!("{backend}, kill {number}"))?;
            counting += usize::from(folder.with_extension("ready").exists());
            if folder.join("run.json").exists() {
                let path = folder.to_string_lossy().into_owned();
                let report = run(["report", &path])?;
                ensure!(matches!(report.status.code(), Some(0 | 4)), "{report:?}");
                readable += 1;
            }
        }
    }
    println!(
        "{kills} recorders killed, {loading} of them with programs loaded, {counting} while they \
         recorded; {readable} recordings could be read"
    );
    ensure!(loading > 0, "none had loaded a program");
    Recording::start(&dir.join("next"), ["--backend", "kprobe"])?.end()?;
    await_as_before(before, "end of all programs after the next start")
}

/// A function that the kernel does not have costs its own metric alone.
fn missing_functions(_dir: &Path) -> Result<()> {
    let kernel = Kernel::read()?;
    for backend in FUNCTION_BACKENDS {
        for (functions, coverage) in [
            (&["do_swap_page"][..], Coverage::Partial),
            (&["shmem_swapin_folio"], Coverage::Partial),
            (&["do_swap_page", "shmem_swapin_folio"], Coverage::Absent),
            (&["swap_read_folio", "swap_readpage"], Coverage::Full),
        ] {
            let without: Vec<String> = functions.iter().map(|name| (*name).to_owned()).collect();
            let (probes, _rings) = Probes::attach(&kernel, backend, &without, Sizes::TRIAL)?;
            let declared = sight::declared(&probes.sight());
            let find = |metric: &str| declared.iter().find(|entry| entry.metric == metric);
            let swapin = find("swapin").context("no swapin")?;
            ensure!(swapin.coverage == coverage, "without {functions:?}: {swapin:?}");
            let named =
                swapin.not_seen.iter().any(|text| text.contains(&format!("no_{}", functions[0])));
            ensure!(named, "without {functions:?}: {swapin:?}");
            let fault = find("fault.minor").context("no faults")?;
            ensure!(fault.coverage == Coverage::Full, "without {functions:?}: {fault:?}");
        }
    }
    Ok(())
}

/// Times that the probes come and go.
const ATTACHES: usize = 6;

fn attach_in_a_storm(_dir: &Path) -> Result<()> {
    let squeeze = Squeeze::new()?;
    let mut storm = Vm::start(&squeeze.config("storm"))?;
    storm.await_passes(1)?;
    let pid = storm.pid().cast_signed();
    let started = stat_field(storm.pid(), 22)?;
    let kernel = Kernel::read()?;
    let sizes = Sizes { vms: 4, threads: 256, cpus: 4, hooks_calls: true, ..Sizes::TRIAL };
    // Else it takes the CPU from the one who comes and goes.
    let threads = format!("/proc/{pid}/task");
    for thread in std::fs::read_dir(threads)? {
        let tid = thread?.file_name();
        testbed::run(Command::new("renice").args(["-n", "10", "-p"]).arg(tid))?;
    }
    for round in 0..ATTACHES {
        let backend = FUNCTION_BACKENDS[round % 2];
        let (mut probes, _rings) = Probes::attach(&kernel, backend, &[], sizes)?;
        probes.adopt(&[pid], 0)?;
        let slot = probes.slots.find(pid, started).context("the VM has no slot")?;
        let vm = probes.slots.vms.get(slot as usize).context("no slot")?;
        let faults = || vm.taken_by.iter().map(|count| count.load(Relaxed)).sum::<u64>();
        await_some("faults", PATIENCE, || Ok((faults() > 0).then_some(())))
            .with_context(|| format!("round {round}"))?;
    }
    let passes = storm.passes()?;
    await_some("life of the guest", PATIENCE, || Ok((storm.passes()? > passes).then_some(())))
}

fn check(_dir: &Path) -> Result<()> {
    let output = Command::new(overcommit()).args(["check", "--json"]).output()?;
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    println!(
        "auto {}, preemption {}, hooks {}",
        report["auto"], report["preemption"], report["hooks"]
    );
    // All of it on every kernel that the README names, but for working sets on 6.1.
    let sources = report["working_sets"].as_array().context("no sources of working sets")?;
    let is_measured = sources.iter().any(|source| source["refused"].is_null());
    let (reach, code) = if is_measured { ("full", 0) } else { ("part", 4) };
    ensure!(report["reach"] == reach && output.status.code() == Some(code), "{report:#}");
    let lazy = read("/sys/kernel/debug/sched/preempt").is_ok_and(|how| how.contains("(lazy)"));
    // Trampolines miss calls where programs are preempted, and not every kernel has them.
    let is_by_probes = lazy || !has_direct_calls();
    ensure!(report["auto"] == if is_by_probes { "kprobe" } else { "fentry" }, "{report:#}");
    let absent = |metric: &str| {
        let coverage = report["coverage"].as_array().cloned().unwrap_or_default();
        coverage.iter().any(|entry| entry["metric"] == metric && entry["coverage"] == "absent")
    };
    for metric in ["fault.minor", "fault.major", "swapin", "exit", "idle", "stall.memory"] {
        ensure!(!absent(metric), "{metric} is absent: {report:#}");
    }
    ensure!(absent("apf") == IS_ARM64, "{report:#}");
    let _swap = ZramSwap::new(256)?;
    self_tested()
}

fn no_complaints(_dir: &Path) -> Result<()> {
    let output = Command::new("dmesg").output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let bad = ["WARNING:", "BUG:", "Oops", "lockup", "rcu: INFO", "Call Trace"];
    let found: Vec<&str> =
        text.lines().filter(|line| bad.iter().any(|word| line.contains(word))).collect();
    ensure!(found.is_empty(), "{found:#?}");
    Ok(())
}
