//! A comparison as a page that needs neither network nor script.

use crate::compare::pairs::{Pair, added, matched};
use crate::compare::series::Side;
use crate::compare::{Compared, Comparison};
use crate::format::text::time_of_day;
use crate::html::curve::{Plot, plot};
use crate::html::tables::whole;
use crate::model::name::escape;
use crate::view::comparison_text::{
    COLUMNS, WITHOUT_CLAIM, cells, changed, gaps, headline, in_order,
};
use crate::view::style::plain;
use anyhow::Result;
use askama::Template;
use std::collections::BTreeMap;

/// VMs whose curves are drawn.
const DRAWN: usize = 24;
/// Figures that a title names.
const TITLED: usize = 3;
/// Recordings of a side that are named.
const NAMED: usize = 4;

/// What the template takes. All text is escaped by it.
#[derive(Template)]
#[template(path = "comparison.html")]
struct Page {
    title: String,
    sides: [(&'static str, String); 2],
    columns: [&'static str; 6],
    rows: Vec<Row>,
    vms: Vec<(String, Vec<Plot>)>,
    not_drawn: usize,
    notes: Vec<String>,
    style: &'static str,
}

struct Row {
    class: &'static str,
    cells: [String; 6],
}

/// The page of what was compared.
///
/// # Errors
/// There is no memory.
pub fn comparison(compared: &Comparison, base: &[Side], new: &[Side]) -> Result<String> {
    let (mut pairs, _) = matched(base, new);
    // The VM whose figures come first comes first.
    let entries = in_order(&compared.compared);
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    for (place, entry) in entries.iter().enumerate() {
        places.entry(&entry.vm).or_insert(place);
    }
    pairs.sort_by_key(|pair| places.get(pair.name.as_str()).copied().unwrap_or(usize::MAX));
    let not_drawn = pairs.len().saturating_sub(DRAWN);
    pairs.truncate(DRAWN);
    let drawn = pairs.iter().map(|pair| (pair.name.clone(), plots(pair)));
    let page = Page {
        title: title(compared),
        sides: [("Before", facts(base)), ("After", facts(new))],
        columns: COLUMNS,
        rows: entries.into_iter().map(row).collect(),
        vms: drawn.filter(|(_, plots)| !plots.is_empty()).collect(),
        not_drawn,
        notes: notes(compared),
        style: include_str!("../../templates/style.css"),
    };
    Ok(page.render()?)
}

/// What changed for whom, in a line.
fn title(compared: &Comparison) -> String {
    let said = [("WORSE", true), ("Better", false)].into_iter().filter_map(|(word, is_more)| {
        let of = changed(&compared.compared, is_more);
        let more = of.len().saturating_sub(TITLED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let named = of.iter().take(TITLED).cloned().collect::<Vec<_>>().join(", ");
        (!of.is_empty()).then(|| format!("{word}: {named}{more}."))
    });
    let said = said.collect::<Vec<_>>().join(" ");
    if !said.is_empty() {
        return said;
    }
    let headline = plain(&headline(&compared.compared));
    let title = headline.split_whitespace().collect::<Vec<_>>().join(" ");
    title.strip_suffix(WITHOUT_CLAIM).unwrap_or(&title).trim_end().to_owned()
}

/// What makes the sides unlike, and what could not be compared.
fn notes(compared: &Comparison) -> Vec<String> {
    let sentence = |warning: &String| {
        let mut letters = warning.chars();
        let first = letters.next().map(|c| c.to_uppercase().to_string()).unwrap_or_default();
        format!("{first}{}.", letters.as_str())
    };
    compared.warnings.iter().map(sentence).chain(gaps(compared)).collect()
}

fn row(entry: &Compared) -> Row {
    let class = match (entry.is_real, entry.is_more()) {
        (true, true) => "harmt",
        (true, false) => "bettert",
        (false, _) => "dim",
    };
    let [vm, figure, before, after, change, claim] = cells(entry);
    Row { class, cells: [vm, figure, whole(&before), whole(&after), whole(&change), claim] }
}

/// Its distributions, those of the recordings of a side added.
fn plots(pair: &Pair<'_>) -> Vec<Plot> {
    let metrics = pair.counted().into_iter();
    let plots = metrics.filter_map(|metric| {
        let (base, new) = (added(&pair.base, metric), added(&pair.new, metric));
        plot(metric.as_str(), [("before", &base), ("after", &new)])
    });
    plots.collect()
}

/// Which recordings they are.
fn facts(sides: &[Side]) -> String {
    let each = sides.iter().take(NAMED).map(|side| {
        let (run, folder) = (&side.recording.run, side.recording.folder.path());
        let start = run.clocks.start.realtime_ns as f64 / 1e9;
        let at = jiff::Timestamp::from_second(start as i64).unwrap_or_default();
        let folder = escape(folder.as_os_str().as_encoded_bytes());
        format!("{folder} ({}, {} {})", run.host, at.strftime("%Y-%m-%d"), time_of_day(start))
    });
    let mut facts: Vec<String> = each.collect();
    if sides.len() > NAMED {
        facts.push(format!("and {} more", sides.len() - NAMED));
    }
    facts.join(", ")
}
