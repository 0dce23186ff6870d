//! A recording as people read it.

pub mod comparison_text;
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

/// A table without lines, as wide as it needs.
pub fn plain_table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table
}
