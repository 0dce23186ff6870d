//! Rows of a CSV file of a recording, read back one by one through its columns.

use crate::format::csv::{reader, untext};
use crate::model::columns::{Column, Draft, Members, Unit};
use crate::model::interval::Place;
use crate::recording::folder::Folder;
use crate::recording::lines::Lines;
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Take};

/// A row that was read.
pub(super) struct Taken<T> {
    /// Its interval.
    pub(super) place: Place,
    /// What it says.
    pub(super) of: T,
    /// Number of rows that its interval has in intervals.csv, of a row of vms.csv.
    pub(super) metrics: usize,
    /// Where it ends in the file.
    end: u64,
}

/// What a row turns out to be.
enum Row<T> {
    /// One that is to be read.
    Taken(Taken<T>),
    /// Of an interval that is not to be read, as are all after it.
    Behind,
    /// Of a VM that is left out.
    LeftOut,
}

/// The rows of a file, in order, as far as lines are whole.
pub(super) struct Rows<'a, T> {
    name: &'static str,
    reader: csv::Reader<Lines<Take<File>>>,
    /// Cells with their columns.
    columns: Vec<(usize, Column<T>)>,
    interval: Option<usize>,
    metrics: Option<usize>,
    vms: &'a Members<'a>,
    none: fn() -> T,
    next: Option<Taken<T>>,
    /// Intervals from this one on are not read.
    limit: u64,
    /// Where the last row that was taken ends.
    end: u64,
}

impl<'a, T> Rows<'a, T> {
    /// Begins to read a file of a recording whose first `limit` intervals are complete. `none`
    /// makes a record before a row is read into it.
    ///
    /// # Errors
    /// The file cannot be read, or lacks a column that every version has.
    pub(super) fn open(
        folder: &Folder,
        name: &'static str,
        columns: Vec<Column<T>>,
        vms: &'a Members<'a>,
        none: fn() -> T,
        limit: u64,
    ) -> Result<Self> {
        let failed = || format!("cannot read {name}");
        let mut file = folder.read(name)?;
        let whole = whole_length(&mut file).with_context(failed)?;
        let mut reader = reader(Lines::new(file.take(whole)));
        let head = reader.headers().with_context(failed)?.clone();
        let place = |name: &str| head.iter().position(|cell| cell == name);
        if let Some(column) =
            columns.iter().find(|column| column.is_required && place(&column.name).is_none())
        {
            bail!("cannot read {name}: no column {}", column.name);
        }
        let columns = columns.into_iter();
        let columns = columns.filter_map(|column| Some((place(&column.name)?, column))).collect();
        let (interval, metrics) = (place("interval"), place("metrics"));
        let end = reader.position().byte();
        let mut rows =
            Self { name, reader, columns, interval, metrics, vms, none, next: None, limit, end };
        rows.advance()?;
        Ok(rows)
    }

    /// Whether the file has a column.
    pub(super) fn has(&self, name: &str) -> bool {
        self.columns.iter().any(|(_, column)| column.name == name)
    }

    /// The next row, if it is of that interval.
    ///
    /// # Errors
    /// The row after it is malformed.
    pub(super) fn take(&mut self, number: u64) -> Result<Option<Taken<T>>> {
        if self.next.as_ref().is_none_or(|next| next.place.number != number) {
            return Ok(None);
        }
        let taken = self.next.take();
        self.end = taken.as_ref().map_or(self.end, |taken| taken.end);
        self.advance()?;
        Ok(taken)
    }

    /// Reads the rows that are left, and gives where the last one ends in the file.
    ///
    /// # Errors
    /// One is malformed.
    pub(super) fn last(mut self, mut take: impl FnMut(&T)) -> Result<u64> {
        while let Some(taken) = self.next.take() {
            take(&taken.of);
            self.end = taken.end;
            self.advance()?;
        }
        Ok(self.end)
    }

    /// The row that comes next.
    pub(super) fn peek(&self) -> Option<&Taken<T>> {
        self.next.as_ref()
    }

    fn advance(&mut self) -> Result<()> {
        self.next = None;
        let mut record = csv::StringRecord::new();
        let name = self.name;
        let failed = || format!("cannot read {name}");
        while self.reader.read_record(&mut record).with_context(failed)? {
            let line = self.reader.position().line() - 1;
            let row =
                self.read(&record).with_context(|| format!("cannot read {name}: line {line}"));
            match row? {
                Row::LeftOut => {}
                Row::Behind => break,
                Row::Taken(row) => {
                    self.next = Some(row);
                    break;
                }
            }
        }
        Ok(())
    }

    fn read(&self, record: &csv::StringRecord) -> Result<Row<T>> {
        let number = self.interval.and_then(|cell| record.get(cell));
        if let Some(number) = number {
            let number: u64 =
                number.parse().ok().with_context(|| format!("interval is {number:?}"))?;
            if number >= self.limit {
                return Ok(Row::Behind);
            }
        }
        let (place, of) = (Place::default(), (self.none)());
        let mut draft = Draft { vms: self.vms, is_left_out: false, place, of };
        for (cell, column) in &self.columns {
            let cell = record.get(*cell).with_context(|| format!("no column {}", column.name))?;
            let plain = if column.unit == Unit::Text { untext(cell) } else { cell };
            column.set(&mut draft, plain)?;
        }
        let metrics = self.metrics.and_then(|cell| record.get(cell));
        let metrics = metrics.and_then(|count| count.parse().ok()).unwrap_or(0);
        let end = self.reader.position().byte();
        if draft.is_left_out {
            return Ok(Row::LeftOut);
        }
        Ok(Row::Taken(Taken { place: draft.place, of: draft.of, metrics, end }))
    }
}

/// How long a file is up to its last whole line.
pub(super) fn whole_length(file: &mut File) -> Result<u64> {
    const STEP: u64 = 64 << 10;
    let mut end = file.seek(SeekFrom::End(0))?;
    let mut chunk = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(STEP);
        file.seek(SeekFrom::Start(start))?;
        chunk.clear();
        file.take(end - start).read_to_end(&mut chunk)?;
        if let Some(last) = chunk.iter().rposition(|byte| *byte == b'\n') {
            file.seek(SeekFrom::Start(0))?;
            return Ok(start + last as u64 + 1);
        }
        end = start;
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(0)
}
