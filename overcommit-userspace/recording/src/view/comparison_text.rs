//! A comparison as people read it.

use crate::compare::{Compared, Comparison, FigureName};
use crate::format::text::readable;
use crate::view::style::bad;
use crate::view::verdict_text::short;
use crate::view::{plain_table, wrapped};
use comfy_table::CellAlignment;
use std::fmt::Write;

/// What is proven, a row for each figure of each VM, and what could not be compared.
pub fn text(compared: &Comparison) -> String {
    let mut text = headline(&compared.compared);
    if !compared.compared.is_empty() {
        let said = often(&compared.compared);
        let _ = writeln!(text, "\n{}\n", table(&compared.compared, said).trim_fmt());
    }
    for gap in gaps(compared) {
        let _ = writeln!(text, "{}", wrapped(&gap, "", "  "));
    }
    for warning in &compared.warnings {
        let _ = writeln!(text, "{}", wrapped(&format!("Note: {warning}."), "", "  "));
    }
    text
}

/// What could not be compared, each a sentence.
pub(crate) fn gaps(compared: &Comparison) -> Vec<String> {
    let unmatched = compared.unmatched.iter();
    let mut gaps: Vec<String> = unmatched
        .map(|vm| format!("{vm}: not in every recording, or its name is not unique there."))
        .collect();
    gaps.extend(compared.left_out.iter().map(|left_out| format!("{left_out}: not compared.")));
    gaps
}

/// What leads to the table where nothing can be told.
pub(crate) const WITHOUT_CLAIM: &str = "As measured, without a claim:";

/// What changed for whom, or why nothing can be said.
pub(crate) fn headline(compared: &[Compared]) -> String {
    if compared.is_empty() {
        return "Nothing can be compared: no VM is on both sides.\n".to_owned();
    }
    let lines = [(bad("WORSE"), true), ("Better".to_owned(), false)];
    let lines: String = lines
        .into_iter()
        .map(|(word, is_more)| (word, changed(compared, is_more)))
        .filter(|(_, changed)| !changed.is_empty())
        .map(|(word, changed)| format!("{word}: {}.\n", changed.join(", ")))
        .collect();
    if !lines.is_empty() {
        return lines;
    }
    if compared.iter().any(|entry| entry.p.is_some()) {
        return "No significant difference found. There may still be one.\n".to_owned();
    }
    let reason = often(compared).unwrap_or("nothing could be judged");
    wrapped(&format!("Cannot tell: {reason}. {WITHOUT_CLAIM}"), "", "  ") + "\n"
}

/// What is proven to have become more, or less.
pub(crate) fn changed(compared: &[Compared], is_more: bool) -> Vec<String> {
    let real = compared.iter().filter(|entry| entry.is_real && entry.is_more() == is_more);
    real.map(|entry| format!("{} {}", entry.vm, figure(entry))).collect()
}

/// The most frequent reason why nothing could be judged of a figure, where no figure was.
fn often(compared: &[Compared]) -> Option<&str> {
    if compared.iter().any(|entry| entry.p.is_some()) {
        return None;
    }
    let reasons: Vec<&str> = compared.iter().filter_map(|entry| entry.why_not.as_deref()).collect();
    let often = |reason: &&str| reasons.iter().filter(|other| *other == reason).count();
    reasons.iter().copied().max_by_key(often)
}

fn table(compared: &[Compared], said: Option<&str>) -> comfy_table::Table {
    let mut table = plain_table();
    table.set_header(COLUMNS.map(str::to_uppercase));
    for entry in in_order(compared) {
        let mut cells = cells(entry);
        cells[0] = short(&entry.vm);
        if entry.why_not.as_deref().is_some_and(|why| said == Some(why)) {
            cells[5].clear();
        }
        table.add_row(cells);
    }
    for column in table.column_iter_mut().filter(|column| (2..5).contains(&column.index)) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// What a comparison says of each figure of each VM.
pub(crate) const COLUMNS: [&str; 6] = ["VM", "figure", "before", "after", "change", "claim"];

/// What is proven comes first, then what could be judged; of each the largest change.
pub(crate) fn in_order(compared: &[Compared]) -> Vec<&Compared> {
    let mut entries: Vec<&Compared> = compared.iter().collect();
    let size = |entry: &Compared| entry.change().map_or(f64::INFINITY, f64::abs);
    entries.sort_by(|one, other| {
        let rank = |entry: &Compared| (!entry.is_real, entry.p.is_none());
        rank(one).cmp(&rank(other)).then(size(other).total_cmp(&size(one)))
    });
    entries
}

/// Its [`COLUMNS`].
pub(crate) fn cells(entry: &Compared) -> [String; 6] {
    [
        entry.vm.clone(),
        figure(entry),
        shown(entry.figure, entry.base),
        shown(entry.figure, entry.new),
        change(entry),
        claim(entry),
    ]
}

fn figure(entry: &Compared) -> String {
    match entry.figure {
        FigureName::P99 => format!("{} p99", entry.metric),
        FigureName::Rate => format!("{} rate", entry.metric),
        FigureName::Share => entry.metric.clone(),
    }
}

/// By how much: of a share in points, else of what it was.
fn change(entry: &Compared) -> String {
    let points = || Some((entry.new? - entry.base?) * 100.0);
    match entry.figure {
        FigureName::Share => points().map(|points| format!("{points:+.2} points")),
        FigureName::P99 | FigureName::Rate => {
            entry.change().map(|change| format!("{:+.0} %", change * 100.0))
        }
    }
    .unwrap_or_default()
}

fn claim(entry: &Compared) -> String {
    match (&entry.why_not, entry.p) {
        (Some(why), _) => format!("not judged: {why}"),
        (None, Some(p)) if entry.is_real => {
            let word = if entry.is_more() { "WORSE" } else { "better" };
            format!("{word}, p = {p:.2e}")
        }
        (None, Some(p)) if entry.is_too_small => {
            format!("too small to be claimed, p = {p:.2e}")
        }
        (None, p) => format!("no claim, p = {:.2}", p.unwrap_or(1.0)),
    }
}

fn shown(figure: FigureName, value: Option<f64>) -> String {
    let Some(value) = value else { return "none".to_owned() };
    match figure {
        FigureName::P99 => readable(value as u64),
        FigureName::Share => format!("{:.2} %", value * 100.0),
        FigureName::Rate => format!("{value:.1}/s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::style::plain;

    fn entry(metric: &str, figure: FigureName, base: f64, new: f64) -> Compared {
        Compared {
            vm: "web".to_owned(),
            metric: metric.to_owned(),
            figure,
            base: Some(base),
            new: Some(new),
            p: Some(0.5),
            is_real: false,
            is_too_small: false,
            drifts: false,
            why_not: None,
        }
    }

    fn of(compared: Vec<Compared>) -> String {
        text(&Comparison {
            compared,
            unmatched: Vec::new(),
            left_out: Vec::new(),
            warnings: Vec::new(),
        })
    }

    #[test]
    fn what_is_proven_comes_first() {
        let rate = || entry("fault.major", FigureName::Rate, 100.0, 101.0);
        let share = entry("stall.share", FigureName::Share, 0.1, 0.3);
        let worse = Compared { is_real: true, p: Some(0.001), ..share };
        let p99 = entry("fault.major", FigureName::P99, 2e6, 1e6);
        let better = Compared { is_real: true, p: Some(0.002), ..p99 };
        let said = of(vec![rate(), worse, better]);
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(plain(lines[0]), "WORSE: web stall.share.");
        assert_eq!(lines[1], "Better: web fault.major p99.");
        assert!(lines[4].contains("stall.share") && lines[4].contains("+20.00 points"), "{said}");
        assert!(lines[5].contains("-50 %") && lines[5].contains("better, p = 2.00e-3"), "{said}");
        assert!(lines[6].contains("no claim, p = 0.50"), "{said}");
        assert!(of(vec![rate()]).starts_with("No significant difference found."));
    }

    #[test]
    fn what_cannot_be_told_says_why() {
        let rate = entry("fault.major", FigureName::Rate, 0.0, 9.0);
        let short = Compared { p: None, why_not: Some("too short: 9 s".to_owned()), ..rate };
        let said = of(vec![short]);
        assert!(said.starts_with("Cannot tell: too short: 9 s. As measured"), "{said}");
        assert!(!said.contains("not judged"), "it is said twice: {said}");
        assert!(said.contains("FIGURE"), "{said}");
        assert!(of(Vec::new()).starts_with("Nothing can be compared"));
    }
}
