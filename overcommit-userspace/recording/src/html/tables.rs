//! What of a recording stands in the page as tables, readable without its script.

use crate::format::text::{percent, readable, time_of_day};
use crate::html::timeline::{GIB, HostColumn, MIB, Timeline};
use crate::model::coverage::{Coverage, Seen};
use crate::model::figures::VmFigures;
use crate::model::memory::Source;
use crate::model::run::Run;
use crate::slo::{Judged, Verdict as Outcome};
use crate::summary::verdict::{Fared, worst_first};
use crate::summary::{Summary, SummaryMetric, SummaryVm};
use crate::view::summary_text::value_of;
use overcommit_ebpf::layout::Metric;
use std::collections::BTreeMap;

/// VMs of which it is drawn whether they fit.
const FIT: usize = 24;

/// A figure and its unit in one piece.
pub(super) fn whole(text: &str) -> String {
    text.replace(' ', "\u{a0}").replace("\u{a0}us", "\u{a0}µs")
}

pub(super) fn latency(ns: Option<u64>) -> String {
    ns.map_or("–".to_owned(), |ns| whole(&readable(ns)))
}

pub(super) fn share(share: Option<f64>) -> String {
    share.map_or("not seen".to_owned(), |share| whole(&percent(share)))
}

/// With commas between thousands.
pub(super) fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

pub(super) fn gib(bytes: u64) -> f64 {
    bytes as f64 / GIB
}

/// What it needs: a range, or a bound.
fn needs(memory: &VmFigures) -> Option<String> {
    let set = memory.working_set_bytes?;
    let (lower, upper) = (gib(set.lower), gib(set.upper));
    Some(match is_measured(memory) {
        true => format!("{lower:.1} – {upper:.1}"),
        false => format!("≤\u{a0}{upper:.1}"),
    })
}

fn is_measured(memory: &VmFigures) -> bool {
    memory.working_set_source.is_some_and(Source::is_measured)
}

/// A quantile of so many samples; a word where they are too few for it.
fn quantile(
    metric: Option<&SummaryMetric>,
    of: fn(&SummaryMetric) -> Option<u64>,
    least: u64,
) -> String {
    match metric {
        None => "–".to_owned(),
        Some(metric) if metric.count == 0 => "–".to_owned(),
        Some(metric) if metric.count < least => "too few".to_owned(),
        Some(metric) => latency(of(metric)),
    }
}

/// A class of text, and the word.
pub(super) const fn word(fared: Fared) -> (&'static str, &'static str) {
    match fared {
        Fared::Ok => ("dim", "ok"),
        Fared::Unseen => ("warnt", "not seen"),
        Fared::Starved => ("warnt", "starved"),
        Fared::Slowed => ("warnt", "slowed"),
        Fared::Thrashed => ("harmt", "thrashed"),
        Fared::Crashed => ("harmt", "crashed"),
        Fared::Killed => ("harmt", "killed"),
    }
}

/// An objective that was broken, held or not judged.
pub(super) struct ObjectiveRow {
    pub(super) class: &'static str,
    pub(super) word: &'static str,
    pub(super) vm: String,
    pub(super) objective: String,
    pub(super) value: String,
    pub(super) about: String,
}

/// The broken ones first.
pub(super) fn objectives(judged: &[Judged]) -> Vec<ObjectiveRow> {
    let kinds = [
        (Outcome::Broken, "harmt", "BROKEN"),
        (Outcome::NotJudged, "warnt", "not judged"),
        (Outcome::Held, "dim", "held"),
    ];
    let rows = kinds.into_iter().flat_map(|(outcome, class, word)| {
        let of = judged.iter().filter(move |judged| judged.verdict == outcome);
        of.map(move |judged| objective(judged, class, word))
    });
    rows.collect()
}

fn objective(judged: &Judged, class: &'static str, word: &'static str) -> ObjectiveRow {
    let of = judged.intervals;
    let all = of.broken + of.held + of.not_judged;
    let broken = (of.broken > 0).then(|| {
        format!("broken in {} of {all} intervals, {:.1} s in a row", of.broken, of.longest_broken_s)
    });
    let about: Vec<String> = broken.into_iter().chain(judged.why.clone()).collect();
    ObjectiveRow {
        class,
        word,
        vm: judged.vm.clone().unwrap_or_default(),
        objective: judged.objective.clone(),
        value: whole(&value_of(judged).unwrap_or_else(|| "–".to_owned())),
        about: about.join("; "),
    }
}

/// The host minute by minute, or in sixty parts of a longer time: means, and the least that was
/// available.
pub(super) fn minutes(timeline: &Timeline) -> Vec<[String; 6]> {
    let width = ((60 / timeline.step_s).max(1) as usize).max(timeline.columns.div_ceil(60));
    let number = |value: Option<f64>| value.map_or("–".to_owned(), |value| format!("{value:.1}"));
    let rows = timeline.host.chunks(width).enumerate();
    let recorded = rows.filter(|(_, columns)| columns.iter().any(|column| column.is_recorded));
    recorded
        .map(|(place, columns)| {
            let at_s = timeline.start_s() + ((place * width) as u64 * timeline.step_s) as f64;
            let mean = |of: &dyn Fn(&HostColumn) -> Option<f64>| {
                let values: Vec<f64> = columns.iter().filter_map(of).collect();
                number(
                    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64),
                )
            };
            let available = columns.iter().filter_map(|column| column.available).reduce(f64::min);
            [
                time_of_day(at_s).replace(" UTC", ""),
                number(available),
                mean(&|column| timeline.swapped(column)[0]),
                mean(&|column| timeline.swapped(column)[1]),
                mean(&|column| column.pressure()[0]),
                mean(&|column| column.pressure()[1]),
            ]
        })
        .collect()
}

/// A VM in the table of all.
pub(super) struct VmRow {
    pub(super) vm_id: String,
    pub(super) name: String,
    pub(super) class: &'static str,
    pub(super) word: &'static str,
    pub(super) cells: Vec<VmCell>,
}

/// A figure of it: what the script knows it by, what it is sorted by, and how it is shown.
pub(super) struct VmCell {
    pub(super) key: &'static str,
    pub(super) value: f64,
    pub(super) text: String,
}

/// The columns of figures, with their heads.
pub(super) const COLUMNS: [(&str, &str); 12] = [
    ("stall", "stall"),
    ("cpu", "CPU wait"),
    ("rate", "majors/s"),
    ("p50", "p50"),
    ("p99", "p99"),
    ("p999", "p99.9"),
    ("max", "max"),
    ("lost", "lost, MiB"),
    ("needs", "needs, GiB"),
    ("ram", "RAM, GiB"),
    ("held", "held, GiB"),
    ("limit", "limit, GiB"),
];

/// Each VM, the worst first.
pub(super) fn vms(summary: &Summary) -> Vec<VmRow> {
    let mut seen: Vec<&SummaryVm> = summary.seen().collect();
    seen.sort_by(|a, b| worst_first(a, b));
    seen.into_iter().map(vm_row).collect()
}

fn vm_row(vm: &SummaryVm) -> VmRow {
    let majors = vm.metric(Metric::FaultMajor);
    let quantile = |of: fn(&SummaryMetric) -> Option<u64>, least| {
        let value = majors.filter(|majors| majors.count >= least).and_then(of);
        (value.map(|ns| ns as f64), quantile(majors, of, least))
    };
    let number =
        |value: Option<f64>| (value, value.map_or("–".to_owned(), |value| format!("{value:.1}")));
    let memory = &vm.memory;
    let [stall, cpu] =
        [vm.stall.as_ref().map(|of| of.share), vm.cpu_wait.as_ref().map(|of| of.share)];
    let lost = vm.evictions.as_ref().map(|of| of.bytes as f64 / MIB);
    let figures = [
        (stall, share(stall)),
        (cpu, share(cpu)),
        number(majors.map(|of| of.rate_per_s)),
        quantile(|of| of.p50_ns, 2),
        quantile(|of| of.p99_ns, 100),
        quantile(|of| of.p999_ns, 1_000),
        quantile(|of| of.max_ns, 1),
        (lost, lost.map_or("not seen".to_owned(), |lost| count(lost as u64))),
        (
            memory.working_set_bytes.map(|set| gib(set.upper)),
            needs(memory).unwrap_or("–".to_owned()),
        ),
        number(memory.configured_bytes.map(gib)),
        number(memory.resident_bytes.map(gib)),
        number(memory.cgroup_limit_bytes.map(gib)),
    ];
    let (class, word) = word(vm.verdict.fared);
    let cells = COLUMNS.iter().zip(figures).map(|((key, _), (value, text))| VmCell {
        key,
        value: value.unwrap_or(-1.0),
        text,
    });
    VmRow { vm_id: vm.vm_id.clone(), name: vm.vm.clone(), class, word, cells: cells.collect() }
}

/// The percentiles of a VM's major faults.
pub(super) fn percentiles(vm: &SummaryVm) -> [String; 6] {
    let majors = vm.metric(Metric::FaultMajor);
    [
        quantile(majors, |of| of.p50_ns, 2),
        quantile(majors, |of| of.p90_ns, 10),
        quantile(majors, |of| of.p99_ns, 100),
        quantile(majors, |of| of.p999_ns, 1_000),
        quantile(majors, |of| of.max_ns, 1),
        count(majors.map_or(0, |of| of.count)),
    ]
}

/// Whether a VM's memory fits what it needs: parts of the width of the largest one, in per cent.
pub(super) struct FitRow {
    pub(super) name: String,
    pub(super) ram: f64,
    pub(super) balloon: Option<f64>,
    pub(super) lower: f64,
    pub(super) more: f64,
    pub(super) is_measured: bool,
    pub(super) resident: Option<f64>,
    pub(super) limit: Option<f64>,
    pub(super) text: String,
    pub(super) is_short: bool,
}

/// The worst first; and the GiB of the whole width.
pub(super) fn fit(summary: &Summary) -> (Vec<FitRow>, f64) {
    let mut seen: Vec<&SummaryVm> = summary.seen().collect();
    seen.sort_by(|a, b| worst_first(a, b));
    seen.retain(|vm| vm.memory.configured_bytes.is_some() && vm.memory.working_set_bytes.is_some());
    seen.truncate(FIT);
    let most = seen.iter().filter_map(|vm| vm.memory.configured_bytes).max().unwrap_or(1).max(1);
    let part = |bytes: u64| 100.0 * bytes as f64 / most as f64;
    let row = |vm: &&SummaryVm| {
        let memory = &vm.memory;
        let ram = memory.configured_bytes.unwrap_or(0);
        let set = memory.working_set_bytes.unwrap_or_default();
        let is_measured = is_measured(memory);
        let needs = needs(memory).unwrap_or_default();
        let available = ram - memory.ballooned_bytes.unwrap_or(0).min(ram);
        let limit = memory.cgroup_limit_bytes;
        FitRow {
            name: vm.vm.clone(),
            ram: part(ram),
            balloon: memory
                .ballooned_bytes
                .filter(|bytes| *bytes > 0)
                .map(|bytes| part(bytes.min(ram))),
            lower: if is_measured { part(set.lower.min(most)) } else { 0.0 },
            more: part(set.upper.min(most))
                - if is_measured { part(set.lower.min(most)) } else { 0.0 },
            is_measured,
            resident: memory.resident_bytes.map(|bytes| part(bytes.min(most))),
            limit: limit.map(|bytes| part(bytes.min(most))),
            text: format!("{needs} of {:.1}", gib(ram)),
            is_short: is_measured && set.lower > available.min(limit.unwrap_or(u64::MAX)),
        }
    };
    (seen.iter().map(row).collect(), gib(most))
}

/// What was measured, how much of it was seen, and what was not.
pub(super) fn coverage(run: &Run, summary: &Summary) -> Vec<[String; 3]> {
    let mut rows: Vec<[String; 3]> = Vec::new();
    let (counted, kernel) = summary.seen().fold((0u64, 0u64), |(counted, kernel), vm| {
        (counted.saturating_add(vm.faults_counted), kernel.saturating_add(vm.faults_kernel))
    });
    let seen = Seen { counted, kernel }.coverage();
    let of = format!("{} counted, {} by the kernel’s own counters", count(counted), count(kernel));
    rows.push(["page faults".to_owned(), how_much(seen).to_owned(), of]);
    for metric in &run.coverage {
        let not_seen = metric.not_seen.join("; ");
        rows.push([metric.metric.clone(), how_much(metric.coverage).to_owned(), not_seen]);
    }
    let mut lost: BTreeMap<&str, u64> = BTreeMap::new();
    for (cause, count) in summary.seen().flat_map(|vm| &vm.not_counted) {
        *lost.entry(cause).or_default() += count;
    }
    for (cause, lost) in lost.into_iter().filter(|(_, lost)| *lost > 0) {
        rows.push([cause.to_owned(), "not counted".to_owned(), count(lost)]);
    }
    rows
}

const fn how_much(coverage: Coverage) -> &'static str {
    match coverage {
        Coverage::Full => "full",
        Coverage::Partial => "in part",
        Coverage::Absent => "not seen",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(latency(Some(1_500)), "1.50\u{a0}µs");
        assert_eq!(share(None), "not seen");
    }
}
