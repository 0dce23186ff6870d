//! Makes each VM's message of what the intervals hold.

use crate::guest::message::{HostWord, Latency, Message, SCHEMA, Shares};
use crate::model::coverage::Coverage;
use crate::model::evictions::Eviction;
use crate::model::interval::{HostInterval, Interval, VmInterval};
use crate::model::metric::MetricName;
use crate::model::run::{Run, RunVm};
use crate::model::swap::SwapState;
use crate::recent::History;
use crate::summary::cause::{Cause, held_back};
use crate::summary::{Marks, Summary, SummaryVm, Summing};
use overcommit_ebpf::layout::Metric;
use std::collections::BTreeMap;
use std::sync::Arc;

const SECOND_NS: u64 = 1_000_000_000;
/// OOM kills that are remembered: whoever starts VMs could have them killed.
const KILLS: usize = 1024;

/// The last minute, and the messages that were made of it.
pub struct Telling {
    run: Option<Arc<Run>>,
    history: History,
    /// When the last interval ended, by the monotonic clock.
    ended_ns: u64,
    /// Of the last interval, by VM id; each made when it is asked for.
    messages: BTreeMap<String, Message>,
    /// When a VM was killed for want of memory, in Unix seconds, by uuid and name.
    kills: BTreeMap<(String, String), f64>,
}

impl Default for Telling {
    fn default() -> Self {
        let (messages, kills) = Default::default();
        Self { run: None, history: History::of_the_last_minute(), ended_ns: 0, messages, kills }
    }
}

impl Telling {
    /// Adds an interval, see [`slim`](crate::recent::slim), of which only VMs that may be told are needed.
    pub fn add(&mut self, run: &Arc<Run>, interval: Interval) {
        self.history.add(run, interval);
        for vm in &run.vms {
            if let (Some(_), Some(ended_us), Some(uuid)) = (vm.ended_by, vm.ended_us, &vm.uuid) {
                let at = self.kills.entry((uuid.clone(), vm.name.clone())).or_default();
                *at = at.max(ended_us as f64 / 1e6);
            }
        }
        while self.kills.len() > KILLS {
            let oldest = self.kills.iter().min_by(|(_, a), (_, b)| a.total_cmp(b));
            let Some(oldest) = oldest.map(|(whose, _)| whose.clone()) else { break };
            self.kills.remove(&oldest);
        }
        self.run = Some(Arc::clone(run));
        let last = self.history.lines().back().map(|line| line.place);
        let since_ns = last.map_or(0, |last| last.offset_ns.saturating_add(last.length_ns));
        self.ended_ns = run.clocks.start.monotonic_ns.saturating_add(since_ns);
        self.messages.clear();
    }

    /// What a VM is told at that moment of the monotonic clock; `None` of one that is not recorded.
    pub fn message(&mut self, vm_id: &str, now_ns: u64) -> Option<Message> {
        if !self.messages.contains_key(vm_id) {
            let made = self.made(vm_id)?;
            self.messages.insert(vm_id.to_owned(), made);
        }
        let message = self.messages.get(vm_id)?;
        let age_s = rounded(now_ns.saturating_sub(self.ended_ns) as f64 / 1e9);
        Some(Message { age_s, ..message.clone() })
    }

    fn made(&self, vm_id: &str) -> Option<Message> {
        let run = self.run.as_ref()?;
        let line = self.history.lines().back()?;
        let place = run.vms.iter().position(|vm| vm.vm_id == vm_id)?;
        let swapped_in = line.vm(place)?.swapped_in_per_s;
        let vm = &run.vms[place];
        let alone = alone(run, vm);
        let over = |seconds, is_metric: fn(&MetricName) -> bool| {
            let last = self.history.last(seconds * SECOND_NS);
            let of = last.map(|interval| of_one(interval, place, is_metric));
            summary(&alone, of).vms.into_iter().next()
        };
        // Shares come of no histogram, and those are most of the work.
        let (second, ten) = (over(1, |_| false)?, over(10, |_| false)?);
        let minute = over(60, |_| true)?;
        Some(Message {
            unix_s: line.place.end_s(),
            interval_s: rounded(run.options.interval_ns as f64 / 1e9),
            last_1s: shares(&second),
            last_10s: shares(&ten),
            swapped_in_bytes_per_s: swapped_in.map(|pages| (pages * run.page_size as f64).round()),
            host: word(&line.host),
            last_oom_kill_unix_s: self.kill_of(vm),
            ..of_a_minute(&minute)
        })
    }

    fn kill_of(&self, vm: &RunVm) -> Option<f64> {
        let whose = (vm.uuid.clone()?, vm.name.clone());
        self.kills.get(&whose).copied()
    }
}

/// The same run as if it had that VM alone.
fn alone(run: &Run, vm: &RunVm) -> Run {
    Run {
        vms: vec![vm.clone()],
        clocks: run.clocks.clone(),
        recorded: run.recorded,
        coverage: run.coverage.clone(),
        evictions: run.evictions.clone(),
        page_size: run.page_size,
        ..Run::default()
    }
}

/// What an interval holds of one VM, as of the first.
fn of_one(interval: &Interval, place: usize, is_metric: impl Fn(&MetricName) -> bool) -> Interval {
    // Most are in order: all of them would else be walked for each message.
    let found = interval.vms.binary_search_by_key(&place, |vm| vm.vm).ok();
    let found = found.or_else(|| interval.vms.iter().position(|vm| vm.vm == place));
    let vms = found.map(|found| VmInterval { vm: 0, ..interval.vms[found].copied(is_metric) });
    let evictions = interval.evictions.iter().filter(|of| of.victim == Some(place));
    let evictions = evictions.map(|of| Eviction { victim: Some(0), ..of.clone() });
    Interval {
        vms: vms.into_iter().collect(),
        evictions: evictions.collect(),
        host: interval.host,
        place: interval.place,
    }
}

fn summary(run: &Run, intervals: impl Iterator<Item = Interval>) -> Summary {
    let mut summing = Summing::new(run);
    intervals.for_each(|interval| summing.add(&interval));
    summing.summary(run, Marks::default(), Vec::new())
}

fn shares(vm: &SummaryVm) -> Shares {
    Shares {
        seconds: rounded(vm.length_s),
        stall_share: vm.stall.as_ref().map(|stall| rounded(stall.share)),
        cpu_share: vm.cpu_wait.as_ref().map(|cpu| rounded(cpu.share)),
    }
}

/// As precise as recordings have shares.
fn rounded(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

fn of_a_minute(vm: &SummaryVm) -> Message {
    let memory = &vm.memory;
    Message {
        schema: SCHEMA.to_owned(),
        request: None,
        unix_s: 0.0,
        age_s: 0.0,
        interval_s: 0.0,
        verdict: vm.verdict.fared,
        cause: vm.verdict.cause.clone().map(without_neighbours),
        last_1s: Shares::default(),
        last_10s: Shares::default(),
        last_60s: shares(vm),
        held_back_share: vm
            .metric(Metric::MemoryHigh)
            .filter(|metric| metric.coverage != Coverage::Absent)
            .map(|_| rounded(held_back(vm))),
        major_faults: Latency::of(vm.metric(Metric::FaultMajor)),
        minor_faults: Latency::of(vm.metric(Metric::FaultMinor)),
        swapped_in_bytes_per_s: None,
        swapped_bytes: memory.swapped_bytes,
        ballooned_bytes: memory.ballooned_bytes,
        resident_bytes: memory.resident_bytes,
        working_set_bytes: memory.working_set_bytes,
        limit_bytes: memory.cgroup_limit_bytes,
        configured_bytes: memory.configured_bytes,
        host: HostWord::Unknown,
        last_oom_kill_unix_s: None,
    }
}

/// A VM is not told who took its pages.
fn without_neighbours(cause: Cause) -> Cause {
    match cause {
        Cause::OtherVm | Cause::OtherProcess => Cause::HostShort,
        own => own,
    }
}

fn word(host: &HostInterval) -> HostWord {
    match host.swap.state {
        SwapState::Unknown => HostWord::Unknown,
        SwapState::Healthy => HostWord::Calm,
        SwapState::Pressure => HostWord::Swapping,
        SwapState::Thrashing => HostWord::Thrashing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::evictions::{Aggressor, AggressorClass, EvictionCounts};
    use crate::model::interval::{Place, Stall};
    use crate::model::memory::MemoryUse;
    use crate::model::run::{EndedBy, EvictionSight};
    use crate::summary::verdict::Fared;

    const NOW_NS: u64 = 101_500_000_000;

    fn vm(name: &str) -> RunVm {
        let uuid = Some(format!("uuid-of-{name}"));
        RunVm { vm_id: format!("{name}-1"), name: name.to_owned(), uuid, ..RunVm::default() }
    }

    fn run(vms: Vec<RunVm>) -> Arc<Run> {
        let evictions = Some(EvictionSight::default());
        Arc::new(Run { vms, page_size: 4096, evictions, ..Run::default() })
    }

    /// A second in which the first VM waited for so many milliseconds, because the second one took
    /// its pages.
    fn second(number: u64, waited_ms: u64) -> Interval {
        let start_us = 1_700_000_000_000_000 + number * 1_000_000;
        // As boundaries come: not of quite the same length.
        let length_ns = SECOND_NS - number % 2 * 1_000_000;
        let offset_ns = number * SECOND_NS + number % 2 * 1_000_000;
        let of = |vm, waited_ns| {
            let stall = Stall { waited_ns, vcpu_ns: SECOND_NS, ..Stall::default() };
            let (resident, swapped) = (7 << 20, 3 << 20);
            let memory = Some(MemoryUse { resident, swapped, ..MemoryUse::default() });
            let stall = Some(stall);
            VmInterval { vm, stall, memory, cpu_wait_ns: Some(0), ..VmInterval::default() }
        };
        let name = "neighbour".to_owned();
        let aggressor = Aggressor { class: AggressorClass::Vm, id: "neighbour-1".into(), name };
        let counts = EvictionCounts { written_pages: 9_000, ..EvictionCounts::default() };
        Interval {
            place: Place { number, start_us, length_ns, offset_ns, ..Place::default() },
            vms: vec![of(0, waited_ms * 1_000_000), of(1, 0)],
            evictions: vec![Eviction { victim: Some(0), aggressor, counts }],
            ..Interval::default()
        }
    }

    #[test]
    fn shares_are_of_the_last_second_ten_seconds_and_minute() {
        let run = run(vec![vm("web"), vm("neighbour")]);
        let mut telling = Telling::default();
        assert!(telling.message("web-1", NOW_NS).is_none());
        for number in 0..100 {
            telling.add(&run, second(number, if number < 95 { 0 } else { 400 }));
        }
        let message = telling.message("web-1", NOW_NS).unwrap();
        let share = |of: Shares| (of.stall_share.unwrap() * 1e3).round() / 1e3;
        let [one, ten, minute] = [message.last_1s, message.last_10s, message.last_60s].map(share);
        assert_eq!((one, ten, minute), (0.4, 0.2, 0.033));
        assert!((message.last_10s.seconds - 10.0).abs() < 0.1, "{:?}", message.last_10s);
        assert!((message.unix_s - 1_700_000_100.0).abs() < 0.01, "{}", message.unix_s);
        assert_eq!(message.swapped_bytes, Some(3 << 20));
        assert_eq!(telling.message("neighbour-1", NOW_NS).unwrap().last_60s.stall_share, Some(0.0));
        assert!(telling.message("other-1", NOW_NS).is_none());
        // The hundredth one began after ninety-nine, and the recording at no second.
        assert_eq!(message.age_s, 1.5);
    }

    #[test]
    fn nothing_tells_of_a_neighbour() {
        let run = run(vec![vm("web"), vm("neighbour")]);
        let mut telling = Telling::default();
        telling.add(&run, second(0, 400));
        let message = telling.message("web-1", NOW_NS).unwrap();
        assert_eq!(
            (message.verdict, message.cause.clone()),
            (Fared::Slowed, Some(Cause::HostShort))
        );
        let line = serde_json::to_string(&message).unwrap();
        assert!(!line.contains("neighbour") && !line.contains("other"), "{line}");
    }

    #[test]
    fn a_kill_is_told_to_who_comes_after_it_under_the_same_uuid_and_name() {
        let killed = RunVm {
            ended_by: Some(EndedBy::OomCgroup),
            ended_us: Some(1_700_000_000_500_000),
            ..vm("web")
        };
        let mut telling = Telling::default();
        telling.add(&run(vec![killed, vm("neighbour")]), second(0, 0));
        let again = RunVm { vm_id: "web-2".to_owned(), ..vm("web") };
        telling.add(&run(vec![again, vm("neighbour")]), second(1, 0));
        let told =
            |telling: &mut Telling, id| telling.message(id, NOW_NS).unwrap().last_oom_kill_unix_s;
        assert_eq!(told(&mut telling, "web-2"), Some(1_700_000_000.5));
        assert_eq!(told(&mut telling, "neighbour-1"), None);
    }
}
