//! The columns of the list of VMs, the order of its lines, and its table.

use crate::top::app::App;
use crate::top::look::Tone;
use crate::top::plot::{bars, short_latency};
use overcommit_recording::format::text::percent;
use overcommit_recording::recent::VmRow;
use overcommit_recording::summary::verdict::Fared;
use overcommit_recording::view::fitted;
use ratatui::text::{Line, Span};
use std::cmp::Ordering;

pub(super) const MIB: f64 = 1_048_576.0;
pub(super) const GIB: f64 = 1_073_741_824.0;

/// A column of the list.
pub(super) struct Column {
    title: &'static str,
    width: u16,
    is_right: bool,
    /// Columns of the terminal from which it is shown.
    from: u16,
    cell: fn(&App, &VmRow) -> (String, Tone),
    /// The figure by which it is sorted; `None` by name.
    by: fn(&VmRow) -> Option<f64>,
}

impl Column {
    /// Its cell; figures of a VM that has ended are none.
    fn text(&self, app: &App, row: &VmRow) -> (String, Tone) {
        let is_figure = self.is_right || self.title == LOST_TO;
        if is_figure && !row.is_running { none() } else { (self.cell)(app, row) }
    }
}

/// The column of who takes most.
const LOST_TO: &str = "LOST TO";

/// Width of the names' column at the least, and the most.
const NAME: [u16; 2] = [4, 40];
/// The share that fills a cell of a VM's past.
const PAST_MOST: f64 = 0.2;

/// Columns of a VM's past.
const PAST: usize = 12;

/// One whose cells stand to the right, with the figure by which it is sorted.
const fn figures(
    title: &'static str,
    width: u16,
    from: u16,
    cell: fn(&App, &VmRow) -> (String, Tone),
    by: fn(&VmRow) -> Option<f64>,
) -> Column {
    Column { title, width, is_right: true, from, cell, by }
}

/// One of words.
const fn words(
    title: &'static str,
    width: u16,
    from: u16,
    cell: fn(&App, &VmRow) -> (String, Tone),
    by: fn(&VmRow) -> Option<f64>,
) -> Column {
    Column { title, width, is_right: false, from, cell, by }
}

pub(super) const COLUMNS: [Column; 13] = [
    words("VM", 0, 0, |_, row| (row.vm.clone(), Tone::Plain), |_| None),
    words("VERDICT", 8, 0, |_, row| owned(verdict(row)), |_| None),
    figures("STALL", 6, 28, |_, row| share(row.stall_share), |row| row.stall_share),
    words("5 MINUTES", PAST as u16, 116, past, |row| row.stall_share),
    figures("CPU", 5, 80, |_, row| share(row.cpu_share), |row| row.cpu_share),
    figures("MAJ/s", 6, 42, |_, row| rate(row.major_faults_per_s), |row| row.major_faults_per_s),
    figures("P50", 6, 70, |_, row| latency(row.p50_ns), |row| row.p50_ns.map(|ns| ns as f64)),
    figures("P99", 6, 36, |_, row| latency(row.p99_ns), |row| row.p99_ns.map(|ns| ns as f64)),
    figures("MAX", 6, 56, |_, row| latency(row.max_ns), |row| row.max_ns.map(|ns| ns as f64)),
    figures(
        "IN/s",
        5,
        64,
        |_, row| mib(row.swapped_in_bytes_per_s),
        |row| row.swapped_in_bytes_per_s,
    ),
    figures("LOST/s", 6, 90, |_, row| mib(row.lost_bytes_per_s), |row| row.lost_bytes_per_s),
    words(LOST_TO, 11, 80, |_, row| lost_to(row), |row| row.lost_bytes_per_s),
    words(
        "NEEDS/RAM",
        14,
        108,
        |_, row| needs(row),
        |row| row.working_set_bytes.map(|set| set.upper as f64),
    ),
];

/// By which column the list is sorted; by harm if by none.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Order {
    column: Option<usize>,
    is_reversed: bool,
}

impl Order {
    pub(super) fn next(&mut self, columns: usize) {
        self.column = match self.column {
            None => Some(0),
            // The verdict's order is harm.
            Some(0) => Some(2),
            Some(column) => Some(column + 1).filter(|column| *column < columns),
        };
    }

    pub(super) fn reverse(&mut self) {
        self.is_reversed = !self.is_reversed;
    }

    pub(super) fn sort(self, rows: &mut [&VmRow]) {
        match self.column {
            None => {}
            Some(0) => rows.sort_by(|a, b| a.vm.cmp(&b.vm)),
            Some(column) => {
                let by = COLUMNS[column].by;
                let figure = |row: &VmRow| by(row).unwrap_or(f64::NEG_INFINITY);
                rows.sort_by(|a, b| figure(b).partial_cmp(&figure(a)).unwrap_or(Ordering::Equal));
            }
        }
        if self.is_reversed {
            rows.reverse();
        }
    }

    pub(super) fn name(self) -> String {
        let name = self.column.map_or("harm", |column| COLUMNS[column].title);
        if self.is_reversed { format!("{name}, reversed") } else { name.to_owned() }
    }
}

/// The word for how it fared.
pub(super) fn verdict(row: &VmRow) -> (&'static str, Tone) {
    let fared = row.verdict.fared;
    match fared {
        _ if row.is_cause => ("CAUSE", Tone::Cause),
        Fared::Killed | Fared::Crashed | Fared::Thrashed => (fared.word(), Tone::Bad),
        Fared::Slowed | Fared::Starved | Fared::Unseen => (fared.word(), Tone::Warn),
        Fared::Ok => (fared.word(), Tone::Plain),
    }
}

fn none() -> (String, Tone) {
    ("-".to_owned(), Tone::Dim)
}

/// Of what is not seen, which is no zero.
fn unseen() -> (String, Tone) {
    ("?".to_owned(), Tone::Warn)
}

fn share(share: Option<f64>) -> (String, Tone) {
    share.map_or_else(unseen, |share| (percent(share).replace(' ', ""), Tone::Plain))
}

fn figure(value: f64) -> String {
    if value >= 9.95 { format!("{value:.0}") } else { format!("{value:.1}") }
}

fn rate(rate: Option<f64>) -> (String, Tone) {
    rate.map_or_else(unseen, |rate| (figure(rate), Tone::Plain))
}

fn latency(ns: Option<u64>) -> (String, Tone) {
    ns.map_or_else(none, |ns| (short_latency(ns), Tone::Plain))
}

pub(super) fn mib(bytes: Option<f64>) -> (String, Tone) {
    bytes.map_or_else(unseen, |bytes| (figure(bytes / MIB), Tone::Plain))
}

fn lost_to(row: &VmRow) -> (String, Tone) {
    match (row.lost_bytes_per_s, &row.lost_to) {
        (None, _) => unseen(),
        (Some(_), None) => none(),
        (Some(_), Some(to)) => (to.clone(), if to == "itself" { Tone::Plain } else { Tone::Cause }),
    }
}

fn owned((word, tone): (&str, Tone)) -> (String, Tone) {
    (word.to_owned(), tone)
}

/// `stall.share` over the last minutes.
fn past(app: &App, row: &VmRow) -> (String, Tone) {
    let shares = app.past(PAST, f64::max, |line| line.vm(row.place)?.stall);
    (bars(&shares, PAST_MOST, 1).concat(), Tone::Plain)
}

fn needs(row: &VmRow) -> (String, Tone) {
    let gib = |bytes: u64| format!("{:.1}", bytes as f64 / GIB);
    let ram = row.configured_bytes.map_or("?".to_owned(), gib);
    let Some(set) = row.working_set_bytes else { return (format!("?/{ram}"), Tone::Warn) };
    let (lower, upper) = (gib(set.lower), gib(set.upper));
    let need = match row.working_set_is_measured {
        false => format!("<={upper}"),
        true if lower == upper => upper,
        true => format!("{lower}-{upper}"),
    };
    (format!("{need}/{ram}"), Tone::Plain)
}

/// Titles, and as many VMs as there is room for, the chosen one among them.
pub(super) fn table(
    app: &App,
    selected: Option<&VmRow>,
    columns: u16,
    room: usize,
) -> Vec<Line<'static>> {
    let (look, rows) = (app.look, app.rows());
    let shown: Vec<&Column> = COLUMNS.iter().filter(|column| columns >= column.from).collect();
    let used: u16 = shown.iter().map(|column| column.width + 1).sum();
    let longest = rows.iter().map(|row| Span::raw(row.vm.as_str()).width() as u16).max();
    let [least, most] = NAME;
    let longest = longest.unwrap_or(0).clamp(least, most);
    let name = (columns.saturating_sub(used + 1)).clamp(least, longest);
    let line = |cells: Vec<(String, Tone)>| -> Vec<Span<'static>> {
        let cells = shown.iter().zip(cells).map(|(column, (text, tone))| {
            let width = if column.width == 0 { name } else { column.width };
            look.span(padded(&text, width.into(), column.is_right), tone)
        });
        let mut spans: Vec<_> = cells.flat_map(|cell| [cell, Span::raw(" ")]).collect();
        spans.pop();
        spans
    };
    let titles = shown.iter().map(|column| (column.title.to_owned(), Tone::Dim)).collect();
    let mut lines = vec![Line::from([vec![Span::raw("  ")], line(titles)].concat())];
    let room = room.saturating_sub(1);
    let chosen =
        selected.and_then(|of| rows.iter().position(|row| row.vm_id == of.vm_id)).unwrap_or(0);
    let first = (chosen + 1).saturating_sub(room);
    for (index, row) in rows.iter().enumerate().skip(first).take(room) {
        let cells = shown.iter().map(|column| column.text(app, row)).collect();
        let sign = look.words(if index == chosen { "▸ " } else { "  " });
        let line = Line::from([vec![sign], line(cells)].concat());
        lines.push(if index == chosen { look.chosen(line) } else { line });
    }
    if rows.is_empty() {
        let why = match app.board.as_ref().is_some_and(|board| board.vms.is_empty()) {
            true => "  no VM runs",
            false => "  no VM passes the filter; Esc clears it",
        };
        lines.push(Line::raw(why));
    }
    lines
}

/// A cell of exactly that many columns.
fn padded(text: &str, width: usize, is_right: bool) -> String {
    let text = fitted(text, width);
    let pad = " ".repeat(width.saturating_sub(Span::raw(text.as_str()).width()));
    if is_right { pad + &text } else { text + &pad }
}
