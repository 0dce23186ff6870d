//! A comparison as people read it.

use crate::compare::{Compared, Comparison, FigureName};
use crate::format::text::readable;
use std::fmt::Write;

/// A line for each figure of each VM, and what could not be compared.
pub fn text(compared: &Comparison) -> String {
    let mut text = String::new();
    for entry in &compared.compared {
        let _ = writeln!(text, "{}", line(entry));
    }
    if compared.compared.is_empty() {
        text.push_str("Nothing can be compared: no VM is on both sides.\n");
    }
    for vm in &compared.unmatched {
        let _ = writeln!(text, "{vm}: not in every recording, or its name is not unique there.");
    }
    for left_out in &compared.left_out {
        let _ = writeln!(text, "{left_out}: not compared.");
    }
    for warning in &compared.warnings {
        let _ = writeln!(text, "Note: {warning}.");
    }
    text
}

fn line(entry: &Compared) -> String {
    let change = entry.change().map(|change| format!(" ({:+.0} %)", change * 100.0));
    let figures = format!(
        "{} → {}{}",
        shown(entry.figure, entry.base),
        shown(entry.figure, entry.new),
        change.unwrap_or_default()
    );
    let what = match entry.figure {
        FigureName::P99 => format!("{} p99", entry.metric),
        FigureName::Rate => format!("{} rate", entry.metric),
        FigureName::Share => entry.metric.clone(),
    };
    let claim = match (&entry.why_not, entry.p) {
        (Some(why), _) => format!("not judged, {why}."),
        (None, Some(p)) if entry.is_real => {
            let word = if entry.is_more() { "WORSE" } else { "better" };
            format!("{word}, p = {p:.2e}.")
        }
        (None, Some(p)) if entry.is_too_small => {
            format!("p = {p:.2e}, but the difference is too small to be claimed.")
        }
        (None, p) => format!(
            "no difference can be claimed, p = {:.2}. Not proof of equality.",
            p.unwrap_or(1.0)
        ),
    };
    format!("{}: {what} {figures}: {claim}", entry.vm)
}

fn shown(figure: FigureName, value: Option<f64>) -> String {
    let Some(value) = value else { return "none".to_owned() };
    match figure {
        FigureName::P99 => readable(value as u64),
        FigureName::Share => format!("{:.2} %", value * 100.0),
        FigureName::Rate => format!("{value:.1}/s"),
    }
}
