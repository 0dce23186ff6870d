//! Is what is counted on this host right? A process of our own takes faults of known number, kind
//! and length; what each backend counts of them is held against its own clock and the kernel's
//! counters.

pub mod faults;

use crate::host::survey::Options as HostOptions;
use crate::host::working_set::Wanted as WorkingSet;
use crate::probes::Kernel;
use crate::probes::decide::{Backend, Decision};
use crate::sampler::roster::{Roster, Selection};
use crate::session::{Session, Want};
use crate::vm::Discovery;
use crate::vm::owner::Room;
use anyhow::{Context, Result, bail};
use faults::Made;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use overcommit_ebpf::layout::{FaultBacking, Metric};
use overcommit_recording::model::coverage::Coverage;
use overcommit_recording::model::metric::MetricName;
use overcommit_recording::model::run::{Options, Run};
use overcommit_recording::summary::{Marks, Summary, SummaryMetric, Summing};
use procfs::process::Process;
use serde::Serialize;
use std::io::{BufRead, BufReader, Write};
use std::ops::RangeInclusive;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, Stdio};

/// The hidden subcommand that takes the faults.
pub const FAULTS: &str = "self-test-faults";

/// Faults that the process takes beside those that it means to: of its heap, stack and code.
const BESIDE: u64 = 64;

/// A figure held against what is known of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Proof {
    /// What was counted.
    pub what: &'static str,
    /// Of how many, or of nanoseconds.
    pub unit: Unit,
    /// The least that is right.
    pub least: u64,
    /// The most that is right.
    pub most: u64,
    /// What the backend says.
    pub counted: u64,
    /// Whether that is right, those aside that the kernel is known to have skipped.
    pub is_right: bool,
}

/// See [`Proof::unit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// A number of faults.
    Faults,
    /// Nanoseconds.
    Ns,
}

/// Has a process take faults under a backend, and holds what it counts against what was done.
///
/// # Errors
/// The backend cannot be attached, or the process fails.
pub fn prove(kernel: &Kernel, backend: Backend) -> Result<Vec<Proof>> {
    let mut process = Faulting::start()?;
    let selection = Selection { patterns: Vec::new(), pids: vec![process.pid()] };
    let want = Want::new(&selection, Room::ONE);
    let roster = Roster::new(Discovery::new("/proc"), selection);
    let decision = Decision { backend, refused: Vec::new() };
    let session = Session::attach(kernel, decision, roster, want)?;
    let host = HostOptions {
        monitors: Vec::new(),
        guest_stats: false,
        working_set: WorkingSet::Bounds,
        mglru_sees_guests: false,
    };
    let mut session = session.begin(Options::default(), &host)?;
    let before = process.faults()?;
    let made = process.work()?;
    let after = process.faults()?;
    let kernels = [after[0] - before[0], after[1] - before[1]];
    session.stop_counting();
    let interval = session.close()?;
    let run = session.run();
    let mut summing = Summing::new(run);
    summing.add(&interval);
    Ok(proofs(run, &summing.summary(run, Marks::default(), Vec::new()), &made, kernels))
}

/// `kernels` are the kernel's own minor and major faults of the process.
fn proofs(run: &Run, summary: &Summary, made: &Made, kernels: [u64; 2]) -> Vec<Proof> {
    let skipped: u64 = run.not_counted.programs_skipped.values().sum();
    let of = |name: &MetricName| -> Option<&SummaryMetric> {
        summary.vms.first()?.metrics.iter().find(|metric| metric.metric == *name)
    };
    let count = |name: &MetricName| of(name).map_or(0, |metric| metric.count);
    let number = |what, name: &MetricName, truth| number(what, truth, count(name), skipped);
    let [minor, major] = Metric::FAULTS.map(MetricName::from);
    let mut proofs = vec![
        number("minor faults", &minor, kernels[0]..=kernels[0]),
        number("major faults", &major, kernels[1]..=kernels[1]),
    ];
    let waited = u64::from(made.held.is_some());
    for (what, backing, least, beside) in [
        ("first touches", FaultBacking::Anon, made.touched, BESIDE),
        ("copies of a file's pages", FaultBacking::Cow, made.copied, BESIDE),
        ("faults that another thread resolved", FaultBacking::Userfault, waited, 0),
    ] {
        let name = MetricName::from(backing);
        let is_seen = run.vms.first().is_some_and(|vm| {
            let (coverage, _) = run.coverage_of(vm, &name);
            coverage != Coverage::Absent
        });
        if is_seen && least > 0 {
            proofs.push(number(what, &name, least..=least + beside));
        }
    }
    let both = || [&minor, &major].into_iter().filter_map(of);
    if let Some(held) = &made.held {
        let longest = both().filter_map(|metric| metric.max_ns).max().unwrap_or(0);
        proofs.push(time("the longest fault", held.least_ns..=held.most_ns, longest));
    }
    let sum = both().map(|metric| metric.sum_ns).sum();
    let least = made.held.as_ref().map_or(0, |held| held.least_ns);
    proofs.push(time("all faults together", least..=made.took_ns, sum));
    proofs
}

/// A number of faults, of which the kernel may have skipped some.
fn number(what: &'static str, truth: RangeInclusive<u64>, counted: u64, skipped: u64) -> Proof {
    let (least, most) = truth.into_inner();
    let is_right = counted + skipped >= least && counted <= most;
    Proof { what, unit: Unit::Faults, least, most, counted, is_right }
}

/// A time in nanoseconds.
fn time(what: &'static str, truth: RangeInclusive<u64>, counted: u64) -> Proof {
    let is_right = truth.contains(&counted);
    let (least, most) = truth.into_inner();
    Proof { what, unit: Unit::Ns, least, most, counted, is_right }
}

/// The process that takes the faults; gone when this is dropped, and when we are killed.
struct Faulting {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Faulting {
    fn start() -> Result<Self> {
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let mut command = Command::new(program);
        command.arg(FAULTS).stdin(Stdio::piped()).stdout(Stdio::piped());
        // SAFETY: between fork and exec only this system call is made.
        unsafe { command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?)) };
        let mut child = command.spawn().context("cannot start the process that faults")?;
        let said = BufReader::new(child.stdout.take().context("it has no output")?);
        let mut started = Self { child, said };
        match started.line()?.as_str() {
            "ready" => Ok(started),
            said => bail!("the process that faults did not start: it says {said:?}"),
        }
    }

    fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Its minor and major faults so far, by the kernel.
    fn faults(&self) -> Result<[u64; 2]> {
        let stat = Process::new(self.pid())?.stat()?;
        Ok([stat.minflt, stat.majflt])
    }

    fn work(&mut self) -> Result<Made> {
        let cue = self.child.stdin.as_mut().context("it has no input")?;
        writeln!(cue).context("the process that faults has ended")?;
        let said = self.line()?;
        serde_json::from_str(&said).context("the process that faults failed")
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.said.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }
}

impl Drop for Faulting {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_or_too_much_is_wrong() {
        let is_right = |counted, skipped| number("", 100..=110, counted, skipped).is_right;
        assert!(is_right(100, 0) && is_right(110, 0) && is_right(98, 2));
        assert!(!is_right(99, 0) && !is_right(111, 0) && !is_right(97, 2));
        let is_right = |counted| time("", 50..=60, counted).is_right;
        assert!(is_right(50) && is_right(60) && !is_right(49) && !is_right(61));
    }
}
