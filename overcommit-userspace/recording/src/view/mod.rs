//! A recording as people read it.

pub mod comparison_text;
pub mod cost_text;
pub mod documents;
pub mod facts;
pub mod losses;
pub mod memory_text;
pub mod presence;
pub mod progress;
pub mod style;
pub mod summary_text;
pub mod verdict_text;
pub mod vm_text;

use comfy_table::{ContentArrangement, Table, presets};
use textwrap::core::display_width;
use textwrap::{Options, WordSplitter, fill};

/// Columns of a line.
const WIDTH: usize = 80;
/// Stands for the blank in front of a unit while lines are broken.
const GLUE: char = '\u{e000}';

/// A table without lines, as wide as it needs.
pub fn plain_table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table
}

/// What fits into so many columns.
pub fn cut(text: &str, columns: usize) -> String {
    let mut cut = String::new();
    for character in text.chars() {
        cut.push(character);
        if display_width(&cut) > columns {
            cut.pop();
            break;
        }
    }
    cut
}

/// The text, with a sign at its end where it had to be cut.
pub fn fitted(text: &str, columns: usize) -> String {
    if display_width(text) <= columns {
        text.to_owned()
    } else {
        cut(text, columns.saturating_sub(1)) + "…"
    }
}

/// A paragraph of lines that end at the last column, the first and the others indented so. A figure
/// stays with its unit.
fn wrapped(text: &str, first: &str, others: &str) -> String {
    wrapped_at(WIDTH, text, first, others)
}

/// The same, with lines of that many columns.
pub fn wrapped_at(columns: usize, text: &str, first: &str, others: &str) -> String {
    let mut glued = text.to_owned();
    for unit in ["%", "KiB", "MiB", "GiB", "TiB"] {
        glued = glued.replace(&format!(" {unit}"), &format!("{GLUE}{unit}"));
    }
    let options = Options::new(columns).initial_indent(first).subsequent_indent(others);
    // Names, options and versions hold hyphens, and stay whole.
    let options = options.word_splitter(WordSplitter::NoHyphenation);
    fill(&glued, options).replace(GLUE, " ")
}
