//! What recording adds to a fault and to an exit. The lab's clock counts instructions, so the
//! figures depend on no machine.

use crate::Scenario;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use overcommit::probes::Kernel;
use overcommit::probes::decide::Backend;
use overcommit::probes::empty::EmptyPrograms;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use testbed::host::{Setting, read};
use testbed::payload::Guest;
use testbed::qemu::{Config, Vm};
use testbed::record::Recording;
use testbed::undo::Running;
use testbed::{PATIENCE, await_some};

/// MiB that a guest walks, and those of them that it walks from its second pass on.
const WALK: (u64, u64) = (32, 1);
/// Pages of a MiB.
const PAGES: u64 = 256;
/// Passes after the first, to know what one costs, and how often they are looked at: the clock also
/// counts what the lab's other CPU does in between, which the least of them has least of.
const PASSES: usize = 40;
const LOOKS: usize = 6;

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut scenarios: Vec<Scenario> = vec![
        ("costs".to_owned(), Box::new(costs)),
        ("costs_by_backend".to_owned(), Box::new(costs_by_backend)),
    ];
    // The figures are of one kernel.
    if crate::kernel() == "6.12" {
        scenarios.push(("programs_cost_what_they_did".to_owned(), Box::new(programs)));
    }
    scenarios
}

/// Instructions of a run of each program, with what the kernel takes to time it (about a hundred), on
/// Debian's 6.12, while a guest boots and touches its memory for the first time. Whoever changes one
/// changes its line.
const PROGRAMS: [(&str, f64); 7] = [
    ("fentry_fault", 336.0),
    ("fexit_fault", 510.0),
    ("fentry_write", 132.0),
    ("fentry_invalidation", 241.0),
    ("kvm_exit_x86", 446.0),
    ("kvm_entry", 627.0),
    ("kvm_userspace_exit", 180.0),
];
/// How far a figure may be from its line: a share of it, and some instructions for what the kernel
/// does in between.
const TOLERANCE: f64 = 0.03;
const SLACK: f64 = 5.0;
/// Guests, one after the other, of whose means the second least counts. The clock also counts what the
/// lab's other CPU does when it gets its turn in the middle of a program; and of a guest now and then more
/// faults take a second call, which costs little. The first one is not counted: QEMU itself is new to the
/// kernel then.
const GUESTS: usize = 6;
/// MiB that each of them walks.
const EACH: u64 = 16;

fn programs(dir: &Path) -> Result<()> {
    let _small_pages = Setting::small_pages()?;
    let config = Config { stopped: true, ..Config::new("walker", EACH) };
    let mut walkers = (0..GUESTS).map(|_| Vm::start(&config)).collect::<Result<Vec<_>>>()?;
    let recording = Recording::start(&dir.join("run"), [""; 0])?;
    let _timed = Setting::new("/proc/sys/kernel/bpf_stats_enabled", "1")?;
    let mut means: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let mut runs: BTreeMap<String, f64> = BTreeMap::new();
    let mut before = Taken::read(recording.pid())?;
    for walker in &mut walkers {
        walker.resume()?;
        walker.await_passes(1)?;
        walker.stop()?;
        let after = Taken::read(recording.pid())?;
        for (name, mean, count) in after.since(&before) {
            means.entry(name.clone()).or_default().push(mean);
            *runs.entry(name).or_default() += count;
        }
        before = after;
    }
    for (name, means) in &means {
        let each = runs[name] / (GUESTS as u64 * EACH * PAGES) as f64;
        println!("{name}: {each:.3} times a page, {means:.0?} instructions");
    }
    for (name, known) in PROGRAMS {
        let means = means.get(name).with_context(|| format!("{name} did not run"))?;
        let mut means: Vec<f64> = means.iter().skip(1).copied().collect();
        means.sort_by(f64::total_cmp);
        let now = *means.get(1).with_context(|| format!("{name} hardly ran"))?;
        let is_near = (now - known).abs() <= known * TOLERANCE + SLACK;
        ensure!(is_near, "{name} takes {now:.0} instructions, not {known:.0}");
    }
    recording.end().map(drop)
}

/// Of each program of a process: nanoseconds, which are instructions here, and runs.
struct Taken(BTreeMap<String, (f64, f64)>);

impl Taken {
    fn read(pid: u32) -> Result<Self> {
        let symbols = read("/proc/kallsyms")?;
        // Such as `ffffffffc0a1 t bpf_prog_5f37985b7ddcc38a_kvm_exit	[bpf]`.
        let name = |tag: &str| {
            let rest = symbols.split_once(&format!(" bpf_prog_{tag}_"))?.1;
            rest.split_whitespace().next().map(str::to_owned)
        };
        let mut taken = BTreeMap::new();
        for file in glob::glob(&format!("/proc/{pid}/fdinfo/*"))? {
            // It may be closed meanwhile.
            let text = read(file?).unwrap_or_default();
            let field = |key: &str| {
                let value = text.lines().find_map(|line| line.strip_prefix(key));
                value.map(|value| value.trim_start_matches(':').trim().to_owned())
            };
            let number = |key: &str| field(key).and_then(|value| value.parse::<f64>().ok());
            let Some(name) = field("prog_tag").and_then(|tag| name(&tag)) else { continue };
            if let (Some(time), Some(runs)) = (number("run_time_ns"), number("run_cnt")) {
                taken.insert(name, (time, runs));
            }
        }
        Ok(Self(taken))
    }

    /// Of each program that ran since `before`: what a run took, and how often it did.
    fn since(&self, before: &Self) -> impl Iterator<Item = (String, f64, f64)> {
        self.0.iter().filter_map(|(name, (time, runs))| {
            let (time_before, runs_before) = before.0.get(name).copied().unwrap_or_default();
            let runs = runs - runs_before;
            (runs > 0.0).then(|| (name.clone(), (time - time_before) / runs, runs))
        })
    }
}

fn costs(dir: &Path) -> Result<()> {
    // A fault for each page.
    let _small_pages = Setting::small_pages()?;
    let bare = Costs::measure(|| Ok(()))?;
    let recorded = Costs::measure(|| Recording::start(&dir.join("run"), [""; 0]))?;
    let memory = Costs::measure(|| Recording::start(&dir.join("memory"), ["--exits", "memory"]))?;
    let without = Costs::measure(|| Recording::start(&dir.join("without"), ["--exits", "off"]))?;
    for (what, bare, recorded) in [
        ("a fault with its exit", bare.fault, recorded.fault),
        ("a device's read with its exit", bare.read, recorded.read),
        ("an exit that KVM answers itself", bare.exit, recorded.exit),
    ] {
        let added = recorded - bare;
        println!("{what}: {bare:.0} instructions, recorded {recorded:.0}: {added:.0} more");
        ensure!(added > 0.0, "{what} costs nothing more where it is recorded");
        // Programs on entry and return of a short path, not paths of their own.
        ensure!(added < bare, "{what} costs more than twice as much where it is recorded");
    }
    let [with, of_memory, without] =
        [recorded, memory, without].map(|costs| [costs.read - bare.read, costs.exit - bare.exit]);
    for (exits, [read, exit]) in [("memory", of_memory), ("off", without)] {
        println!("with --exits {exits} a device's read takes {read:.0} more, an exit {exit:.0}");
    }
    for (with, without) in with.into_iter().zip(without) {
        ensure!(without * 4.0 < with, "exits that are not seen cost {without:.0} of {with:.0}");
    }
    let ([_, with], [_, passed_over]) = (with, of_memory);
    ensure!(
        passed_over * 3.0 < with * 2.0,
        "one that is passed over costs {passed_over:.0} of {with:.0}"
    );
    Ok(())
}

/// What each backend adds, beside programs that do nothing on its hooks and on KVM's.
fn costs_by_backend(dir: &Path) -> Result<()> {
    let _small_pages = Setting::small_pages()?;
    let kernel = Kernel::read()?;
    let bare = Costs::measure(|| Ok(()))?;
    println!("not recorded: {bare:.0?}");
    if Command::new("bpftrace").arg("--version").output().is_ok() {
        let traced = Costs::measure(|| bpftrace(dir))?;
        println!("with bpftrace: {traced:.0?}");
    }
    for (backend, name) in
        [(Backend::Fentry, "fentry"), (Backend::Kprobe, "kprobe"), (Backend::Perf, "perf")]
    {
        let empty = Costs::measure(|| EmptyPrograms::with_exits(&kernel, backend))?;
        let recorded = Costs::measure(|| Recording::start(&dir.join(name), ["--backend", name]))?;
        for (what, bare, empty, recorded) in [
            ("a first touch", bare.fault, empty.fault, recorded.fault),
            ("a device's read", bare.read, empty.read, recorded.read),
            ("an exit", bare.exit, empty.exit, recorded.exit),
        ] {
            let (empty, recorded) = (empty - bare, recorded - bare);
            let times = recorded / empty;
            println!(
                "{name}, {what}: empty programs {empty:.0} more, recorded {recorded:.0} more, {times:.2} of it"
            );
            ensure!(empty > 0.0 && times > 1.0, "nothing costs less than nothing");
        }
    }
    Ok(())
}

/// What each process's faults and exits took, by functions and by the same tracepoints of KVM.
const BPFTRACE: &str = "fentry:handle_mm_fault { @since[tid] = nsecs; } \
    fexit:handle_mm_fault /@since[tid]/ \
        { @faults[pid] = hist(nsecs - @since[tid], 5); delete(@since[tid]); } \
    tracepoint:kvm:kvm_exit { @left[tid] = nsecs; @why[tid] = args.exit_reason; } \
    tracepoint:kvm:kvm_entry /@left[tid]/ \
        { @exits[pid, @why[tid]] = hist(nsecs - @left[tid], 5); delete(@left[tid]); } \
    interval:ms:200 { printf(\"traces\\n\"); }";
/// Lines of it after which all of its probes are there.
const TRACES: usize = 5;

fn bpftrace(dir: &Path) -> Result<Running> {
    let output = dir.join("bpftrace");
    let mut command = Command::new("bpftrace");
    command.args(["-q", "-B", "line", "-e", BPFTRACE, "-o"]).arg(&output);
    command.stdin(Stdio::null());
    let running = Running::start("bpftrace", &mut command, |child| {
        Ok(kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM)?)
    })?;
    await_some("lines of bpftrace", PATIENCE, || {
        let lines = std::fs::read_to_string(&output).unwrap_or_default();
        Ok((lines.lines().count() >= TRACES).then_some(()))
    })?;
    Ok(running)
}

/// Instructions of the vCPU's thread.
#[derive(Clone, Copy, Debug)]
struct Costs {
    /// For each first touch of a page.
    fault: f64,
    /// For each read of a device's register.
    read: f64,
    /// For each exit that KVM answers itself.
    exit: f64,
}

impl Costs {
    /// Of a guest that is traced by what `trace` starts, until that is dropped.
    fn measure<T>(trace: impl FnOnce() -> Result<T>) -> Result<Self> {
        let (walk, hot) = WALK;
        let walker = Config { hot: Some((hot, 1)), stopped: true, ..Config::new("walker", walk) };
        let mut walker = Vm::start(&walker)?;
        let start =
            |guest, name| Vm::start(&Config { guest, stopped: true, ..Config::new(name, hot) });
        let mut device = start(Guest::Device, "device")?;
        let mut cpuid = start(Guest::Cpuid, "cpuid")?;
        // It knows them before they run.
        let _traced = trace()?;
        let (faults, start) = (walker.faults()?[0], vcpu_time(&walker)?);
        let (passes, first, pass) = passes(&mut walker)?;
        let faults = walker.faults()?[0] - faults;
        ensure!(faults >= walk * PAGES, "{faults} faults of {} pages", walk * PAGES);
        let touched = (first - start) as f64 - (passes - 1) as f64 * pass;
        let each = |vm: &mut Vm| -> Result<f64> {
            let (_, _, pass) = self::passes(vm)?;
            Ok(pass / (hot * PAGES) as f64)
        };
        let fault = touched / (walk * PAGES) as f64;
        Ok(Self { fault, read: each(&mut device)?, exit: each(&mut cpuid)? })
    }
}

/// Lets a guest walk: passes at a first look, the vCPU's time until then, and that of each pass
/// from then on.
fn passes(vm: &mut Vm) -> Result<(usize, u64, f64)> {
    let mut look = |passes| -> Result<(usize, u64)> {
        vm.resume()?;
        vm.await_passes(passes)?;
        // Off the CPU its time is exact.
        vm.stop()?;
        Ok((vm.passes()?, vcpu_time(vm)?))
    };
    let (passes, first) = look(1)?;
    let (mut before, mut then, mut pass) = (passes, first, f64::MAX);
    for _ in 0..LOOKS {
        let (after, now) = look(before + PASSES)?;
        pass = pass.min((now - then) as f64 / (after - before) as f64);
        (before, then) = (after, now);
    }
    Ok((passes, first, pass))
}

/// CPU time of the only vCPU, in nanoseconds.
fn vcpu_time(vm: &Vm) -> Result<u64> {
    for comm in glob::glob(&format!("/proc/{}/task/[0-9]*/comm", vm.pid()))? {
        let comm = comm?;
        if read(&comm)?.trim() == "CPU 0/KVM" {
            let stat = read(comm.with_file_name("schedstat"))?;
            let time = stat.split_whitespace().next().context("schedstat is empty")?;
            return Ok(time.parse()?);
        }
    }
    anyhow::bail!("QEMU has no vCPU thread")
}
