//! The documents that are made from what the code says of its figures.

use crate::model::columns::{self, Column, Unit};
use crate::model::metric::FAMILIES;
use crate::recording::span;
use crate::summary::table;
use std::fmt::Write;

/// docs/columns.md: every metric, and every column of every file.
pub fn columns() -> String {
    let mut text = String::from(
        "# Metrics and columns\n\n\
         Made by `cargo xtask docs` from the code that writes and reads the files. An empty cell \
         was not measured; 0 was measured. Columns are read by name and only ever appended. Text \
         that a spreadsheet would take for a formula has a `'` before it. Rows of one interval \
         join by `start_unix_s`. A rate is a count or sum ÷ `length_s`; in vms.csv, ÷ \
         `recorded_ns`: a VM may start or end within.\n",
    );
    text.push_str("\n## Metrics\n\n| metric | from → to |\n| --- | --- |\n");
    for family in FAMILIES {
        let _ = writeln!(text, "| `{}` | {} |", family.name, family.about);
    }
    columns_of(&mut text, "host.csv", "one row per interval", &columns::host());
    columns_of(&mut text, "vms.csv", "one row per interval and VM", &columns::vms());
    columns_of(
        &mut text,
        "intervals.csv",
        "one row per interval, VM and metric",
        &columns::metrics(),
    );
    let rows = "one row per interval, victim and aggressor";
    columns_of(&mut text, "evictions.csv", rows, &columns::evictions());
    let rows = "one row per fault of at least `--slow-faults`";
    columns_of(&mut text, "slow-faults.csv", rows, &columns::slow_faults());
    head(&mut text, "summary.csv", "one row per VM and metric, of the whole run");
    table::columns().for_each(|column| row(&mut text, column.name, column.unit, column.about));
    let [at, text_of] = span::COLUMNS;
    head(&mut text, "marks.csv", "one row per mark, of `mark` or `top`");
    row(&mut text, at, Unit::Microseconds, "When, in Unix time");
    row(&mut text, text_of, Unit::Text, "What began then");
    text
}

fn columns_of<T>(text: &mut String, file: &str, rows: &str, columns: &[Column<T>]) {
    head(text, file, rows);
    columns.iter().for_each(|column| row(text, &column.name, column.unit, &column.about));
}

fn head(text: &mut String, file: &str, rows: &str) {
    let _ = write!(text, "\n## {file}: {rows}\n\n| column | unit | what |\n| --- | --- | --- |\n");
}

fn row(text: &mut String, name: &str, unit: Unit, about: &str) {
    let _ = writeln!(text, "| `{name}` | {} | {about} |", unit.name());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn documents_are_as_the_code_says() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/columns.md");
        let there = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(there == columns(), "docs/columns.md is not as the code: cargo xtask docs");
    }
}
