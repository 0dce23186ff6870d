//! A long recording on a busy host: VMs come and go, other recorders are killed, and the recorder
//! takes no more at the end than at the start, and has lost nothing. `cargo xtask soak`.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};
use testbed::host::read;
use testbed::qemu::{Config, Vm};
use testbed::record::Recording;
use testbed::results::{figure, json, lost, rows, run, vm, within_a_percent};
use testbed::squeeze::Squeeze;
use testbed::{target, undo};

/// For how long, in minutes.
const MINUTES: &str = "OVERCOMMIT_SOAK_MINUTES";
/// Between two looks at the recorder.
const LOOK: Duration = Duration::from_secs(30);
/// Time in which whatever grows once has grown.
const SETTLED: Duration = Duration::from_secs(60);
/// What the recorder's memory may grow by after that, in KiB, beside what it keeps of VMs that
/// ended.
const GROWTH_KIB: u64 = 16 << 10;
/// What run.json has of a VM, and the recorder's memory, at the most.
const VM_BYTES: u64 = 4 << 10;

fn main() -> ExitCode {
    let minutes = std::env::var(MINUTES).ok().and_then(|text| text.parse().ok()).unwrap_or(1.0);
    match undo::on_signals().and_then(|()| soak(Duration::from_secs_f64(minutes * 60.0))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What the recorder takes.
#[derive(Clone, Copy, Debug)]
struct Taken {
    resident_kib: u64,
    descriptors: usize,
    threads: u64,
    run_file_bytes: u64,
}

impl Taken {
    fn now(recorder: u32, folder: &Path) -> Result<Self> {
        let proc = Path::new("/proc").join(recorder.to_string());
        let status = read(proc.join("status"))?;
        let field = |name: &str| -> Option<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse().ok()
        };
        Ok(Self {
            resident_kib: field("VmRSS:").context("no VmRSS")?,
            descriptors: fs::read_dir(proc.join("fd"))?.count(),
            threads: field("Threads:").context("no Threads")?,
            run_file_bytes: fs::metadata(folder.join("run.json"))?.len(),
        })
    }
}

/// What came and went beside it.
#[derive(Debug, Default)]
struct Churn {
    vms: usize,
    killed: usize,
    /// Of those, recordings that had begun, all of which could be read.
    readable: usize,
}

fn soak(length: Duration) -> Result<()> {
    let folder = target().join("soak/run");
    let _ = fs::remove_dir_all(target().join("soak"));
    fs::create_dir_all(target().join("soak"))?;
    let squeeze = Squeeze::new()?;
    let squeezed = Vm::start(&squeeze.config("squeezed"))?;
    let recording = Recording::start(&folder, [""; 0])?;
    let majors = squeezed.faults()?[1];
    let (start, mut churn, mut looks) = (Instant::now(), Churn::default(), Vec::new());
    while start.elapsed() < length {
        churn.step()?;
        if looks.len() < start.elapsed().as_secs() as usize / LOOK.as_secs() as usize {
            let taken = Taken::now(recording.pid(), &folder)?;
            println!("{:4} s  {taken:?}  {churn:?}", start.elapsed().as_secs());
            looks.push((start.elapsed(), taken));
        }
    }
    let majors = squeezed.faults()?[1] - majors;
    let recorded = start.elapsed();
    let folder = recording.end()?;
    ensure!(churn.readable > 0, "no killed recording had begun");
    nothing_is_lost(&folder, recorded, majors, churn.vms)?;
    flat(&looks, churn.vms)?;
    println!("{:.0} s recorded; {churn:?}; nothing was lost", recorded.as_secs_f64());
    Ok(())
}

impl Churn {
    /// A VM that lives for a moment, and a recorder that is killed at some moment of its start or
    /// after it.
    fn step(&mut self) -> Result<()> {
        let name = format!("guest-{}", self.vms);
        let guest = Vm::start(&Config { accel: "tcg", ..Config::new(&name, 4) })?;
        self.vms += 1;
        let folder = target().join("soak/killed");
        let _ = fs::remove_dir_all(&folder);
        let mut other = Recording::begin(&folder, [""; 0])?;
        // Moments that do not follow those of its own.
        sleep(Duration::from_millis(self.killed as u64 * 377 % 2_900));
        other.signal(Signal::SIGKILL)?;
        other.wait()?;
        self.killed += 1;
        drop(guest);
        if folder.join("run.json").exists() {
            let path = folder.to_string_lossy().into_owned();
            let output = run(["report", &path])?;
            ensure!(matches!(output.status.code(), Some(0 | 4)), "{output:?}");
            self.readable += 1;
        }
        Ok(())
    }
}

/// Every interval is there, and every VM, and what was counted is what the kernel counted.
fn nothing_is_lost(folder: &Path, recorded: Duration, majors: u64, vms: usize) -> Result<()> {
    let intervals = rows(folder, "host.csv")?;
    let numbers: Vec<u64> =
        intervals.iter().filter_map(|row| row["interval"].parse().ok()).collect();
    ensure!(numbers.iter().copied().eq(0..numbers.len() as u64), "an interval is missing");
    let length = |row: &std::collections::HashMap<String, String>| row["length_s"].parse::<f64>();
    let longest = intervals.iter().map(length).collect::<Result<Vec<_>, _>>()?;
    let sum: f64 = longest.iter().sum();
    println!(
        "{} intervals, the longest {:.3} s, all {sum:.1} s of {:.1} s",
        numbers.len(),
        longest.iter().copied().fold(0.0, f64::max),
        recorded.as_secs_f64()
    );
    ensure!(sum >= recorded.as_secs_f64() - 0.1, "{sum} s of {recorded:?}");
    let squeezed = vm(folder, "squeezed")?;
    let counted = figure(&squeezed, "fault.major", "count")?;
    within_a_percent("fault.major", counted, majors, lost(&squeezed))?;
    let run = json(folder, "run.json")?;
    let unserved = &run["not_counted"]["vms_without_slot"];
    ensure!(*unserved == 0, "{unserved} VMs had no slot");
    let recorded = run["vms"].as_array().context("no VMs")?.len();
    ensure!(recorded == vms + 1, "{recorded} VMs were recorded, {vms} and one ran");
    Ok(())
}

/// What it takes at the end is what it took once it had settled, but for what it tells of VMs that
/// ended.
fn flat(looks: &[(Duration, Taken)], vms: usize) -> Result<()> {
    let mut settled = looks.iter().filter(|(at, _)| *at >= SETTLED).map(|(_, taken)| taken);
    let both = settled.next().zip(settled.next_back());
    let (first, last) = both.context("too short to tell: give --minutes 3 or more")?;
    println!("settled: {first:?}\nlast:    {last:?}");
    let grown_kib = last.resident_kib.saturating_sub(first.resident_kib);
    ensure!(grown_kib <= GROWTH_KIB + vms as u64 * VM_BYTES / 1024, "its memory grows");
    ensure!(last.descriptors <= first.descriptors + 4, "its descriptors grow");
    ensure!(last.threads <= first.threads + 2, "its threads grow");
    let told = last.run_file_bytes.saturating_sub(first.run_file_bytes);
    ensure!(told <= vms as u64 * VM_BYTES, "run.json grew by {told} bytes for {vms} VMs");
    Ok(())
}
