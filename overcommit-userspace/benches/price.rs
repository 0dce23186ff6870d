//! What tracing adds to a page fault: nothing, empty programs on the same hooks, overcommit, and
//! other tools, by turns; and what recordings of many VMs take of the kernel's memory. `cargo xtask
//! bench` runs it, as root.

use anyhow::{Context, Result, ensure};
use memmap2::{Advice, MmapMut};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use overcommit::probes::Kernel;
use overcommit::probes::decide::{Backend, Wanted, decide};
use overcommit::probes::empty::EmptyPrograms;
use overcommit::probes::footprint::KernelMemory;
use overcommit::probes::host::HostProbe;
use overcommit::probes::object::Sizes;
use overcommit::sampler::roster::Selection;
use overcommit::session::Want;
use overcommit::vm::owner::Room;
use serde::Serialize;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// Memory that is touched at a time, and how often in a turn.
const PAGES: usize = 16_384;
const TOUCHES: usize = 12;
/// Turns of each.
const TURNS: usize = 7;
/// How long a tracer may take to begin.
const PATIENCE: Duration = Duration::from_secs(20);

/// What traces meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tracer {
    Nothing,
    Empty,
    OvercommitVm,
    OvercommitOther,
    PerfRecord,
    PerfTrace,
    Bpftrace,
}

impl Tracer {
    const ALL: [Self; 7] = [
        Self::Nothing,
        Self::Empty,
        Self::OvercommitVm,
        Self::OvercommitOther,
        Self::PerfRecord,
        Self::PerfTrace,
        Self::Bpftrace,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "no tracing",
            Self::Empty => "empty programs on the same hooks",
            Self::OvercommitVm => "overcommit record, of this process",
            Self::OvercommitOther => "overcommit record, of another process",
            Self::PerfRecord => "perf record -e page-faults -c 1 -a",
            Self::PerfTrace => "perf trace -F all -a",
            Self::Bpftrace => "bpftrace, hist() of the time from page-faults to minor-faults",
        }
    }

    fn is_here(self) -> bool {
        let program = match self {
            Self::PerfRecord | Self::PerfTrace => "perf",
            Self::Bpftrace => "bpftrace",
            _ => return true,
        };
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|folder| folder.join(program).exists())
    }
}

/// Nanoseconds of a fault under one of them.
#[derive(Serialize)]
struct Price {
    tracer: &'static str,
    median_ns: f64,
    least_ns: f64,
    most_ns: f64,
}

#[derive(Serialize)]
struct Report {
    kernel: String,
    backend: Backend,
    turns: usize,
    faults: Vec<Price>,
    memory: Vec<Memory>,
}

/// Kernel memory of a recording of so many VMs, by what the maps are.
#[derive(Serialize)]
struct Memory {
    vms: usize,
    cpus: u32,
    #[serde(flatten)]
    bytes: KernelMemory,
}

/// vCPUs of each VM there.
const VCPUS: usize = 4;

fn memory(backend: Backend) -> Result<Vec<Memory>> {
    let mut rows = Vec::new();
    for vms in [1, 50, 500] {
        let room = Room { vms, real: vms, vcpus: vms * VCPUS };
        let sizes = Want::new(&Selection::default(), room).sizes(backend)?;
        for cpus in [2, 64, 256] {
            let bytes = KernelMemory::for_vms(Sizes { cpus, ..sizes }, vms)?;
            rows.push(Memory { vms, cpus, bytes });
        }
    }
    Ok(rows)
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().collect();
    if words.iter().any(|word| word == "--toucher") {
        return touch();
    }
    let binary = std::env::var_os("OVERCOMMIT_BINARY").map(PathBuf::from);
    let binary = binary.context("run it by `cargo xtask bench`")?;
    let kernel = Kernel::read()?;
    let host = HostProbe::run(Ok(&kernel), &Wanted::Auto.kinds());
    let backend =
        decide(&host, Wanted::Auto).map_err(|_| anyhow::anyhow!("no backend works here"))?;
    let bench = Bench { binary, kernel, backend: backend.backend, dir: tempfile::tempdir()? };
    let report = bench.run()?;
    let is_json = words.iter().any(|word| word == "--json");
    println!("{}", if is_json { serde_json::to_string_pretty(&report)? } else { table(&report) });
    Ok(())
}

struct Bench {
    binary: PathBuf,
    kernel: Kernel,
    backend: Backend,
    dir: tempfile::TempDir,
}

impl Bench {
    fn run(&self) -> Result<Report> {
        let mut toucher = Toucher::start()?;
        let mut taken: Vec<(Tracer, Vec<f64>)> =
            Tracer::ALL.into_iter().filter(|of| of.is_here()).map(|of| (of, Vec::new())).collect();
        for turn in 0..TURNS {
            for (tracer, times) in &mut taken {
                match self.start(*tracer, &mut toucher, turn)? {
                    Some(_traced) => times.push(toucher.touch()?),
                    None => eprintln!("{} ended at once, and is left out", tracer.name()),
                }
            }
        }
        taken.retain(|(_, times)| !times.is_empty());
        let faults = taken.into_iter().map(|(tracer, mut times)| {
            times.sort_by(f64::total_cmp);
            Price {
                tracer: tracer.name(),
                median_ns: times[times.len() / 2],
                least_ns: times[0],
                most_ns: times[times.len() - 1],
            }
        });
        Ok(Report {
            kernel: overcommit::kernel::release()?,
            backend: self.backend,
            turns: TURNS,
            faults: faults.collect(),
            memory: memory(self.backend)?,
        })
    }

    /// Starts a tracer, and waits until it traces; `None` if it ends at once.
    fn start(&self, tracer: Tracer, toucher: &mut Toucher, turn: usize) -> Result<Option<Traced>> {
        let dir = self.dir.path();
        let (ready, output) = (dir.join("ready"), dir.join("output"));
        for file in [&ready, &output] {
            let _ = fs::remove_file(file);
        }
        let mut command;
        match tracer {
            Tracer::Nothing => return Ok(Some(Traced::Nothing)),
            Tracer::Empty => {
                let programs = EmptyPrograms::attach(&self.kernel, self.backend)?;
                return Ok(Some(Traced::Empty(programs)));
            }
            Tracer::OvercommitVm | Tracer::OvercommitOther => {
                let is_vm = tracer == Tracer::OvercommitVm;
                let pid = if is_vm { toucher.child.id() } else { std::process::id() };
                command = Command::new(&self.binary);
                command.args(["record", "-q", "--pid", &pid.to_string(), "--ready-file"]);
                command.arg(&ready).arg("--out").arg(dir.join(format!("{tracer:?}-{turn}")));
            }
            Tracer::PerfRecord => {
                command = Command::new("perf");
                command.args(["record", "-q", "-e", "page-faults", "-c", "1", "-a", "-o"]);
                command.arg(&output);
            }
            Tracer::PerfTrace => {
                command = Command::new("perf");
                command.args(["trace", "-F", "all", "--no-syscalls", "-a", "-o"]).arg(&output);
            }
            Tracer::Bpftrace => {
                command = Command::new("bpftrace");
                command.args(["-q", "-e", BPFTRACE]);
            }
        }
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let mut traced = Traced::Process(child);
        let start = Instant::now();
        loop {
            let Traced::Process(child) = &mut traced else { return Ok(None) };
            if child.try_wait()?.is_some() {
                return Ok(None);
            }
            let is_tracing = match tracer {
                // perf opens its events long before it begins: it traces when its output grows.
                Tracer::PerfRecord | Tracer::PerfTrace => {
                    let length = || fs::metadata(&output).map_or(0, |file| file.len());
                    let before = length();
                    toucher.touch()?;
                    length() > before + GROWTH
                }
                Tracer::Bpftrace => events(child.id()) >= 3 * cpus(),
                _ => ready.exists(),
            };
            if is_tracing {
                return Ok(Some(traced));
            }
            ensure!(start.elapsed() < PATIENCE, "{} does not begin", tracer.name());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Bytes by which a tracer's output grows while memory is touched.
const GROWTH: u64 = 1 << 20;

/// From the start of a fault to its end, by thread, as overcommit has it.
const BPFTRACE: &str = "software:page-faults:1 { @since[tid] = nsecs; } \
    software:minor-faults:1 /@since[tid]/ { @ns[pid] = hist(nsecs - @since[tid]); } \
    software:major-faults:1 /@since[tid]/ { @ns[pid] = hist(nsecs - @since[tid]); }";

fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Events that a process has opened.
fn events(pid: u32) -> usize {
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let targets = fds.filter_map(|fd| fs::read_link(fd.path()).ok());
    targets.filter(|path| path == Path::new("anon_inode:[perf_event]")).count()
}

enum Traced {
    Nothing,
    #[expect(dead_code, reason = "attached while it lives")]
    Empty(EmptyPrograms),
    Process(Child),
}

impl Drop for Traced {
    fn drop(&mut self) {
        if let Self::Process(child) = self {
            let _ = kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT);
            let start = Instant::now();
            while start.elapsed() < PATIENCE && matches!(child.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(10));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A process that touches fresh memory when it is told to.
struct Toucher {
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Toucher {
    fn start() -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("--toucher")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let answers = BufReader::new(child.stdout.take().context("no output")?);
        Ok(Self { child, answers })
    }

    /// The median of some touches, in nanoseconds a fault.
    fn touch(&mut self) -> Result<f64> {
        let mut times = Vec::new();
        for _ in 0..TOUCHES {
            writeln!(self.child.stdin.as_mut().context("no input")?)?;
            let mut line = String::new();
            self.answers.read_line(&mut line)?;
            times.push(line.trim().parse::<f64>()?);
        }
        times.sort_by(f64::total_cmp);
        Ok(times[times.len() / 2])
    }
}

impl Drop for Toucher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn touch() -> Result<()> {
    let page = usize::try_from(overcommit::kernel::page_size())?;
    for line in std::io::stdin().lock().lines() {
        line?;
        let mut memory = MmapMut::map_anon(PAGES * page)?;
        memory.advise(Advice::NoHugePage)?;
        let start = Instant::now();
        memory.iter_mut().step_by(page).for_each(|byte| *byte = 1);
        let time = start.elapsed();
        println!("{}", time.as_nanos() as f64 / PAGES as f64);
    }
    Ok(())
}

fn table(report: &Report) -> String {
    let of = |name: &str| report.faults.iter().find(|price| price.tracer == name);
    let none = of(Tracer::Nothing.name()).map_or(0.0, |price| price.median_ns);
    let empty = of(Tracer::Empty.name()).map_or(0.0, |price| price.median_ns - none);
    let mut lines = vec![
        format!(
            "Linux {}, backend {}; medians of {} turns, with the least and the most.",
            report.kernel,
            report.backend.name(),
            report.turns
        ),
        String::new(),
        "| traced by | a fault, ns | added, ns | of empty programs |".to_owned(),
        "| --- | --- | --- | --- |".to_owned(),
    ];
    lines.extend(report.faults.iter().map(|price| {
        let added = price.median_ns - none;
        let times = if added > 0.0 && empty > 0.0 {
            format!("{:.2} ×", added / empty)
        } else {
            String::new()
        };
        format!(
            "| {} | {:.0} ({:.0}–{:.0}) | {:.0} | {times} |",
            price.tracer, price.median_ns, price.least_ns, price.most_ns, added
        )
    }));
    lines.extend([
        String::new(),
        "| VMs | CPUs | kernel memory at the start, MiB | at most, MiB |".to_owned(),
        "| --- | --- | --- | --- |".to_owned(),
    ]);
    lines.extend(report.memory.iter().map(|of| {
        let [start, most] =
            [of.bytes.start_bytes, of.bytes.most_bytes].map(|bytes| bytes as f64 / 1_048_576.0);
        format!("| {} | {} | {start:.1} | {most:.1} |", of.vms, of.cpus)
    }));
    lines.join("\n")
}
