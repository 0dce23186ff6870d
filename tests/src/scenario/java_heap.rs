//! A JVM whose heap is far larger than what it uses from second to second: the host swaps
//! out the rest, until a full collection touches all of it. Its log shows long pauses and
//! no reason for them.

use crate::host::{MemoryCgroup, Setting, forget_use};
use crate::qemu::{Config, Vm};
use crate::record::Recording;
use crate::results::{json, rows};
use crate::scenario::{Row, figure, print_report};
use crate::swap::SlowSwap;
use crate::{PATIENCE, await_some, root, run as execute, target};
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// MiB of the guest, and of the objects that are old.
const MEMORY: u64 = 640;
const OLD: u64 = 32;
/// MiB of swap, and how many reads a second it serves: a page in 60 waits for a slice of
/// the throttle, 0.1 s.
const SWAP: u64 = 1024;
const READS: u64 = 600;
/// How long a page is not used before the host takes it.
const UNUSED: Duration = Duration::from_secs(8);
/// Seconds of work that are recorded before the full collection; half as many after it.
const WORK: u64 = 16;
/// A file in the guest's folder, and there: the recording has begun.
const GO: [&str; 2] = ["results/go", "/run/results/go"];
/// The part that the collection has at least of all that comes back: it touches everything, and
/// what is touched beside it is in use all the time.
const IN_PAUSE: f64 = 0.5;

/// What was seen, second by second.
struct Seen {
    /// The length of the collection by the JVM's log, in milliseconds.
    pause_ms: f64,
    /// Correlation of the part of each second that the JVM paused with the stall share,
    /// and with the p99 of major faults.
    with_stall: f64,
    with_p99: f64,
    /// Major faults, and the part of them that came in seconds in which the JVM paused.
    majors: f64,
    in_pause: f64,
    mean_stall: f64,
    guest: String,
    folder: PathBuf,
}

pub(super) fn run(dir: &Path) -> Result<()> {
    let classes = compile()?;
    let control = seen(&dir.join("roomy"), &classes, false)?;
    let squeezed = seen(&dir.join("squeezed"), &classes, true)?;
    print_report(&squeezed.folder)?;
    println!("\n           guest saw                              host saw");
    println!(
        "           full GC  memory (free -m)            mean stall  r(GC, stall)  r(GC, p99)"
    );
    for (name, seen) in [("roomy", &control), ("squeezed", &squeezed)] {
        println!(
            "{name:<9} {:>5.0} ms  {:<27} {:>8.1} %  {:>12.2}  {:>10.2}",
            seen.pause_ms,
            seen.guest,
            seen.mean_stall * 100.0,
            seen.with_stall,
            seen.with_p99
        );
    }
    println!(
        "{:.0} pages came back, {:.2} of them in its pause",
        squeezed.majors, squeezed.in_pause
    );
    ensure!(squeezed.in_pause >= IN_PAUSE, "{:.2} in the pause", squeezed.in_pause);
    // Without a squeeze the same collection shows in nothing that the host does.
    ensure!(control.majors * 100.0 <= squeezed.majors, "the control has {} majors", control.majors);
    // That is the throttle's doing: so many reads take so many seconds.
    let reading_ms = 1e3 * squeezed.majors * squeezed.in_pause / READS as f64;
    let longer_ms = squeezed.pause_ms - control.pause_ms;
    ensure!(longer_ms > 0.5 * reading_ms, "{longer_ms:.0} ms longer, {reading_ms:.0} ms reading");
    verdict(&control.folder, &["healthy"])?;
    // By far not all of the time.
    verdict(&squeezed.folder, &["pressure", "thrashing"])
}

fn compile() -> Result<PathBuf> {
    let classes = target().join("java");
    let source = root().join("tests/payload/Heap.java");
    execute(Command::new("javac").arg("-d").arg(&classes).arg(source))?;
    Ok(classes)
}

fn seen(folder: &Path, classes: &Path, is_squeezed: bool) -> Result<Seen> {
    let _settings = [Setting::small_pages()?, Setting::no_readahead()?];
    let cgroup = MemoryCgroup::new("squeeze")?;
    let _swap = SlowSwap::new(SWAP, READS)?;
    let heap = "-XX:+UseSerialGC -Xmx256m -Xmn16m -Xshare:off -Xlog:gc:stdout:tm";
    let script = format!(
        "echo clock $(date +%s%N)\njava {heap} -cp {} Heap {OLD} {WORK} {}\n\
         echo; echo memory: $(free -m | grep Mem:)\nsleep 1000",
        classes.display(),
        GO[1]
    );
    let config = Config { cgroup: Some(&cgroup), ..Config::shell("jvm", MEMORY, &script) };
    let mut vm = Vm::start(&config)?;
    let ahead_ms = clock_ahead_ms(&mut vm)?;
    await_some("heap", PATIENCE, || Ok(vm.serial()?.contains("built").then_some(())))?;
    if is_squeezed {
        // A host that runs short takes what a VM has not used for a while; what is in use
        // and went with it comes back at once.
        forget_use(vm.pid())?;
        std::thread::sleep(UNUSED);
        cgroup.take_unused(vm.pid())?;
        calm(&vm)?;
    }
    let recording = Recording::start(folder, [""; 0])?;
    std::fs::write(vm.dir().join(GO[0]), "")?;
    await_some("end of the JVM", PATIENCE, || Ok(vm.serial()?.contains("finished").then_some(())))?;
    let folder = recording.end()?;
    vm.await_text("memory:")?;
    let serial = vm.serial()?;
    let pauses = pauses(&serial, ahead_ms);
    // The first one was before anything was recorded.
    let [_, pause] = pauses[..] else { bail!("{} collections, not 2", pauses.len()) };
    let rows = rows(&folder, "vms.csv")?;
    let paused: Vec<f64> = rows.iter().map(|row| paused(row, pause)).collect::<Result<_>>()?;
    let stall: Vec<f64> =
        rows.iter().map(|row| figure(row, "stall_share")).collect::<Result<_>>()?;
    let majors = by_interval(&folder, &rows, "count")?;
    let all = majors.iter().sum::<f64>();
    let in_pause = majors.iter().zip(&paused).filter(|(_, paused)| **paused > 0.0);
    let in_pause = in_pause.map(|(majors, _)| majors).sum::<f64>() / all.max(1.0);
    let guest = serial.lines().find_map(|line| line.strip_prefix("memory: Mem: "));
    let figures: Vec<&str> = guest.unwrap_or_default().split_whitespace().collect();
    let available = figures.last().context("the guest does not say what it has")?;
    Ok(Seen {
        pause_ms: pause.1 - pause.0,
        with_stall: correlation(&paused, &stall),
        with_p99: correlation(&paused, &by_interval(&folder, &rows, "p99_ns")?),
        majors: all,
        in_pause,
        mean_stall: stall.iter().sum::<f64>() / stall.len() as f64,
        guest: format!("{available} of {} MiB available", figures[0]),
        folder,
    })
}

/// Waits for five seconds with fewer than 50 major faults.
fn calm(vm: &Vm) -> Result<()> {
    let mut since = (Instant::now(), vm.faults()?[1]);
    await_some("calm", PATIENCE, || {
        let faults = vm.faults()?[1];
        if faults >= since.1 + 50 {
            since = (Instant::now(), faults);
        }
        Ok((since.0.elapsed() >= Duration::from_secs(5)).then_some(()))
    })
}

/// By how much the guest's clock is ahead of this host's, in milliseconds.
fn clock_ahead_ms(vm: &mut Vm) -> Result<f64> {
    vm.await_text("clock ")?;
    let here = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64() * 1e3;
    let serial = vm.serial()?;
    let line = serial.lines().find_map(|line| line.trim().strip_prefix("clock "));
    let there: f64 = line.context("the guest has no clock")?.trim().parse()?;
    Ok(there / 1e6 - here)
}

/// Start and end of each full collection that was asked for, by this host's clock, in milliseconds.
fn pauses(log: &str, ahead_ms: f64) -> Vec<(f64, f64)> {
    let full = log.lines().filter(|line| line.contains("Pause Full (System.gc())"));
    let pause = |line: &str| {
        let end: f64 = line.split("ms]").next()?.split('[').nth(1)?.parse().ok()?;
        let length: f64 = line.trim().rsplit(' ').next()?.strip_suffix("ms")?.parse().ok()?;
        let end = end - ahead_ms;
        Some((end - length, end))
    };
    full.filter_map(pause).collect()
}

/// The part of an interval in which the JVM paused.
fn paused(row: &Row, (from, to): (f64, f64)) -> Result<f64> {
    let start = figure(row, "start_unix_s")? * 1e3;
    let length = figure(row, "length_s")? * 1e3;
    Ok((to.min(start + length) - from.max(start)).max(0.0) / length)
}

/// A figure of major faults in each of the intervals; a quantile of fewer than a hundred is 0.
fn by_interval(folder: &Path, intervals: &[Row], column: &str) -> Result<Vec<f64>> {
    let rows = rows(folder, "intervals.csv")?;
    let of = |interval: &Row| {
        let same =
            |row: &&Row| row["metric"] == "fault.major" && row["interval"] == interval["interval"];
        let Some(row) = rows.iter().find(same) else { return Ok(0.0) };
        let is_said = column == "count" || figure(row, "count")? >= 100.0;
        if is_said { figure(row, column) } else { Ok(0.0) }
    };
    intervals.iter().map(of).collect()
}

/// Pearson's; 0 where one of them does not change.
fn correlation(a: &[f64], b: &[f64]) -> f64 {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let product: f64 = a.iter().zip(b).map(|(a, b)| (a - mean_a) * (b - mean_b)).sum();
    let square = |values: &[f64], mean: f64| values.iter().map(|v| (v - mean).powi(2)).sum::<f64>();
    let squares = square(a, mean_a) * square(b, mean_b);
    if squares > 0.0 { product / squares.sqrt() } else { 0.0 }
}

/// The VM by its name, in one of the states.
fn verdict(folder: &Path, states: &[&str]) -> Result<()> {
    let summary = json(folder, "summary.json")?;
    let vm = &summary["vms"][0];
    let is_one = |swap: &serde_json::Value| states.iter().any(|state| swap["worst"] == *state);
    ensure!(vm["vm"] == "jvm" && is_one(&vm["swap"]), "{vm:#}");
    ensure!(is_one(&summary["host"]["swap"]), "{:#}", summary["host"]);
    Ok(())
}
