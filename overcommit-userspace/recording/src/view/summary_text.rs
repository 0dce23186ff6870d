//! The summary as people read it.

use crate::format::text::{percent, readable, time_of_day, vms};
use crate::model::coverage::Coverage;
use crate::model::interval::Place;
use crate::model::name::escape;
use crate::model::pattern::Pattern;
use crate::model::run::{ENDED_VMS_KEPT, Run, StoppedBy};
use crate::slo::{Judged, Verdict};
use crate::summary::cause::LEAST_TAKEN;
use crate::summary::verdict::{Fared, worst_first};
use crate::summary::{Summary, SummaryMetric, SummaryVm};
use crate::view::style::{bad, plain};
use crate::view::vm_text::{self, Told};
use crate::view::{
    WIDTH, cost_text, facts, memory_text, plain_table, presence, verdict_text, wrapped,
};
use comfy_table::{CellAlignment, Table};
use overcommit_ebpf::layout::Metric;
use std::fmt::Write;
use std::time::Duration;

/// Part of the faults from which it matters that the kernel skipped programs.
const SKIPPED: f64 = 0.001;
/// VMs of which each has a row of its own, however they fared.
const ROWS: usize = 8;

/// Verdicts, objectives, head, table, and what was not seen or counted; the full text has every
/// metric of every VM.
pub fn text(run: &Run, summary: &Summary, is_full: bool) -> String {
    let mut text = String::new();
    verdict_text::lines(&mut text, summary, |vm| shown_name(summary, vm));
    presence::lines(&mut text, run, summary, |vm| shown_name(summary, vm));
    objectives(&mut text, &summary.objectives);
    if !text.is_empty() {
        text.push('\n');
    }
    text.push_str(&head(run, summary));
    if let Some(why) = summary.nothing(run) {
        let _ = writeln!(text, "{why}");
    } else {
        let table = if is_full { metrics_table(summary) } else { vm_table(summary) };
        let _ = writeln!(text, "\n{}", table.trim_fmt());
        let mut seen: Vec<&SummaryVm> = summary.seen().collect();
        seen.sort_by(|a, b| worst_first(a, b));
        let told = |vm: &SummaryVm| if is_full { Told::All } else { told_of(vm) };
        let (brief, at_length): (Vec<_>, Vec<_>) =
            seen.into_iter().partition(|vm| told(vm) == Told::Losses);
        for vm in &at_length {
            vm_text::block(&mut text, vm, &shown_name(summary, vm), told(vm));
        }
        if let [vm] = brief.as_slice() {
            vm_text::block(&mut text, vm, &shown_name(summary, vm), Told::Losses);
        } else {
            vm_text::losses_of_all(&mut text, &brief, at_length.is_empty());
        }
        memory_text::host(&mut text, &summary.host, summary.is_measured(), is_full);
    }
    not_seen(&mut text, run, summary, is_full);
    not_followed(&mut text, run, summary);
    if let Some(cost) = &run.cost {
        let _ = writeln!(text, "\n{}", wrapped(&cost_text::sentence(cost), "", "  "));
        if let Some(why) = cost.programs_untimed.as_ref().filter(|_| is_full) {
            let _ = writeln!(
                text,
                "{}",
                wrapped(&format!("Its eBPF programs were not timed: {why}."), "", "  ")
            );
        }
    }
    text
}

/// What is told of a VM that fared badly, or whose pages were taken, and of any other.
fn told_of(vm: &SummaryVm) -> Told {
    let taken = vm.evictions.as_ref().map_or(0, |evictions| evictions.bytes);
    let is_hurt = vm.verdict.fared > Fared::Ok || taken >= LEAST_TAKEN;
    if is_hurt { Told::Why } else { Told::Losses }
}

fn head(run: &Run, summary: &Summary) -> String {
    let interval = Duration::from_nanos(run.options.interval_ns);
    let seen = summary.seen().count();
    let mut facts = vec![
        run.host.clone(),
        time(summary),
        format!("{:.1} s", summary.length_s),
        vms(seen),
        format!("Linux {}", run.kernel),
        format!("backend {}", run.backend.name),
        format!("overcommit {}", run.tool_version),
    ];
    facts.extend(
        run.options.labels.iter().map(|(key, value)| escape(format!("{key}={value}").as_bytes())),
    );
    if !run.options.command.is_empty() {
        let how = run.command_status.map_or(String::new(), |code| format!(" (ended with {code})"));
        let command = escape(run.options.command.join(" ").as_bytes());
        facts.push(format!("{command}{how}"));
    }
    match (run.clocks.end, run.stopped_by.map(StoppedBy::words)) {
        (None, _) => facts.push("still running, or cut off".to_owned()),
        (_, Some(words)) if !words.is_empty() => facts.push(format!("ended {words}")),
        _ => {}
    }
    let mut head = wrapped(&facts.join(" · "), "", "  ") + "\n";
    if Place::is_delayed((summary.longest_interval_s * 1e9) as u64, run.options.interval_ns) {
        let delayed = format!(
            "The recorder was delayed: the longest of {} intervals took {:.1} s instead of \
             {interval:?}. Totals are still correct.",
            summary.intervals, summary.longest_interval_s
        );
        let _ = writeln!(head, "{}", wrapped(&delayed, "", "  "));
    }
    head
}

/// From when to when, and between which marks.
fn time(summary: &Summary) -> String {
    let start = jiff::Timestamp::from_second(summary.start_unix_s as i64).unwrap_or_default();
    let start = start.strftime("%Y-%m-%d %H:%M:%S");
    let mark = |word: &str, mark: &Option<String>| {
        mark.as_ref().map(|mark| format!("{word} {mark:?} ")).unwrap_or_default()
    };
    let marks = mark("from", &summary.marks.from) + &mark("to", &summary.marks.to);
    format!("{marks}{start} to {}", time_of_day(summary.end_unix_s))
}

/// A row for each VM: those that fared badly, and the others where they are few.
fn vm_table(summary: &Summary) -> Table {
    let mut table = plain_table();
    table.set_header(["VM", "STATE", "STALL", "CPU WAIT", "MAJOR/S", "P50", "P99", "MAX"]);
    let is_small = summary.seen().count() <= ROWS;
    let rows = summary.seen().filter(|vm| is_small || vm.verdict.fared != Fared::Ok);
    let mut rows: Vec<&SummaryVm> = rows.collect();
    rows.sort_by(|a, b| worst_first(a, b));
    for vm in rows {
        let majors = vm.metric(Metric::FaultMajor);
        let latency = |of: fn(&SummaryMetric) -> Option<u64>| {
            majors.and_then(of).map_or("-".to_owned(), readable)
        };
        let share = |share: Option<f64>| share.map_or("-".to_owned(), percent);
        table.add_row([
            verdict_text::short(&shown_name(summary, vm)),
            vm.verdict.fared.word().to_owned(),
            share(vm.stall.as_ref().map(|stall| stall.share)),
            share(vm.cpu_wait.as_ref().map(|cpu| cpu.share)),
            majors.map_or("-".to_owned(), |majors| format!("{:.1}", majors.rate_per_s)),
            latency(|majors| majors.p50_ns),
            latency(|majors| majors.p99_ns),
            latency(|majors| majors.max_ns),
        ]);
    }
    for column in table.column_iter_mut().filter(|column| column.index > 1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// A row for each metric of each VM.
fn metrics_table(summary: &Summary) -> Table {
    let mut table = plain_table();
    table.set_header([
        "VM", "STALL", "CPU WAIT", "METRIC", "COUNT", "PER S", "P50", "P90", "P99", "P99.9", "MAX",
    ]);
    for vm in summary.seen() {
        let mut name = shown_name(summary, vm);
        let mut stall = vm.stall.as_ref().map_or("-".to_owned(), |stall| percent(stall.share));
        let mut cpu_wait = vm.cpu_wait.as_ref().map_or("-".to_owned(), |cpu| percent(cpu.share));
        for metric in &vm.metrics {
            let mut row = [&mut name, &mut stall, &mut cpu_wait].map(std::mem::take).to_vec();
            row.extend(figures(metric));
            table.add_row(row);
        }
    }
    for column in table.column_iter_mut().filter(|column| ![0, 3].contains(&column.index)) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn figures(metric: &SummaryMetric) -> [String; 8] {
    let latency = |ns: Option<u64>| ns.map_or("-".to_owned(), readable);
    let partial = if metric.coverage == Coverage::Partial { " (partial)" } else { "" };
    [
        format!("{}{partial}", metric.metric.as_str()),
        metric.count.to_string(),
        format!("{:.1}", metric.rate_per_s),
        latency(metric.p50_ns),
        latency(metric.p90_ns),
        latency(metric.p99_ns),
        latency(metric.p999_ns),
        latency(metric.max_ns),
    ]
}

/// The name, with the instance behind it where two VMs share it.
fn shown_name(summary: &Summary, vm: &SummaryVm) -> String {
    let same = summary.vms.iter().filter(|other| other.vm == vm.vm).count();
    if same > 1 { format!("{} ({})", vm.vm, vm.vm_id) } else { vm.vm.clone() }
}

/// A line for each objective and VM, the broken ones first.
fn objectives(text: &mut String, judged: &[Judged]) {
    let mut table = plain_table();
    let mut why = Vec::new();
    for (verdict, word) in
        [(Verdict::Broken, "BROKEN"), (Verdict::NotJudged, "not judged"), (Verdict::Held, "held")]
    {
        for judged in judged.iter().filter(|judged| judged.verdict == verdict) {
            let none = if verdict == Verdict::Held { "none" } else { "-" };
            table.add_row([
                word.to_owned(),
                verdict_text::short(judged.vm.as_deref().unwrap_or("-")),
                judged.objective.clone(),
                value_of(judged).unwrap_or_else(|| none.to_owned()),
            ]);
            why.push(about(judged));
        }
    }
    if let Some(column) = table.column_mut(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for (row, about) in table.trim_fmt().lines().zip(why) {
        let row = row.strip_prefix(' ').unwrap_or(row);
        let row = match row.strip_prefix("BROKEN") {
            Some(rest) => format!("{}{rest}", bad("BROKEN")),
            None => row.to_owned(),
        };
        let width = textwrap::core::display_width(&plain(&row)) + 2 + about.len();
        let _ = match about.is_empty() {
            true => writeln!(text, "{row}"),
            false if width <= WIDTH => writeln!(text, "{row}  {about}"),
            false => writeln!(text, "{row}\n{}", wrapped(&about, "        ", "        ")),
        };
    }
}

/// The figure that an objective is held against.
pub fn value_of(judged: &Judged) -> Option<String> {
    let rate = || judged.rate_per_s.map(|rate| format!("{rate:.1}/s"));
    judged.value_ns.map(readable).or(judged.share.map(percent)).or_else(rate)
}

/// In how many intervals it was broken, and why it was not judged.
fn about(judged: &Judged) -> String {
    let mut about = Vec::new();
    let intervals = judged.intervals;
    if intervals.broken > 0 {
        let all = intervals.broken + intervals.held + intervals.not_judged;
        let how = if judged.verdict == Verdict::Broken { "" } else { "broken in " };
        about.push(format!(
            "{how}{} of {all} intervals, {:.1} s in a row",
            intervals.broken, intervals.longest_broken_s
        ));
    }
    about.extend(judged.why.clone());
    about.join("; ")
}

/// What was not seen of any VM, and what of all was not counted.
fn not_seen(text: &mut String, run: &Run, summary: &Summary, is_full: bool) {
    let mut facts = facts::absent(&run.coverage);
    let without_slot = run.not_counted.vms_without_slot;
    if without_slot > 0 {
        let names = run.not_counted.unserved.join(", ");
        let names = if names.is_empty() { names } else { format!(" ({names})") };
        let why =
            "not recorded: no slot was free, its user had reached the limit, or too many had ended"
                .to_owned();
        facts.push((vms(without_slot as usize) + &names, why));
    }
    let left_out = run.not_counted.vms_left_out;
    if left_out > 0 {
        let why = format!(
            "recorded, but not kept: of VMs that ended, a recording keeps {ENDED_VMS_KEPT}"
        );
        facts.push((vms(left_out as usize), why));
    }
    let skipped: u64 = run.not_counted.programs_skipped.values().sum();
    let seen: u64 = summary.seen().map(|vm| vm.faults_counted).sum();
    if skipped > 0 && (is_full || skipped as f64 > SKIPPED * seen as f64) {
        let why = format!(
            "the kernel skipped them {skipped} times, over all processes; {seen} faults of VMs were \
             counted"
        );
        facts.push(("eBPF programs".to_owned(), why));
    }
    facts::list(text, "Not seen", &facts);
}

/// A monitor that was for no VM of the recording.
fn unmatched(run: &Run, option: &str) -> Option<(String, String)> {
    let pattern = Pattern::parse(option.split_once('=')?.0).ok()?;
    let is_matched = run.vms.iter().any(|vm| pattern.matches_recorded(vm));
    (!is_matched).then(|| (format!("--monitor {option}"), "no recorded VM matches".to_owned()))
}

/// Options that could not be followed for a VM.
fn not_followed(text: &mut String, run: &Run, summary: &Summary) {
    let mut facts = Vec::new();
    for vm in summary.seen() {
        let Some(of) = run.vms.iter().find(|of| of.vm_id == vm.vm_id) else { continue };
        let mut say = |option: String, why: &str| {
            facts.push((shown_name(summary, vm), format!("{option}: {why}")));
        };
        if run.options.guest_stats && vm.memory.guest_available_bytes.is_none() {
            let why = of.balloon_unknown.as_deref().unwrap_or("its guest did not report");
            say("--guest-stats".to_owned(), why);
        }
        let working_set = &run.options.working_set;
        let is_exact = !["", "auto", "bounds"].contains(&working_set.as_str());
        if let Some(why) = of.working_set_unknown.as_ref().filter(|_| is_exact) {
            say(format!("--working-set {working_set}"), why);
        }
    }
    facts.extend(run.options.monitor.iter().filter_map(|option| unmatched(run, option)));
    facts::list(text, "Options without effect", &facts);
}
