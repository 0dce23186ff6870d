//! The page: what stands in it, in which order.

use crate::format::text::{percent, readable, readable_bytes, time_of_day, vms as how_many};
use crate::html::data::{Drawn, Limit, Slow, pack, states};
use crate::html::matrix::Matrix;
use crate::html::tables::{
    COLUMNS, FitRow, ObjectiveRow, VmRow, count, coverage, fit, latency, minutes, objectives,
    percentiles, share, vms, whole, word,
};
use crate::html::timeline::{CPU, MEMORY, METRICS, Timeline};
use crate::model::interval::Interval;
use crate::model::metric::MetricName;
use crate::model::name::escape;
use crate::model::run::Run;
use crate::model::slow_fault::SlowFault;
use crate::model::state::State;
use crate::model::swap::SwapState;
use crate::recent::cause_of;
use crate::recording::{Folder, Recording, Span, span};
use crate::slo::Objective;
use crate::slo::objective::Bound;
use crate::summary::cause::Cause;
use crate::summary::verdict::{Fared, worst_first};
use crate::summary::{Summary, SummaryVm};
use crate::view::style::plain;
use crate::view::verdict_text::what;
use crate::view::{cost_text, losses};
use anyhow::Result;
use askama::Template;
use overcommit_ebpf::layout::Metric;
use std::collections::{BTreeMap, BTreeSet};

/// VMs that are drawn at length, of which so many took from others; and those that are drawn besides.
const LONG: usize = 8;
const TAKERS: usize = 2;
const BRIEF: usize = 42;
/// Verdicts that are told one by one.
const VERDICTS: usize = 50;
/// Points of a small curve.
const POINTS: usize = 90;
/// VMs that a title names.
const NAMED: usize = 3;

/// The library that draws the plots, which is not ours: its script and style.
#[derive(Clone, Copy, Debug)]
pub struct Library {
    /// The script.
    pub script: &'static str,
    /// The style.
    pub style: &'static str,
}

/// What a page is made of, interval by interval.
#[derive(Debug)]
pub struct Plots(Timeline);

impl Plots {
    /// Of a recording.
    ///
    /// # Errors
    /// Its marks cannot be read.
    pub fn new(run: &Run, folder: &Folder) -> Result<Self> {
        Ok(Self(Timeline::new(run, &span::marks(folder)?)))
    }

    /// Adds an interval.
    pub fn add(&mut self, interval: &Interval) {
        self.0.add(interval);
    }

    /// The page of that part of a recording.
    ///
    /// # Errors
    /// The slow faults cannot be read, or there is no memory.
    pub fn page(
        mut self,
        recording: &Recording,
        summary: &Summary,
        span: Span,
        objectives: &[Objective],
        library: Library,
    ) -> Result<String> {
        self.0.end();
        let timeline = &self.0;
        let drawn = drawn(&recording.run, summary, timeline);
        let places: BTreeSet<usize> = drawn.iter().map(|vm| vm.place).collect();
        let mut slow = Slow::default();
        recording.each_slow_fault(|fault: &SlowFault| {
            let column = timeline.column(fault.end_ns / 1_000);
            let is_shown = places.contains(&fault.vm) && column < timeline.columns;
            if is_shown && span.holds(fault.end_ns / 1_000, 0) {
                slow.add(column, fault);
            }
            Ok(())
        })?;
        slow.keep_slowest();
        let page = Page::of(&recording.run, summary, objectives, timeline, &drawn, &slow, library)?;
        Ok(page.render()?)
    }
}

/// A VM that was hurt, or took from others.
struct Verdict {
    tag: &'static str,
    class: &'static str,
    name: String,
    what: String,
    rows: Vec<(&'static str, String)>,
    figure: String,
    about: &'static str,
    /// The points of its stall over time, if it is drawn.
    curve: Option<String>,
}

/// A VM that is well.
struct Quiet {
    name: String,
    stall: String,
    p99: String,
    majors: String,
}

/// What the template takes. All text is escaped by it, but for what is marked as safe there: the
/// script, the style and the data, which is base64.
#[derive(Template)]
#[template(path = "report.html")]
struct Page {
    title: String,
    facts: String,
    host: String,
    verdicts: Vec<Verdict>,
    quiet_title: String,
    quiet: Vec<Quiet>,
    objectives: Vec<ObjectiveRow>,
    states: Vec<[String; 3]>,
    minutes: Vec<[String; 6]>,
    percentiles: Vec<(String, [String; 6])>,
    /// What the page is of, where no other span is chosen.
    whole: &'static str,
    matrix: Matrix,
    fit: Vec<FitRow>,
    fit_ticks: Vec<(f64, String)>,
    columns: [(&'static str, &'static str); 12],
    vms: Vec<VmRow>,
    coverage: Vec<[String; 3]>,
    measured: String,
    foot: Vec<String>,
    data: String,
    library: Library,
    style: &'static str,
    script: &'static str,
}

impl Page {
    fn of(
        run: &Run,
        summary: &Summary,
        objectives_of: &[Objective],
        timeline: &Timeline,
        drawn: &[Drawn],
        slow: &Slow,
        library: Library,
    ) -> Result<Self> {
        let matrix = Matrix::of(run, summary, &timeline.taken, timeline.edges.len() - 1);
        let limits = limits(run, objectives_of);
        let (data, left) = pack(timeline, drawn, &limits, slow, &matrix)?;
        let mut foot = Vec::new();
        foot.extend(
            left.words().map(|what| format!("Left out so that this file stays small: {what}.")),
        );
        if timeline.full_from.is_some() {
            foot.push("The latency maps end early: there were too many faults to draw.".to_owned());
        }
        if timeline.without_span > 0 {
            let marks = timeline.marks.len();
            let chosen = marks.saturating_sub(timeline.without_span);
            foot.push(format!(
                "Of {marks} marks only the first {chosen} can be chosen for a span."
            ));
        }
        if timeline.step_s > 1 {
            foot.push(format!("A column of the plots is {} s.", timeline.step_s));
        }
        let (fit, width) = fit(summary);
        let quiet: Vec<&SummaryVm> =
            summary.seen().filter(|vm| vm.verdict.fared <= Fared::Unseen).collect();
        let mut seen: Vec<&SummaryVm> = summary.seen().collect();
        seen.sort_by(|a, b| worst_first(a, b));
        Ok(Self {
            title: title(run, summary),
            facts: facts(run, summary),
            host: host(summary),
            verdicts: verdicts(summary, timeline, drawn),
            quiet_title: quiet_title(&quiet),
            quiet: quiet.into_iter().map(quiet_row).collect(),
            objectives: objectives(&summary.objectives),
            states: states_table(timeline, drawn),
            minutes: minutes(timeline),
            percentiles: seen.iter().map(|vm| (vm.vm.clone(), percentiles(vm))).collect(),
            whole: whole_of(summary),
            matrix,
            fit,
            fit_ticks: (0..=4)
                .map(|k| (25.0 * f64::from(k), tick(width * f64::from(k) / 4.0)))
                .collect(),
            columns: COLUMNS,
            vms: vms(summary),
            coverage: coverage(run, summary),
            measured: measured(run),
            foot,
            data,
            library,
            style: include_str!("../../templates/style.css"),
            script: include_str!("../../templates/report.js"),
        })
    }
}

/// The VMs that were hurt, the worst first, and those that took from them.
fn hurt_and_takers(summary: &Summary) -> (Vec<&SummaryVm>, Vec<&SummaryVm>) {
    let takers: BTreeSet<&str> = summary.seen().filter_map(cause_of).collect();
    let mut hurt: Vec<&SummaryVm> =
        summary.seen().filter(|vm| vm.verdict.fared > Fared::Unseen).collect();
    hurt.sort_by(|a, b| worst_first(a, b));
    let is_taker =
        |vm: &&SummaryVm| vm.verdict.fared <= Fared::Unseen && takers.contains(vm.vm_id.as_str());
    (hurt, summary.seen().filter(is_taker).collect())
}

/// The VMs that are drawn: at length the worst and who took from them; in brief others.
fn drawn(run: &Run, summary: &Summary, timeline: &Timeline) -> Vec<Drawn> {
    let (hurt, takers) = hurt_and_takers(summary);
    let takers = &takers[..takers.len().min(TAKERS)];
    let worst = &hurt[..hurt.len().min(LONG - takers.len())];
    let long: Vec<&SummaryVm> = worst.iter().chain(takers).copied().collect();
    let ranks: BTreeMap<&str, usize> =
        long.iter().enumerate().map(|(rank, vm)| (vm.vm_id.as_str(), rank)).collect();
    let mut others: Vec<&SummaryVm> =
        summary.seen().filter(|vm| !ranks.contains_key(vm.vm_id.as_str())).collect();
    others.sort_by(|a, b| worst_first(a, b));
    let mut names: BTreeMap<&str, usize> = BTreeMap::new();
    summary.vms.iter().for_each(|vm| *names.entry(&vm.vm).or_default() += 1);
    let places: BTreeMap<&str, usize> =
        summary.vms.iter().enumerate().map(|(place, vm)| (vm.vm_id.as_str(), place)).collect();
    let all = long.iter().copied().chain(others.into_iter().take(BRIEF));
    all.map(|vm| {
        let place = places[vm.vm_id.as_str()];
        let is_only = names.get(vm.vm.as_str()) == Some(&1);
        let died = vm.ended_unix_s.map(|unix_s| timeline.column((unix_s * 1e6) as u64) + 1);
        Drawn {
            place,
            vm_id: vm.vm_id.clone(),
            name: if is_only { vm.vm.clone() } else { format!("{} ({})", vm.vm, vm.pid) },
            rank: ranks.get(vm.vm_id.as_str()).copied(),
            has_stall: vm.stall.is_some(),
            has_cpu: vm.cpu_wait.is_some(),
            born: timeline.column(run.vms[place].first_seen_us).min(timeline.columns),
            died: died.unwrap_or(timeline.columns).min(timeline.columns),
            end: match vm.verdict.fared {
                Fared::Killed => "killed",
                Fared::Crashed => "crashed",
                _ if died.is_some() => "ended",
                _ => "",
            },
        }
    })
    .collect()
}

/// The objectives that are on latencies of metrics that are drawn.
fn limits(run: &Run, objectives: &[Objective]) -> Vec<Limit> {
    let drawn: [MetricName; 2] = METRICS.map(Into::into);
    let limits = objectives.iter().filter_map(|objective| match &objective.bound {
        Bound::Latency { metric, quantile, limit_ns } if drawn.contains(metric) => Some(Limit {
            metric: metric.as_str().to_owned(),
            quantile: quantile.value(),
            limit_ns: *limit_ns,
            text: objective.to_string(),
            places: (0..run.vms.len()).filter(|place| objective.is_for(&run.vms[*place])).collect(),
        }),
        _ => None,
    });
    limits.collect()
}

/// The finding, in a line.
fn title(run: &Run, summary: &Summary) -> String {
    if let Some(nothing) = summary.nothing(run) {
        return nothing;
    }
    let kinds = [
        (Fared::Killed, "killed"),
        (Fared::Crashed, "crashed"),
        (Fared::Thrashed, "thrashed"),
        (Fared::Slowed, "slowed"),
        (Fared::Starved, "starved by its balloon"),
    ];
    let mut said = Vec::new();
    for (fared, word) in kinds {
        let names: Vec<&str> = summary
            .seen()
            .filter(|vm| vm.verdict.fared == fared)
            .map(|vm| vm.vm.as_str())
            .collect();
        let passive = matches!(fared, Fared::Killed | Fared::Slowed | Fared::Starved);
        let were = match (passive, names.len()) {
            (false, _) => "",
            (true, 1) => "was ",
            (true, _) => "were ",
        };
        if !names.is_empty() {
            said.push(format!("{} {were}{word}", some(&names)));
        }
    }
    let takers: BTreeSet<&str> = summary.seen().filter_map(|vm| vm.verdict.by.as_deref()).collect();
    let takers: Vec<&str> = takers.into_iter().collect();
    match (said.is_empty(), takers.is_empty()) {
        (true, _) => {
            let unseen = summary.seen().filter(|vm| vm.verdict.fared == Fared::Unseen).count();
            let all = how_many(summary.seen().count());
            if unseen == 0 {
                format!("{all}: none was hurt")
            } else {
                format!("{all}: none was seen to be hurt, {unseen} could not be judged")
            }
        }
        (false, true) => said.join(", "),
        (false, false) => format!("{}; {} took the memory", said.join(", "), some(&takers)),
    }
}

/// Those that are well, by at most how much they lost, and those that were not judged.
fn quiet_title(quiet: &[&SummaryVm]) -> String {
    let (ok, unseen): (Vec<&SummaryVm>, Vec<&SummaryVm>) =
        quiet.iter().partition(|vm| vm.verdict.fared == Fared::Ok);
    let worst = ok.iter().map(|vm| vm.loss()).fold(0.0, f64::max);
    // Up, so that it is true.
    let worst = whole(&percent((worst * 1_000.0).ceil() / 1_000.0));
    let mut said = Vec::new();
    if !ok.is_empty() {
        said.push(format!(
            "{} OK: none lost more than {worst} of its vCPU time",
            how_many(ok.len())
        ));
    }
    if !unseen.is_empty() {
        said.push(format!("{} not judged", how_many(unseen.len())));
    }
    said.join("; ")
}

/// Names, or a few of them and how many more there are.
fn some(names: &[&str]) -> String {
    match names {
        [one] => (*one).to_owned(),
        [most @ .., last] if names.len() <= NAMED => format!("{} and {last}", most.join(", ")),
        _ => format!("{} and {} others", names[..NAMED - 1].join(", "), names.len() - NAMED + 1),
    }
}

/// What the page is of; the marks of a part stand at its head.
fn whole_of(summary: &Summary) -> &'static str {
    let is_part = summary.marks.from.is_some() || summary.marks.to.is_some();
    if is_part { "the whole part" } else { "whole recording" }
}

/// Which recording it is.
fn facts(run: &Run, summary: &Summary) -> String {
    let start = jiff::Timestamp::from_second(summary.start_unix_s as i64).unwrap_or_default();
    let mut facts = vec![
        run.host.clone(),
        format!("{} – {}", start.strftime("%Y-%m-%d %H:%M:%S"), time_of_day(summary.end_unix_s)),
        format!("{:.0} s", summary.length_s),
        how_many(summary.seen().count()),
    ];
    let mark =
        |word: &str, mark: &Option<String>| mark.as_ref().map(|mark| format!("{word} mark {mark}"));
    facts.extend(mark("from", &summary.marks.from));
    facts.extend(mark("to", &summary.marks.to));
    let labels = &run.options.labels;
    facts.extend(labels.iter().map(|(key, value)| escape(format!("{key}={value}").as_bytes())));
    if !run.options.command.is_empty() {
        facts.push(escape(run.options.command.join(" ").as_bytes()));
    }
    facts.push(format!("overcommit {}", run.tool_version));
    facts.join(" · ")
}

/// GiB at an axis.
fn tick(gib: f64) -> String {
    if gib >= 10.0 || gib == 0.0 { format!("{gib:.0}") } else { format!("{gib:.1}") }
}

/// What became of the host.
fn host(summary: &Summary) -> String {
    let host = &summary.host;
    let mut said = Vec::new();
    let seconds = host.swap.seconds.iter().rev().filter(|(state, _)| **state > SwapState::Healthy);
    let states: Vec<String> = seconds
        .map(|(state, seconds)| {
            let word = state.name();
            format!("{word} for {seconds:.0} s")
        })
        .collect();
    let is_known = host.swap.seconds.keys().any(|state| *state != SwapState::Unknown);
    said.push(match states.is_empty() {
        true if !is_known => "How the host swapped is not known.".to_owned(),
        true => "The host did not swap enough to hurt.".to_owned(),
        false => format!("Swapping on the host: {}.", states.join(", ")),
    });
    let memory = &host.memory;
    if let (Some(least), Some(all)) = (memory.least_available_bytes, memory.physical_bytes) {
        said.push(format!(
            "At the lowest point, {} of {} was available.",
            readable_bytes(least),
            readable_bytes(all)
        ));
    }
    if let (Some(configured), Some(all)) = (memory.configured_bytes, memory.physical_bytes) {
        let ratio = configured as f64 / all.max(1) as f64;
        said.push(format!(
            "VMs are configured with {} ({ratio:.2} × RAM).",
            readable_bytes(configured)
        ));
    }
    said.join(" ")
}

fn verdicts(summary: &Summary, timeline: &Timeline, drawn: &[Drawn]) -> Vec<Verdict> {
    let (hurt, takers) = hurt_and_takers(summary);
    let is_long =
        |vm: &&&SummaryVm| drawn.iter().any(|of| of.vm_id == vm.vm_id && of.rank.is_some());
    // Those that are drawn at length first, in their order: links count them.
    let (long, others): (Vec<_>, Vec<_>) = hurt.iter().chain(&takers).partition(is_long);
    let all = long.into_iter().chain(others).take(VERDICTS);
    all.map(|vm| verdict(summary, timeline, vm, drawn.iter().find(|of| of.vm_id == vm.vm_id)))
        .collect()
}

fn verdict(summary: &Summary, timeline: &Timeline, vm: &SummaryVm, of: Option<&Drawn>) -> Verdict {
    let fared = vm.verdict.fared;
    let mut rows = Vec::new();
    rows.extend(vm.verdict.why.clone().map(|why| ("Cause", why)));
    let evidence = evidence(vm);
    rows.extend((!evidence.is_empty()).then_some(("Evidence", evidence)));
    rows.extend(vm.verdict.advice.clone().map(|advice| ("Try", advice)));
    let (tag, class) = match fared {
        Fared::Killed | Fared::Crashed | Fared::Thrashed => (fared.word(), "harm"),
        Fared::Slowed | Fared::Starved => (fared.word(), "warn"),
        Fared::Ok | Fared::Unseen => ("CAUSE", "note"),
    };
    let is_cpu = vm.verdict.cause == Some(Cause::Cpu);
    let (figure, about, series) = if is_cpu {
        (vm.cpu_wait.as_ref().map(|of| of.share), "of its vCPU time spent waiting for a CPU", CPU)
    } else {
        (vm.stall.as_ref().map(|of| of.share), "of its vCPU time lost to memory", MEMORY)
    };
    Verdict {
        tag,
        class,
        name: of.map_or_else(|| vm.vm.clone(), |of| of.name.clone()),
        what: what_became(summary, vm),
        rows,
        figure: share(figure),
        about,
        curve: of.and_then(|of| curve(timeline, of, series)),
    }
}

/// What became of it, as the rest of a sentence that begins with its name.
fn what_became(summary: &Summary, vm: &SummaryVm) -> String {
    let fared = vm.verdict.fared;
    if fared <= Fared::Unseen {
        let hurt = summary.seen().filter(|other| cause_of(other) == Some(vm.vm_id.as_str()));
        let hurt: Vec<&str> = hurt.map(|other| other.vm.as_str()).collect();
        return format!("was not hurt itself. It took memory from {}.", some(&hurt));
    }
    let said = plain(&what(vm));
    let rest = said.strip_prefix(fared.word()).unwrap_or(&said);
    match fared {
        Fared::Killed => format!("was killed{rest}."),
        Fared::Crashed => format!("crashed{rest}."),
        _ => format!("{}.", rest.trim_start_matches(": ")),
    }
}

/// The figures that say so.
fn evidence(vm: &SummaryVm) -> String {
    let mut said = Vec::new();
    if let Some(majors) = vm.metric(Metric::FaultMajor).filter(|majors| majors.count > 0) {
        let p99 = majors.p99_ns.filter(|_| majors.count >= 100).map(|ns| latency(Some(ns)));
        let p99 = p99.map(|p99| format!(", p99 {p99}")).unwrap_or_default();
        said.push(format!("{:.1} major faults/s{p99}", majors.rate_per_s));
    }
    let parts = losses::shares_of(vm);
    let parts =
        parts.iter().take(3).map(|(name, share)| format!("{} {name}", whole(&percent(*share))));
    said.extend(Some(parts.collect::<Vec<_>>().join(", ")).filter(|parts| !parts.is_empty()));
    said.extend(vm.evictions.as_ref().and_then(|of| of.sentence(&vm.vm_id)));
    said.join("; ")
}

/// One of its series over time, in a box of 168 by 26.
fn curve(timeline: &Timeline, of: &Drawn, series: usize) -> Option<String> {
    let vm = timeline.vms.get(of.place)?;
    let width = timeline.columns.div_ceil(POINTS).max(1);
    let most_of = |from: usize| {
        let columns = from..(from + width).min(timeline.columns);
        columns.map(|column| vm.at(column).series[series]).fold(0.0, f32::max)
    };
    let sums: Vec<f32> = (0..timeline.columns).step_by(width).map(most_of).collect();
    let most = sums.iter().copied().fold(1.0, f32::max);
    let last = sums.len().saturating_sub(1).max(1);
    let point = |(place, sum): (usize, &f32)| {
        let x = 168.0 * place as f64 / last as f64;
        let y = 26.0 - 24.0 * f64::from(*sum) / f64::from(most);
        format!("{x:.1},{y:.1}")
    };
    Some(sums.iter().enumerate().map(point).collect::<Vec<_>>().join(" "))
}

fn quiet_row(vm: &SummaryVm) -> Quiet {
    let majors = vm.metric(Metric::FaultMajor);
    let p99 = majors.filter(|of| of.count >= 100).and_then(|of| of.p99_ns);
    Quiet {
        name: vm.vm.clone(),
        stall: match vm.verdict.fared {
            Fared::Unseen => word(Fared::Unseen).1.to_owned(),
            _ => share(vm.stall.as_ref().map(|stall| stall.share)),
        },
        p99: latency(p99),
        majors: count(majors.map_or(0, |of| of.count)),
    }
}

/// Marks and bad states: what, from when, to when.
fn states_table(timeline: &Timeline, drawn: &[Drawn]) -> Vec<[String; 3]> {
    let clock = |column: u64| {
        time_of_day(timeline.start_s() + (column * timeline.step_s) as f64).replace(" UTC", "")
    };
    let marks = timeline.marks.iter();
    let mut rows: Vec<[String; 3]> = marks
        .map(|(text, column)| [format!("mark {text}"), clock(*column as u64), String::new()])
        .collect();
    for (name, bands) in states(timeline, drawn) {
        for band in bands {
            let at = |index: usize| band[index].as_u64().unwrap_or(0);
            let word = band[3].as_str().unwrap_or_default();
            rows.push([format!("{name} {word}"), clock(at(0)), clock(at(1))]);
        }
    }
    rows
}

/// How it was measured.
fn measured(run: &Run) -> String {
    let interval = readable(run.options.interval_ns).replace(".00", "");
    let mut said = vec![
        format!("Linux {}", run.kernel),
        format!("backend {}", run.backend.name),
        format!("intervals of {interval}"),
    ];
    said.extend(run.options.slow_faults_ns.map(|ns| format!("slow faults from {}", readable(ns))));
    let cost = run.cost.as_ref().map(|cost| format!(" {}", cost_text::sentence(cost)));
    let (said, cost) = (said.join(", "), cost.unwrap_or_default());
    format!("{said}. Quantiles are at most 1/128 too high, never too low.{cost}")
}
