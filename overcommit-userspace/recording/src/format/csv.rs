//! CSV as spreadsheets and pandas read it: RFC 4180, UTF-8, LF, by column name.

use crate::model::columns::{Column, Row, Unit, Value};
use anyhow::Result;
use csv::{ReaderBuilder, Terminator, WriterBuilder};
use std::io::Read;

/// Rows as bytes.
///
/// # Errors
/// None that can happen in memory.
pub fn rows<R: AsRef<[String]>>(rows: impl IntoIterator<Item = R>) -> Result<Vec<u8>> {
    let mut writer =
        WriterBuilder::new().terminator(Terminator::Any(b'\n')).from_writer(Vec::new());
    for row in rows {
        writer.write_record(row.as_ref())?;
    }
    Ok(writer.into_inner()?)
}

/// The header line of these columns.
pub fn header(columns: &[impl AsRef<str>]) -> Vec<u8> {
    let columns: Vec<&str> = columns.iter().map(AsRef::as_ref).collect();
    let mut line = columns.join(",").into_bytes();
    line.push(b'\n');
    line
}

/// The header line of a table.
pub fn head<T>(columns: &[Column<T>]) -> Vec<u8> {
    header(&columns.iter().map(|column| column.name.as_ref()).collect::<Vec<_>>())
}

/// The cells of a row of a table.
pub fn cells<T>(columns: &[Column<T>], row: &Row<'_, T>) -> Vec<String> {
    columns.iter().map(|column| cell(&column.get(row), column.unit)).collect()
}

/// A figure as a cell; empty where it was not measured.
pub fn cell(value: &Value, unit: Unit) -> String {
    match (value, unit) {
        (Value::Absent, _) => String::new(),
        (Value::Count(ns), Unit::Nanoseconds) => seconds_of_ns(*ns),
        (Value::Count(us), Unit::Microseconds) => seconds_of_us(*us),
        (Value::Count(address), Unit::Address) => format!("{address:#x}"),
        (Value::Count(count), _) => count.to_string(),
        (Value::Signed(count), _) => count.to_string(),
        (Value::Ratio(ratio), Unit::Tenths) => short(format!("{ratio:.1}")),
        (Value::Ratio(ratio), Unit::PerSecond | Unit::Thousandths) => short(format!("{ratio:.3}")),
        (Value::Ratio(ratio), _) => short(format!("{ratio:.6}")),
        (Value::Word(word), _) => (*word).to_owned(),
        (Value::Text(plain), Unit::Text) => text(plain),
        (Value::Text(plain), _) => plain.clone(),
    }
}

/// Reads rows by column name.
pub fn reader<R: Read>(source: R) -> csv::Reader<R> {
    ReaderBuilder::new().flexible(true).from_reader(source)
}

/// A cell of foreign text. A spreadsheet would run it as a formula if it began
/// with one of these characters.
pub fn text(cell: &str) -> String {
    if cell.starts_with(['=', '+', '-', '@', '\t', '\r']) {
        format!("'{cell}")
    } else {
        cell.to_owned()
    }
}

/// The text that such a cell was made of.
pub fn untext(cell: &str) -> &str {
    cell.strip_prefix('\'').filter(|plain| text(plain) == cell).unwrap_or(cell)
}

/// A cell that is empty where nothing was measured.
pub fn optional(value: Option<impl ToString>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

/// Unix microseconds as seconds.
pub fn seconds_of_us(us: u64) -> String {
    short(format!("{}.{:06}", us / 1_000_000, us % 1_000_000))
}

/// Nanoseconds as seconds.
pub fn seconds_of_ns(ns: u64) -> String {
    short(format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000))
}

/// A number with a point, without the zeros at its end, which were a fourteenth of a recording.
fn short(mut number: String) -> String {
    let digits = number.trim_end_matches('0');
    number.truncate(digits.strip_suffix('.').unwrap_or(digits).len());
    if number == "-0" { "0".to_owned() } else { number }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::columns::units;

    #[test]
    fn a_name_is_no_formula() {
        for (cell, safe) in [
            ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
            ("+1", "'+1"),
            ("-1", "'-1"),
            ("@x", "'@x"),
            ("web-01", "web-01"),
            ("", ""),
        ] {
            assert_eq!(text(cell), safe);
        }
        let row = [text("a,\"b\""), "1".to_owned()];
        assert_eq!(rows([&row[..]]).unwrap(), b"\"a,\"\"b\"\"\",1\n");
    }

    #[test]
    fn numbers_end_with_what_they_say() {
        for (ratio, unit, said) in [
            (0.0, Unit::Share, "0"),
            (-0.000_000_1, Unit::Share, "0"),
            (0.25, Unit::Share, "0.25"),
            (100.0, Unit::PerSecond, "100"),
            (-12.5, Unit::PerSecond, "-12.5"),
            (2.0, Unit::Tenths, "2"),
        ] {
            assert_eq!(cell(&Value::Ratio(ratio), unit), said);
        }
        assert_eq!(seconds_of_us(1_764_000_000_000_000), "1764000000");
        assert_eq!(seconds_of_ns(1_000_000_100), "1.0000001");
        assert_eq!(seconds_of_ns(0), "0");
    }

    #[test]
    fn seconds_come_back() {
        for us in [0, 1, 999_999, 1_000_000, 1_764_000_001_250_000] {
            assert_eq!(units(&seconds_of_us(us), 6), Some(us));
            assert_eq!(units(&seconds_of_ns(us), 9), Some(us));
        }
        for text in ["", "x", "1.2.3", "-1", "1.0000001", "99999999999999999999"] {
            assert_eq!(units(text, 6), None, "{text}");
        }
    }
}
