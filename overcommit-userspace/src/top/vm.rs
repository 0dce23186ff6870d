//! One VM: how its latencies are distributed, when and why it waited, who took its memory.

use crate::top::app::App;
use crate::top::columns::verdict;
use crate::top::list::WIDE;
use crate::top::look::{Look, Tone};
use crate::top::moment::PAST_S;
use crate::top::plot::{Histogram, bars, short_latency};
use overcommit_recording::format::text::{percent, readable, readable_bytes, time_of_day};
use overcommit_recording::model::latencies::Latencies;
use overcommit_recording::model::metric::MetricName;
use overcommit_recording::model::run::RunVm;
use overcommit_recording::model::slow_fault::SlowFault;
use overcommit_recording::recent::{Board, VmRow};
use overcommit_recording::summary::SummaryVm;
use overcommit_recording::view::facts::Facts;
use overcommit_recording::view::style::plain;
use overcommit_recording::view::verdict_text::said;
use overcommit_recording::view::{fitted, losses, memory_text, wrapped_at};
use ratatui::text::{Line, Span};

/// Columns of what stands before plots and bars.
const GUTTER: u16 = 11;
/// What parts of a bar are made of, in turn.
const FILLS: [&str; 4] = ["█", "▓", "▒", "░"];
/// Quantiles, and how many samples each takes.
const QUANTILES: [(&str, f64, u64); 4] =
    [("p50", 0.5, 1), ("p90", 0.9, 10), ("p99", 0.99, 100), ("p99.9", 0.999, 1_000)];

/// Rows of slow faults for which there is room, where they are recorded.
const SLOW: usize = 5;

/// The whole screen.
pub(super) fn lines(app: &App, row: &VmRow, columns: u16, rows: u16) -> Vec<Line<'static>> {
    let Some(board) = &app.board else { return Vec::new() };
    let (Some(summary), Some(vm)) = (board.summary_of(&row.vm_id), board.run.vms.get(row.place))
    else {
        return Vec::new();
    };
    let look = app.look;
    let is_tall = rows >= 34;
    let tense = [Some(app.tense()), app.mark_now()].into_iter().flatten();
    let tense = tense.collect::<Vec<_>>().join(" ");
    let mut above = vec![head(look, board, row, vm, tense, columns)];
    above.extend(why(look, summary, columns).into_iter().take(if is_tall { 6 } else { 3 }));
    above.push(look.rule(columns));
    let mut below = stall(app, row, columns, if is_tall { 3 } else { 1 });
    below.extend(causes(look, summary, columns, is_tall));
    below.extend(evictors(look, summary, columns, if is_tall { 3 } else { 1 }));
    if is_tall {
        // They are known of the whole time so far alone.
        below.extend(vcpus(look, vm, board, columns).filter(|_| app.is_living()));
        below.extend(memory(look, summary, columns));
    }
    let slow = slow_faults(app, row, columns);
    let used = above.len() + below.len() + slow.len().min(SLOW) + PLOT + 2;
    let plot_rows = usize::from(rows).saturating_sub(used).clamp(2, 10);
    let mut lines = above;
    lines.extend(histogram(app, board, row, columns, plot_rows));
    lines.extend(below);
    let room = usize::from(rows).saturating_sub(lines.len() + 2);
    lines.extend(slow.into_iter().take(room));
    lines.resize(usize::from(rows).saturating_sub(2), Line::default());
    lines.push(look.rule(columns));
    let marks = if columns >= WIDE { "  [ ] marks" } else { "" };
    let keys =
        format!("Esc list  ↑↓ next VM  Tab metric  p pause  ←→ in time{marks}  ? help  q quit");
    lines.push(look.line(fitted(&keys, columns.into()), Tone::Strong));
    lines
}

/// Lines of a histogram beside its rows.
const PLOT: usize = 4;

fn head(
    look: Look,
    board: &Board,
    row: &VmRow,
    vm: &RunVm,
    tense: String,
    columns: u16,
) -> Line<'static> {
    let (word, tone) = verdict(row);
    let since =
        if row.hurt_s >= 1.0 { format!(" hurt for {:.0} s", row.hurt_s) } else { String::new() };
    let mut facts = vec![time_of_day(board.unix_s), tense];
    facts.extend(vm.vcpus.map(|vcpus| format!("{vcpus} vCPUs")));
    facts.extend(row.configured_bytes.map(readable_bytes));
    facts.push(format!("PID {}", vm.pid));
    let left = format!("{} ▸ {}  ", fitted(&board.host_name, 20), fitted(&row.vm, 30));
    let used = Span::raw(left.as_str()).width() + word.len() + since.len();
    let right = fitted(&facts.join("  "), usize::from(columns).saturating_sub(used + 2));
    let gap = usize::from(columns).saturating_sub(used + Span::raw(right.as_str()).width());
    Line::from(vec![
        look.span(left, Tone::Strong),
        look.span(word, tone),
        look.words(since),
        Span::raw(" ".repeat(gap)),
        look.words(right),
    ])
}

/// The verdict and the advice, in sentences.
fn why(look: Look, vm: &SummaryVm, columns: u16) -> Vec<Line<'static>> {
    let mut text = Vec::new();
    if vm.verdict.why.is_some() {
        text.push(plain(&said(vm)));
        text.extend(vm.verdict.advice.as_ref().map(|advice| format!("Try: {advice}.")));
    }
    look.paragraphs(text.iter().map(String::as_str), columns)
}

/// The metric that is chosen among those of which there is something.
fn metric<'a>(app: &App, board: &'a Board, row: &VmRow) -> Option<(&'a MetricName, &'a Latencies)> {
    let totals = board.totals.vms.get(row.place)?;
    let mut metrics: Vec<_> = totals
        .metrics
        .iter()
        .filter(|(name, of)| name.is_plotted() && of.latencies.count() > 0)
        .map(|(name, of)| (name, &of.latencies))
        .collect();
    // Of faults the major ones matter.
    metrics.sort_by_key(|(name, _)| name.as_str() == "fault.minor");
    let chosen = app.metric.checked_rem(metrics.len())?;
    metrics.get(chosen).copied()
}

fn histogram(
    app: &App,
    board: &Board,
    row: &VmRow,
    columns: u16,
    rows: usize,
) -> Vec<Line<'static>> {
    let look = app.look;
    let Some((name, latencies)) = metric(app, board, row) else {
        return vec![
            look.line(format!("No fault was seen in the last {:.0} s.", board.window_s), Tone::Dim),
        ];
    };
    let count = latencies.count();
    let quantile = |(name, quantile, least): (&'static str, f64, u64)| {
        (name, latencies.quantile(quantile).filter(|_| count >= least))
    };
    let quantiles = QUANTILES.map(quantile);
    let mut title = format!("{}  {count} in {:.0} s", name.as_str(), board.window_s);
    let said = quantiles.iter().filter(|(name, _)| columns >= WIDE || *name != "p99.9");
    for (name, ns) in said {
        title += &format!("  {name} {}", ns.map_or("too few".to_owned(), short_latency));
    }
    title += &format!("  max {}", short_latency(latencies.max_ns));
    let mut lines = vec![look.line(fitted(&title, columns.into()), Tone::Strong)];
    let Some(plot) = Histogram::of(latencies, usize::from(columns.saturating_sub(GUTTER + 1)))
    else {
        return lines;
    };
    let gutter = usize::from(GUTTER - 2);
    for (label, bar) in plot.rows(rows) {
        lines.push(Line::from(vec![
            look.span(format!("{label:>gutter$} ┤"), Tone::Dim),
            look.span(bar, Tone::Plain),
        ]));
    }
    let [axis, labels] = plot.axis();
    lines.push(look.line(format!("{:gutter$} └{axis}", ""), Tone::Dim));
    lines.push(look.line(format!("{:gutter$}  {labels}", ""), Tone::Dim));
    let marks: Vec<_> = quantiles.into_iter().chain([("max", Some(latencies.max_ns))]).collect();
    lines.push(look.line(format!("{:gutter$}  {}", "", plot.marks(&marks)), Tone::Plain));
    lines
}

/// `stall.share` over the last minutes.
fn stall(app: &App, row: &VmRow, columns: u16, rows: usize) -> Vec<Line<'static>> {
    let (look, width) = (app.look, usize::from(columns.saturating_sub(GUTTER)));
    let values = app.past(width, f64::max, |line| line.vm(row.place)?.stall);
    let most = values.iter().flatten().copied().fold(0.0, f64::max);
    let now = row.stall_share.map(|share| format!("{} of its vCPU time", percent(share)));
    let now = now.unwrap_or("not seen in this interval".to_owned());
    let title = format!(
        "STALL      {now}; at most {} in the last {:.0} minutes",
        percent(most),
        PAST_S / 60.0
    );
    let mut drawn = vec![look.line(fitted(&title, columns.into()), Tone::Strong)];
    for bar in bars(&values, most.max(0.01), rows) {
        let gutter = Span::raw(" ".repeat(GUTTER.into()));
        drawn.push(Line::from(vec![gutter, look.span(bar, Tone::Plain)]));
    }
    drawn
}

/// What its time went into, as a bar in parts.
fn causes(look: Look, vm: &SummaryVm, columns: u16, is_tall: bool) -> Vec<Line<'static>> {
    let shares = losses::shares_of(vm);
    if shares.is_empty() {
        return Vec::new();
    }
    let width = f64::from(columns.saturating_sub(GUTTER + 1));
    let (mut bar, mut words, mut from) = (String::new(), Vec::new(), 0.0);
    for (index, (name, share)) in shares.iter().enumerate() {
        let fill = FILLS[index.min(FILLS.len() - 1)];
        let to = from + share;
        let cells = (to * width).round() as usize - (from * width).round() as usize;
        bar += &fill.repeat(cells);
        words.push(format!("{fill} {} {name}", percent(*share)));
        from = to;
    }
    let mut lines = vec![Line::from(vec![
        look.span(format!("{:<11}", "WHY"), Tone::Strong),
        look.span(bar, Tone::Plain),
    ])];
    let indent = " ".repeat(GUTTER.into());
    let text = wrapped_at(columns.into(), &words.join("   "), &indent, &indent);
    lines.extend(
        text.lines().take(if is_tall { 2 } else { 1 }).map(|line| look.line(line, Tone::Plain)),
    );
    lines
}

/// Who took its memory.
fn evictors(look: Look, vm: &SummaryVm, columns: u16, most: usize) -> Vec<Line<'static>> {
    let heading = |index: usize| format!("{:<11}", if index == 0 { "TAKEN BY" } else { "" });
    let Some(evictions) = &vm.evictions else {
        let why = vm.evictions_absent.as_deref().unwrap_or("this backend does not see who");
        let text = format!("{}not seen: {why}", heading(0));
        return vec![look.line(fitted(&text, columns.into()), Tone::Warn)];
    };
    let by = evictions.by.iter().filter(|by| by.share > 0.0).take(most).enumerate();
    by.map(|(index, by)| {
        let name = if by.is_itself { "itself" } else { by.aggressor.name.as_str() };
        let tone = if by.is_itself { Tone::Plain } else { Tone::Cause };
        let bytes = readable_bytes((evictions.bytes as f64 * by.share) as u64);
        let width = f64::from(columns.saturating_sub(GUTTER + 44));
        let bar = "█".repeat((by.share * width).round() as usize);
        let name = fitted(name, 18);
        let pad = " ".repeat(19usize.saturating_sub(Span::raw(name.as_str()).width()));
        Line::from(vec![
            look.span(heading(index), Tone::Strong),
            look.span(name, tone),
            look.words(format!("{pad}{:>7} {bytes:>10}  ", percent(by.share))),
            look.span(bar, tone),
        ])
    })
    .collect()
}

/// What each vCPU waited for memory since the recording saw it first.
fn vcpus(look: Look, vm: &RunVm, board: &Board, columns: u16) -> Option<Line<'static>> {
    let length_ns = board.unix_s * 1e9 - vm.first_seen_us as f64 * 1e3;
    let share = |stall_ns: u64| percent((stall_ns as f64 / length_ns.max(1.0)).min(1.0));
    let each = vm.vcpu_times.iter().map(|of| format!("{}: {}", of.vcpu, share(of.stall_ns)));
    let each: Vec<String> = each.collect();
    let text = format!("{:<11}{}  (stall of each since the start)", "vCPUs", each.join("  "));
    (!each.is_empty()).then(|| look.line(fitted(&text, columns.into()), Tone::Plain))
}

/// What it holds and needs.
fn memory(look: Look, vm: &SummaryVm, columns: u16) -> Vec<Line<'static>> {
    let mut facts = Facts::default();
    memory_text::add(&mut facts, vm);
    facts
        .lines()
        .take(4)
        .map(|(about, fact)| {
            look.line(fitted(&format!("{about:<11}{fact}"), columns.into()), Tone::Plain)
        })
        .collect()
}

/// The last ones, the latest first.
fn slow_faults(app: &App, row: &VmRow, columns: u16) -> Vec<Line<'static>> {
    let Some(least) = app.run.options.slow_faults_ns.map(readable) else { return Vec::new() };
    let until_ns = app.board.as_ref().map_or(u64::MAX, |board| (board.unix_s * 1e9) as u64);
    let faults = app.slow.get(&row.vm_id).into_iter().flatten().rev();
    let faults = faults.filter(|fault| fault.end_ns <= until_ns);
    let line = |fault| app.look.line(fitted(&slow_fault(fault), columns.into()), Tone::Plain);
    let lines: Vec<_> = faults.map(line).collect();
    let heading = match (lines.is_empty(), app.is_paused()) {
        (true, true) => {
            format!("SLOW FAULTS of {least} or more: none, or none is kept of that time")
        }
        (true, false) => format!("SLOW FAULTS of {least} or more: none"),
        (false, _) => format!("SLOW FAULTS of {least} or more, the latest first"),
    };
    std::iter::once(app.look.line(heading, Tone::Strong)).chain(lines).collect()
}

fn slow_fault(fault: &SlowFault) -> String {
    let second = (fault.end_ns / 1_000_000) % 60_000;
    let by =
        fault.aggressor.as_ref().map_or("-".to_owned(), |by| format!("evicted by {}", by.name));
    let what = losses::what(fault);
    // The innermost functions say most.
    let stack = fault.stack.as_deref().unwrap_or("-");
    let stack: Vec<&str> =
        stack.rsplit(';').take(3).collect::<Vec<_>>().into_iter().rev().collect();
    format!(
        "  {:02}.{:03}  {:>8}  {}  {what}  {by}  {}",
        second / 1_000,
        second % 1_000,
        readable(fault.latency_ns),
        fault.thread,
        stack.join(";")
    )
}
