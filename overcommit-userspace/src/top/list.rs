//! The list of all VMs, with the host above it and the chosen one's verdict below.

use crate::top::app::App;
use crate::top::columns::{GIB, MIB, mib as mib_per_s, table};
use crate::top::look::{Look, Tone};
use crate::top::plot::bars;
use overcommit_recording::format::text::{percent, readable, readable_bytes, time_of_day, vms};
use overcommit_recording::model::state::State;
use overcommit_recording::model::swap::SwapState;
use overcommit_recording::recent::{Board, Line as Past, VmRow, cause_of};
use overcommit_recording::slo::Verdict;
use overcommit_recording::summary::verdict::Fared;
use overcommit_recording::view::fitted;
use overcommit_recording::view::style::plain;
use overcommit_recording::view::summary_text::value_of;
use overcommit_recording::view::verdict_text::said;
use ratatui::text::{Line, Span};

/// Columns, and lines, from which there is room for more of the host.
pub(super) const WIDE: u16 = 100;
/// Columns from which all keys have room.
const WIDEST: u16 = 110;
const TALL: u16 = 30;
/// Columns from which there is a line of the host at all.
const NARROW: u16 = 60;

/// The whole screen.
pub(super) fn lines(
    app: &App,
    selected: Option<&VmRow>,
    columns: u16,
    rows: u16,
    with_keys: bool,
) -> Vec<Line<'static>> {
    let Some(board) = &app.board else { return Vec::new() };
    let look = app.look;
    let mut above = vec![head(app, board, columns)];
    if columns >= NARROW {
        above.extend(host(app, board, columns, rows));
        above.push(look.rule(columns));
    }
    let mut below = Vec::new();
    if let Some(row) = selected.filter(|_| rows >= 12) {
        let most = match (columns >= NARROW, rows >= TALL) {
            (false, _) => 2,
            (true, false) => 5,
            (true, true) => 8,
        };
        if columns >= NARROW {
            below.push(look.rule(columns));
        }
        below.extend(detail(look, board, row, columns).into_iter().take(most));
        if rows >= TALL {
            below.extend(objectives(look, board, columns));
        }
    }
    if columns >= NARROW && with_keys {
        below.push(look.rule(columns));
    }
    if with_keys {
        below.push(keys(app, columns));
    }
    let room = usize::from(rows).saturating_sub(above.len() + below.len());
    let table = table(app, selected, columns, room);
    let blank = room.saturating_sub(table.len());
    above.into_iter().chain(table).chain((0..blank).map(|_| Line::default())).chain(below).collect()
}

/// What is shown, of when, and how many VMs are hurt.
fn head(app: &App, board: &Board, columns: u16) -> Line<'static> {
    let [hurt, causes] = board.counts();
    let time = time_of_day(board.unix_s);
    let mut counts = format!("{}: {hurt} hurt", vms(board.vms.len()));
    if columns >= WIDE && causes > 0 {
        counts += &format!(", {causes} taking from others");
    }
    let missing = app.run.not_counted.vms_without_slot;
    if missing > 0 {
        counts += &format!(", {missing} not recorded");
    }
    let (tense, host) = (app.tense(), fitted(&board.host_name, 30));
    let state = SwapState::from_name(board.host.swap_state).unwrap_or_default();
    if columns < NARROW {
        let state = app.look.span(word(state), tone(state));
        let time = time.trim_end_matches(" UTC");
        let free = board
            .host
            .memory_available_bytes
            .map_or(String::new(), |free| format!(" free {}", readable_bytes(free)));
        let tense =
            if tense == "live" { String::new() } else { format!(" {}", fitted(&tense, 12)) };
        let host = fitted(&host, 12);
        return Line::from(vec![
            app.look.words(format!("{host} ")),
            state,
            app.look.words(format!("{free} {time}{tense}")),
        ]);
    }
    let left = format!("overcommit top  {host}");
    // Shorter intervals are shown together.
    let every = readable(app.run.options.interval_ns.max(1_000_000_000)).replace(".00", "");
    // There is no room for both.
    let every = app.mark_now().unwrap_or_else(|| format!("every {every}"));
    let right = [time, every, tense, counts].join("  ");
    let gap = usize::from(columns)
        .saturating_sub(Span::raw(left.as_str()).width() + Span::raw(right.as_str()).width())
        .max(2);
    Line::from(vec![
        app.look.span(left, Tone::Strong),
        Span::raw(" ".repeat(gap)),
        app.look.span(right, Tone::Plain),
    ])
}

fn word(state: SwapState) -> String {
    if state >= SwapState::Thrashing {
        state.name().to_uppercase()
    } else {
        state.name().to_owned()
    }
}

fn tone(state: SwapState) -> Tone {
    match state {
        SwapState::Thrashing => Tone::Bad,
        SwapState::Pressure => Tone::Warn,
        SwapState::Healthy | SwapState::Unknown => Tone::Plain,
    }
}

/// The host: a line, or with room for them four with plots.
fn host(app: &App, board: &Board, columns: u16, rows: u16) -> Vec<Line<'static>> {
    let (look, host) = (app.look, &board.host);
    let state = SwapState::from_name(host.swap_state).unwrap_or_default();
    let gib = |bytes: Option<u64>| {
        bytes.map_or("?".to_owned(), |bytes| format!("{:.1}", bytes as f64 / GIB))
    };
    let free =
        format!("{} of {} GiB", gib(host.memory_available_bytes), gib(host.memory_total_bytes));
    let rate = |bytes: Option<f64>| mib_per_s(bytes).0;
    let (into, out) = (rate(host.swapped_in_bytes_per_s), rate(host.swapped_out_bytes_per_s));
    let psi = |share: Option<f64>| share.map_or("?".to_owned(), percent);
    let some = psi(host.psi_memory_some_share);
    let state_word = look.span(word(state), tone(state));
    if columns < WIDE || rows < TALL {
        let right = format!("  free {free}  swap in {into} out {out} MiB/s  PSI {some}");
        return vec![Line::from(vec![Span::raw("host "), state_word, look.words(right)])];
    }
    let needs = host.working_sets_bytes.filter(|_| host.working_sets_are_measured);
    let needs = needs.map_or("needs     not measured".to_owned(), |set| {
        format!(
            "needs     {} to {} of {} GiB",
            gib(Some(set.lower)),
            gib(Some(set.upper)),
            gib(host.capacity_bytes)
        )
    });
    let ratio = host
        .configured_bytes
        .zip(host.memory_total_bytes)
        .map_or(String::new(), |(all, of)| format!(", {:.2} x RAM", all as f64 / of.max(1) as f64));
    let configured = format!("VMs have  {} GiB{ratio}", gib(host.configured_bytes));
    let left = [
        vec![
            Span::raw("swap      "),
            state_word,
            Span::raw(format!(" for {:.0} s", host.swap_state_s)),
        ],
        vec![Span::raw(format!("memory    {}", host.overcommit_state))],
        vec![Span::raw(needs)],
        vec![Span::raw(configured)],
    ];
    let width = usize::from(columns) - 66;
    // What fills a cell, at the least: a trickle is no flood.
    let past = |least: f64, worst: fn(f64, f64) -> f64, of: fn(&Past) -> Option<f64>| {
        let values = app.past(width, worst, of);
        let most = values.iter().flatten().copied().fold(least, f64::max);
        bars(&values, most, 1).concat()
    };
    let total = host.memory_total_bytes.map_or(0.0, |bytes| bytes as f64);
    let mib = MIB / app.run.page_size.max(1) as f64;
    let plots = [
        (
            "free",
            free,
            past(total, f64::min, |line| Some(line.host.swap.memory?.available? as f64)),
        ),
        (
            "swap in",
            format!("{into} MiB/s"),
            past(mib, f64::max, |line| line.host.swap.rates?.swapped_in),
        ),
        (
            "swap out",
            format!("{out} MiB/s"),
            past(mib, f64::max, |line| line.host.swap.rates?.swapped_out),
        ),
        (
            "PSI some",
            some,
            past(1.0, f64::max, |line| {
                Some(line.host.pressure.some_ns? as f64 / line.place.length_ns as f64)
            }),
        ),
    ];
    left.into_iter()
        .zip(plots)
        .map(|(mut left, (name, figure, plot))| {
            let used: usize = left.iter().map(Span::width).sum();
            left.push(Span::raw(" ".repeat(36usize.saturating_sub(used))));
            left.push(Span::raw(format!("{name:<10}{figure:>16}  ")));
            left.push(look.span(plot, Tone::Plain));
            Line::from(left)
        })
        .collect()
}

/// The verdict of the chosen VM, in sentences.
fn detail(look: Look, board: &Board, row: &VmRow, columns: u16) -> Vec<Line<'static>> {
    let Some(vm) = board.summary_of(&row.vm_id) else { return Vec::new() };
    let name = fitted(&row.vm, 30);
    let mut text = match vm.verdict.fared {
        Fared::Ok | Fared::Unseen if row.is_cause => {
            let hurt = board.summary.seen().filter(|of| cause_of(of) == Some(vm.vm_id.as_str()));
            let hurt: Vec<&str> = hurt.map(|of| of.vm.as_str()).collect();
            format!("{name}  takes memory from {} and is not hurt itself.", hurt.join(", "))
        }
        Fared::Unseen => {
            format!("{name}  not judged: vCPU threads, or too many page faults, were not seen.")
        }
        Fared::Ok => format!(
            "{name}  is well: it lost {} of its vCPU time in the last {:.0} s.",
            percent(vm.loss()),
            vm.length_s
        ),
        _ => format!("{name}  {}", plain(&said(vm))),
    };
    if let Some(advice) = &vm.verdict.advice {
        text += &format!("\nTry: {advice}.");
    }
    look.paragraphs(text.lines(), columns)
}

/// Those that are broken, and how many are held.
fn objectives(look: Look, board: &Board, columns: u16) -> Vec<Line<'static>> {
    let of = |verdict| board.objectives.iter().filter(move |judged| judged.verdict == verdict);
    let mut lines = Vec::new();
    for judged in of(Verdict::Broken).take(4) {
        let value = value_of(judged).unwrap_or_default();
        let text =
            format!("  {}  {}  {value}", judged.vm.as_deref().unwrap_or("-"), judged.objective);
        lines.push(Line::from(vec![
            look.span("BROKEN", Tone::Bad),
            look.words(fitted(&text, usize::from(columns).saturating_sub(6))),
        ]));
    }
    let held = of(Verdict::Held).count();
    if held + lines.len() > 0 {
        let others = of(Verdict::NotJudged).count();
        lines.push(look.line(
            format!(
                "objectives: {held} held, {others} not judged, in the last {:.0} s",
                board.window_s
            ),
            Tone::Plain,
        ));
    }
    lines
}

fn keys(app: &App, columns: u16) -> Line<'static> {
    if app.edits_filter || !app.filter.is_empty() {
        let cursor = if app.edits_filter { "_  Enter done  Esc clear" } else { "  Esc clear" };
        return app
            .look
            .line(fitted(&format!("/{}{cursor}", app.filter), columns.into()), Tone::Strong);
    }
    // Behind the short names of orders alone.
    let has_room = columns >= WIDEST && app.order.name().len() < 6;
    let marks = if has_room { "  [ ] marks" } else { "" };
    let hurt = if app.hurt_only { "h all" } else { "h hurt only" };
    let text = match columns {
        WIDE.. => format!(
            "↑↓ select  Enter open  / filter  s sort: {}  {hurt}  p pause  ←→ in time{marks}  ? help  q quit",
            app.order.name()
        ),
        NARROW.. => format!(
            "↑↓ Enter open  / filter  s sort: {}  p pause  ←→ in time  ? help  q quit",
            app.order.name()
        ),
        _ => "Enter open  / filter  ? help  q quit".to_owned(),
    };
    app.look.line(fitted(&text, columns.into()), Tone::Strong)
}
