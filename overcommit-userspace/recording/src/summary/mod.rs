//! summary.json and summary.csv: the whole run, one entry a VM and metric.

mod advice;
pub mod cause;
pub mod evictions;
pub mod host;
pub mod kswapd_estimate;
mod run;
pub mod table;
pub mod verdict;

use crate::model::breakdown::Breakdown;
use crate::model::coverage::{Coverage, coverage_of};
use crate::model::exit::{Departure, Exit};
use crate::model::figures::VmFigures;
use crate::model::interval::{FileFaults, Interval, Place};
use crate::model::latencies::Latencies;
use crate::model::memory::Source;
use crate::model::metric::MetricName;
use crate::model::run::{EndedBy, Run, RunVm};
use crate::model::start::StartPhase;
use crate::model::swap::SwapState;
use crate::model::swapins::Swapins;
use crate::model::totals::{MetricTotals, Totals, VmTotals, per_second};
use crate::slo::Judged;
use crate::summary::evictions::{EvictionTotals, SummaryEvictions};
use crate::summary::host::{HostTotals, StateSummary, SummaryHost};
use crate::summary::verdict::{VmVerdict, verdict};
use anyhow::Result;
use overcommit_ebpf::layout::{FaultBacking, Invalidator, Loss, Metric, Taker};
pub use run::SummaryRun;
use serde::Serialize;
use std::collections::BTreeMap;

/// The whole run.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// `overcommit.summary/1`.
    pub schema: &'static str,
    /// Of run.json.
    pub run_id: String,
    /// What was recorded, and how.
    pub run: SummaryRun,
    /// Complete intervals.
    pub intervals: u64,
    /// The marks that it lies between.
    #[serde(flatten)]
    pub marks: Marks,
    /// Start of the first, in Unix seconds.
    pub start_unix_s: f64,
    /// End of the last interval, in Unix seconds.
    pub end_unix_s: f64,
    /// Length of all of them, in seconds.
    pub length_s: f64,
    /// The longest; longer than asked for if the recorder was held up. In seconds.
    pub longest_interval_s: f64,
    /// The host.
    pub host: SummaryHost,
    /// Each VM.
    pub vms: Vec<SummaryVm>,
    /// Each objective for each VM that it is for.
    pub objectives: Vec<Judged>,
}

/// The marks that a summary lies between: `--from` and `--to`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Marks {
    /// `null` from the start.
    pub from: Option<String>,
    /// `null` to the end.
    pub to: Option<String>,
}

/// A VM over the whole run.
#[derive(Debug, Serialize)]
pub struct SummaryVm {
    /// PID-STARTTIME.
    pub vm_id: String,
    /// Its name as shown.
    pub vm: String,
    /// QEMU's uuid.
    pub uuid: Option<String>,
    /// Process id.
    pub pid: i32,
    /// What became of it, and why.
    pub verdict: VmVerdict,
    /// Time recorded, in seconds.
    pub length_s: f64,
    /// When counting began for it, in seconds after the recording's start.
    pub started_s: f64,
    /// When it ended, if it did, in seconds after the recording's start.
    pub ended_s: Option<f64>,
    /// Why, where the kernel says so: `oom_cgroup`, `oom_shared_cgroup` or `oom_host`.
    pub ended_by: Option<EndedBy>,
    /// The same in Unix seconds.
    pub ended_unix_s: Option<f64>,
    /// Whether it is known to be a VM, and not just a process that was named.
    #[serde(skip)]
    pub is_vm: bool,
    /// How its process ended: `{"status": 0}` or `{"signal": 11}`.
    pub exit: Option<Exit>,
    /// What its monitor or libvirt said of its end: `migrated`, `shut_down`, `destroyed`, `saved`,
    /// `panicked` or `failed`.
    pub departure: Option<Departure>,
    /// For how long its process was stopped, in seconds.
    pub stopped_s: f64,
    /// How much swapping hurt it.
    pub swap: StateSummary<SwapState>,
    /// Its memory, as last known.
    pub memory: VmFigures,
    /// `stall.share`: `null` where the vCPU threads are not known.
    pub stall: Option<StallShare>,
    /// `cpu.share`: `null` where the scheduler keeps no account, or the vCPU threads are not
    /// known.
    pub cpu_wait: Option<CpuWait>,
    /// Faults that the kernel accounted to the VM's threads.
    pub faults_kernel: u64,
    /// Those of them that were counted.
    pub faults_counted: u64,
    /// Faults counted that threads of another process took, or of the kernel.
    pub faults_by_others: u64,
    /// All faults counted, by who took them.
    pub taken_by: BTreeMap<&'static str, u64>,
    /// Where swapped pages came from; `null` of a part of a recording of a version that does
    /// not tell by interval.
    pub swapins: Option<Swapins>,
    /// Where pages of files came from; `null` where that is not seen.
    pub file_faults: Option<FileFaults>,
    /// Its faults in the first seconds after its first vCPU ran, of the whole recording; `null` of one that
    /// had started before, or where that is not seen.
    pub start: Option<Vec<StartPhase>>,
    /// How often KVM was told to unmap some of its memory, by whom; `null` where that is not seen.
    pub invalidations: Option<BTreeMap<&'static str, u64>>,
    /// What the time of its faults went into.
    pub fault_time: Breakdown,
    /// What the time of its windows of `stall.memory` went into; `null` without such.
    pub stall_time: Option<Breakdown>,
    /// Why its exits, and with them `stall.memory`, are not seen; `null` where they are.
    pub exits_absent: Option<String>,
    /// Why it is not known who took its pages, if so.
    pub evictions_absent: Option<String>,
    /// Why faults of it can be missed that the kernel's own counters miss too.
    pub faults_hidden: Option<String>,
    /// Who took its pages; `null` where they cannot be told from others'.
    pub evictions: Option<SummaryEvictions>,
    /// By cause.
    pub not_counted: BTreeMap<&'static str, u64>,
    /// Each metric.
    pub metrics: Vec<SummaryMetric>,
}

impl SummaryVm {
    /// A metric of it, if it has that.
    pub fn metric(&self, metric: Metric) -> Option<&SummaryMetric> {
        self.metrics.iter().find(|entry| entry.metric == metric.into())
    }

    /// The share of its vCPUs' time that it waited for memory.
    pub fn stall_share(&self) -> f64 {
        self.stall.as_ref().map_or(0.0, |stall| stall.share)
    }

    /// The larger of both shares.
    pub fn loss(&self) -> f64 {
        self.stall_share().max(self.cpu_share())
    }

    /// The share of its vCPUs' time that it waited for a CPU.
    pub fn cpu_share(&self) -> f64 {
        self.cpu_wait.as_ref().map_or(0.0, |cpu| cpu.share)
    }
}

/// How much of its vCPUs' time a VM waited for memory.
#[derive(Debug, Serialize)]
pub struct StallShare {
    /// From 0 to 1, waits for a CPU left out.
    pub share: f64,
    /// Which metric it comes from.
    pub source: &'static str,
    /// Summed over vCPUs, waits for a CPU included.
    pub waited_ns: u64,
    /// Those waits.
    pub runq_ns: u64,
    /// vCPUs × time.
    pub vcpu_ns: u64,
}

/// How much of its vCPUs' time a VM could run and had no CPU.
#[derive(Debug, Serialize)]
pub struct CpuWait {
    /// From 0 to 1.
    pub share: f64,
    /// Summed over vCPUs.
    pub waited_ns: u64,
}

/// A metric over the whole run. Empty where there is nothing to say it of.
#[derive(Debug, Serialize)]
pub struct SummaryMetric {
    /// Its name.
    pub metric: MetricName,
    /// How much was seen.
    pub coverage: Coverage,
    /// How many.
    pub count: u64,
    /// By the length of the VM's intervals.
    pub rate_per_s: f64,
    /// Exact.
    pub sum_ns: u64,
    /// Exact, rounded down.
    pub mean_ns: Option<u64>,
    /// Quantile 0.5.
    pub p50_ns: Option<u64>,
    /// Quantile 0.9.
    pub p90_ns: Option<u64>,
    /// Quantile 0.99.
    pub p99_ns: Option<u64>,
    /// Quantile 0.999.
    pub p999_ns: Option<u64>,
    /// Exact.
    pub max_ns: Option<u64>,
    /// How many exceeded the range of the histogram.
    pub over_range: u64,
}

/// What a summary is made of, interval by interval.
#[derive(Debug)]
pub struct Summing {
    /// The VMs.
    pub totals: Totals,
    host: HostTotals,
    evictions: EvictionTotals,
    time: Time,
}

/// How far the start that a row says and the start of its length are apart at the most, in
/// microseconds.
const BOUNDARY_US: u64 = 1_000_000;

/// When it was, and how long.
#[derive(Debug, Default)]
struct Time {
    start_us: Option<u64>,
    end_us: u64,
    length_ns: u64,
    longest_ns: u64,
}

impl Summing {
    /// Begins with nothing.
    pub fn new(run: &Run) -> Self {
        let totals = Totals::of(run.vms.len());
        Self {
            totals,
            host: HostTotals::default(),
            evictions: EvictionTotals::default(),
            time: Time::default(),
        }
    }

    /// Adds an interval.
    pub fn add(&mut self, interval: &Interval) {
        let Place { start_us, length_ns, .. } = interval.place;
        self.time.start_us.get_or_insert(start_us);
        self.time.end_us = start_us + length_ns / 1_000;
        self.time.length_ns += length_ns;
        self.time.longest_ns = self.time.longest_ns.max(length_ns);
        self.totals.add(interval);
        self.host.add(interval);
        self.evictions.add(interval);
    }

    /// The summary of the part between the marks, with the objectives as they were judged. Of the whole recording run.json
    /// knows what older versions have in no row.
    pub fn summary(&self, run: &Run, marks: Marks, objectives: Vec<Judged>) -> Summary {
        let is_whole = marks == Marks::default();
        let evictions = self.evictions.of(run);
        let vms = run.vms.iter().zip(&self.totals.vms).zip(evictions);
        let host = self.host.of(run);
        // Of a recording without an interval its own start is known.
        let start_us = self.time.start_us.unwrap_or(run.clocks.start.realtime_ns / 1_000);
        let vms = vms.map(|((vm, totals), evictions)| {
            let mut vm =
                SummaryVm { evictions, ..summary_vm(run, vm, totals, is_whole, self.time.end_us) };
            vm.verdict = verdict(&vm, &host.memory);
            vm
        });
        Summary {
            schema: "overcommit.summary/1",
            run_id: run.run_id.clone(),
            run: SummaryRun::of(run),
            intervals: self.totals.intervals,
            marks,
            start_unix_s: start_us as f64 / 1e6,
            end_unix_s: self.time.end_us.max(start_us) as f64 / 1e6,
            length_s: self.time.length_ns as f64 / 1e9,
            longest_interval_s: self.time.longest_ns as f64 / 1e9,
            vms: vms.collect(),
            host,
            objectives,
        }
    }
}

impl Summary {
    /// The VMs that were there in the part that is looked at.
    pub fn seen(&self) -> impl Iterator<Item = &SummaryVm> {
        self.vms.iter().filter(|vm| vm.length_s > 0.0)
    }

    /// Whether the working set of each was measured at last, rather than bounded.
    pub fn is_measured(&self) -> bool {
        self.seen().all(|vm| vm.memory.working_set_source.is_some_and(Source::is_measured))
    }

    /// Why it says nothing of any VM, if so.
    pub fn nothing(&self, run: &Run) -> Option<String> {
        let options = &run.options;
        if self.seen().next().is_some() {
            return None;
        }
        if self.intervals == 0 && run.recorded.intervals > 0 {
            let interval = std::time::Duration::from_nanos(options.interval_ns);
            return Some(format!(
                "No complete interval lies between the marks: intervals are {interval:?} long."
            ));
        }
        let pids = options.pid.iter().map(|pid| format!("process {pid}"));
        let wanted: Vec<String> = options.vm.iter().cloned().chain(pids).collect();
        Some(match wanted.as_slice() {
            _ if self.intervals < run.recorded.intervals => {
                "No VM ran between the marks.".to_owned()
            }
            _ if run.not_counted.vms_without_slot > 0 => "No VM was recorded.".to_owned(),
            [] => "No VM was recorded: none ran on this host.".to_owned(),
            wanted => format!("No VM was recorded: no VM matching {} ran.", wanted.join(", ")),
        })
    }

    /// summary.json.
    ///
    /// # Errors
    /// None that can happen in memory.
    pub fn json(&self) -> Result<Vec<u8>> {
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        Ok(text)
    }

    /// summary.csv.
    ///
    /// # Errors
    /// See [`crate::format::csv::rows`].
    pub fn csv(&self) -> Result<Vec<u8>> {
        table::csv(self)
    }
}

/// `end_us` is the end of what is looked at.
fn summary_vm(run: &Run, vm: &RunVm, totals: &VmTotals, is_whole: bool, end_us: u64) -> SummaryVm {
    let ended_us = vm.ended_us.filter(|ended_us| *ended_us <= end_us + BOUNDARY_US);
    // Earlier versions wrote zeros where nothing was seen.
    let sees = |metric: MetricName| coverage_of(&run.coverage, &metric) != Coverage::Absent;
    let whole = is_whole.then_some(vm);
    let files = whole.filter(|_| sees(FaultBacking::File.into())).and_then(|vm| vm.file_faults);
    let swapins = whole.filter(|_| sees(Metric::Swapin.into())).and_then(|vm| vm.swapins.clone());
    let stall = totals.stall.and_then(|stall| {
        Some(StallShare {
            share: stall.share()?,
            source: stall.source.name(),
            waited_ns: stall.waited_ns,
            runq_ns: stall.runq_ns,
            vcpu_ns: stall.vcpu_ns,
        })
    });
    let cpu_wait = totals.stall.zip(totals.cpu_wait_ns).and_then(|(stall, waited_ns)| {
        Some(CpuWait { share: stall.cpu_share(waited_ns)?, waited_ns })
    });
    SummaryVm {
        cpu_wait,
        verdict: VmVerdict::OK,
        vm_id: vm.vm_id.clone(),
        vm: vm.name.clone(),
        uuid: vm.uuid.clone(),
        pid: vm.pid,
        length_s: totals.length_ns as f64 / 1e9,
        started_s: run.after_start_s(vm.first_seen_us),
        ended_s: ended_us.map(|ended_us| run.after_start_s(ended_us)),
        ended_unix_s: ended_us.map(|ended_us| ended_us as f64 / 1e6),
        ended_by: ended_us.and(vm.ended_by),
        exit: ended_us.and(vm.exit),
        departure: ended_us.and(vm.departure),
        is_vm: vm.accelerator.is_some(),
        swap: StateSummary::of(&totals.swap_states),
        memory: totals.memory.clone(),
        stall,
        faults_kernel: totals.seen.kernel,
        faults_counted: totals.seen.counted,
        faults_by_others: totals.taken_by[Taker::Outside as usize],
        taken_by: Taker::ALL.iter().map(|taker| taker.name()).zip(totals.taken_by).collect(),
        swapins: totals.swapins.clone().or(swapins),
        file_faults: totals.file_faults.or(files),
        start: whole.and_then(|vm| vm.start.clone()),
        invalidations: totals
            .invalidations
            .map(|counts| Invalidator::ALL.iter().map(|by| by.name()).zip(counts).collect()),
        fault_time: totals.fault_time,
        stall_time: totals.stall_time,
        stopped_s: totals.stopped_ns as f64 / 1e9,
        exits_absent: vm.exits_absent.clone(),
        evictions_absent: vm.evictions_absent.clone(),
        faults_hidden: vm.faults_hidden.clone(),
        evictions: None,
        not_counted: Loss::ALL.iter().map(|cause| cause.name()).zip(totals.not_counted).collect(),
        metrics: totals
            .metrics
            .iter()
            .map(|(name, metric)| summary_metric(vm, name, metric, totals))
            .collect(),
    }
}

fn summary_metric(
    vm: &RunVm,
    name: &MetricName,
    metric: &MetricTotals,
    totals: &VmTotals,
) -> SummaryMetric {
    let latencies: &Latencies = &metric.latencies;
    let count = latencies.count();
    SummaryMetric {
        metric: name.clone(),
        coverage: metric.coverage.max(vm.at_best(name)),
        count,
        rate_per_s: per_second(count, totals.length_ns).unwrap_or(0.0),
        sum_ns: latencies.sum_ns,
        mean_ns: latencies.sum_ns.checked_div(count),
        p50_ns: latencies.quantile(0.5),
        p90_ns: latencies.quantile(0.9),
        p99_ns: latencies.quantile(0.99),
        p999_ns: latencies.quantile(0.999),
        max_ns: (count > 0).then_some(latencies.max_ns),
        over_range: latencies.over_range,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_nothing_is_said_of_any_vm() {
        let said = |intervals: u64, vms: Vec<RunVm>, wanted: &[&str]| {
            let mut run = Run { vms, ..Run::default() };
            run.recorded.intervals = 5;
            run.options.interval_ns = 1_000_000_000;
            run.options.vm = wanted.iter().map(|&pattern| pattern.to_owned()).collect();
            let mut summing = Summing::new(&run);
            for _ in 0..intervals {
                summing.add(&Interval::default());
            }
            summing
                .summary(&run, Marks { from: Some("a".to_owned()), to: None }, Vec::new())
                .nothing(&run)
                .unwrap()
        };
        let vms = || vec![RunVm::default()];
        assert!(said(0, vms(), &[]).starts_with("No complete interval lies between the marks"));
        assert_eq!(said(2, vms(), &[]), "No VM ran between the marks.");
        assert_eq!(said(5, vec![], &[]), "No VM was recorded: none ran on this host.");
        let none = "No VM was recorded: no VM matching web*, db ran.";
        assert_eq!(said(5, vec![], &["web*", "db"]), none);
    }
}
