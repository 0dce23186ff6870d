//! A part of a recording, between two marks; and the marks.

use crate::format::csv;
use crate::format::csv::{reader, seconds_of_us, text, untext};
use crate::model::columns::units;
use crate::recording::folder::{Folder, MARKS};
use anyhow::{Context, Result, bail, ensure};
use std::io::Write;

/// The columns of marks.csv.
pub const COLUMNS: [&str; 2] = ["unix_s", "text"];

/// Intervals that are meant: those that lie in it as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// In Unix microseconds.
    from_us: u64,
    to_us: u64,
}

/// A line of marks.csv.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// When, in Unix microseconds.
    pub at_us: u64,
    /// What begins.
    pub text: String,
}

impl Span {
    /// The whole recording.
    pub const WHOLE: Self = Self { from_us: 0, to_us: u64::MAX };

    /// From that moment on, in Unix seconds.
    pub fn from_s(unix_s: f64) -> Self {
        Self { from_us: (unix_s.max(0.0) * 1e6) as u64, ..Self::WHOLE }
    }

    /// Between two marks; without one, from the start, to the end. Of marks with the
    /// same text, the first, and the first one after it.
    ///
    /// # Errors
    /// marks.csv has no such mark.
    pub fn between(folder: &Folder, from: Option<&str>, to: Option<&str>) -> Result<Self> {
        if from.is_none() && to.is_none() {
            return Ok(Self::WHOLE);
        }
        Self::of(&marks(folder)?, from, to).with_context(|| format!("{}", folder.path().display()))
    }

    fn of(marks: &[Mark], from: Option<&str>, to: Option<&str>) -> Result<Self> {
        let find = |name: &str, after_us: u64| {
            let found = marks.iter().find(|mark| mark.at_us >= after_us && mark.text == name);
            found.map(|mark| mark.at_us).with_context(|| unknown(marks, name, after_us))
        };
        let from_us = from.map_or(Ok(0), |name| find(name, 0))?;
        let to_us = to.map_or(Ok(u64::MAX), |name| find(name, from_us + 1))?;
        Ok(Self { from_us, to_us })
    }

    /// Whether it holds the whole interval, which starts then, in Unix microseconds.
    pub fn holds(self, start_us: u64, length_ns: u64) -> bool {
        start_us >= self.from_us && start_us.saturating_add(length_ns / 1_000) <= self.to_us
    }
}

fn unknown(marks: &[Mark], name: &str, after_us: u64) -> String {
    let after = if after_us == 0 { "" } else { " after the --from mark" };
    let texts: Vec<String> = marks.iter().map(|mark| format!("{:?}", mark.text)).collect();
    if texts.is_empty() {
        return format!("there is no mark {name:?}: this recording has no marks");
    }
    format!("there is no mark {name:?}{after}; this recording has {}", texts.join(", "))
}

/// Each mark, in the order of their making.
///
/// # Errors
/// marks.csv cannot be read.
pub fn marks(folder: &Folder) -> Result<Vec<Mark>> {
    if !folder.has(MARKS) {
        return Ok(Vec::new());
    }
    read(&folder.content(MARKS)?)
        .with_context(|| format!("cannot read {}", folder.file(MARKS).display()))
}

/// Adds a mark to a recording that runs.
///
/// # Errors
/// The text is empty or has more than one line, or the file cannot be written.
pub fn add(folder: &Folder, mark: &Mark) -> Result<()> {
    let line = line(mark.at_us, &mark.text)?;
    // In one piece: others may mark too.
    let mut file = folder.append(MARKS)?;
    file.write_all(&line).with_context(|| format!("cannot write {}", folder.file(MARKS).display()))
}

/// A line of marks.csv.
fn line(at_us: u64, mark: &str) -> Result<Vec<u8>> {
    ensure!(!mark.is_empty(), "the mark's text is empty");
    if mark.chars().any(char::is_control) {
        bail!("the mark's text {mark:?} has more than one line, or control characters");
    }
    csv::rows([[seconds_of_us(at_us), text(mark)]])
}

fn read(file: &[u8]) -> Result<Vec<Mark>> {
    let mut marks = Vec::new();
    for row in reader(file).records() {
        let row = row?;
        let (time, cell) = (row.get(0).unwrap_or_default(), row.get(1).unwrap_or_default());
        let at_us = units(time, 6).with_context(|| format!("unix_s is {time:?}"))?;
        // As the user wrote it.
        let plain = untext(cell);
        marks.push(Mark { at_us, text: plain.to_owned() });
    }
    Ok(marks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks() -> Vec<Mark> {
        let mut file = csv::header(&COLUMNS);
        for (at_us, text) in [(10, "ramp"), (20, "steady, \"a\""), (30, "ramp"), (40, "=end")] {
            file.extend(line(at_us * 1_000_000, text).unwrap());
        }
        read(&file).unwrap()
    }

    #[test]
    fn marks_come_back_as_they_were_written() {
        let texts: Vec<String> = marks().into_iter().map(|mark| mark.text).collect();
        assert_eq!(texts, ["ramp", "steady, \"a\"", "ramp", "=end"]);
        assert!(line(0, "").is_err() && line(0, "two\nlines").is_err());
    }

    #[test]
    fn a_span_holds_whole_intervals() {
        let second = 1_000_000_000;
        let span = Span::of(&marks(), Some("ramp"), Some("ramp")).unwrap();
        for (start_s, held) in [(9, false), (10, true), (29, true), (30, false)] {
            assert_eq!(span.holds(start_s * 1_000_000, second), held, "{start_s}");
        }
        assert!(!span.holds(29_500_000, second));
        assert!(Span::of(&marks(), Some("=end"), None).unwrap().holds(u64::MAX, 0));
        assert!(Span::WHOLE.holds(0, second));
        let error = |from, to| format!("{:#}", Span::of(&marks(), from, to).unwrap_err());
        assert!(error(Some("x"), None).contains("this recording has \"ramp\""));
        assert!(error(Some("=end"), Some("ramp")).contains("after the --from mark"));
    }
}
