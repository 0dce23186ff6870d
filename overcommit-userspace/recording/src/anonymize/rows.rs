//! The tables without names and addresses.

use crate::anonymize::names::{Kind, Pseudonyms};
use crate::format::csv::{header, reader, text, untext};
use crate::model::columns::{self, Column};
use crate::model::evictions::AggressorClass;
use crate::recording::{Folder, span};
use anyhow::{Context, Result};
use csv::{StringRecord, Terminator, WriterBuilder};
use std::collections::BTreeSet;
use std::io::{BufReader, BufWriter, Write};

/// Copies a table. A last row that is torn is left out, and so is what stands in columns that this
/// version does not know.
///
/// # Errors
/// It cannot be read, or the copy cannot be written.
pub(super) fn copy(from: &Folder, to: &Folder, name: &str, names: &mut Pseudonyms) -> Result<()> {
    let failed = || format!("cannot copy {}", from.file(name).display());
    let mut rows = reader(BufReader::new(from.read(name)?));
    let columns: Vec<String> =
        rows.headers().with_context(failed)?.iter().map(str::to_owned).collect();
    let mut file = BufWriter::new(to.append(name)?);
    file.write_all(&header(&columns))?;
    let mut copied = WriterBuilder::new().terminator(Terminator::Any(b'\n')).from_writer(file);
    let known = known_columns();
    let mut row = StringRecord::new();
    while rows.read_record(&mut row).with_context(failed)? {
        if row.len() < columns.len() {
            continue;
        }
        let cells: Vec<String> = columns
            .iter()
            .zip(&row)
            .map(|(column, plain)| match known.contains(column.as_str()) {
                true => cell(column, plain, &columns, &row, names),
                false => String::new(),
            })
            .collect();
        copied.write_record(&cells).with_context(failed)?;
    }
    copied.flush().with_context(failed)
}

fn known_columns() -> BTreeSet<String> {
    fn names<T>(columns: Vec<Column<T>>) -> impl Iterator<Item = String> {
        columns.into_iter().map(|column| column.name.into_owned())
    }
    let marks = span::COLUMNS.map(str::to_owned);
    names(columns::metrics())
        .chain(names(columns::vms()))
        .chain(names(columns::host()))
        .chain(names(columns::evictions()))
        .chain(names(columns::slow_faults()))
        .chain(marks)
        .collect()
}

fn cell(
    column: &str,
    plain: &str,
    columns: &[String],
    row: &StringRecord,
    names: &mut Pseudonyms,
) -> String {
    let name = untext(plain);
    let of = |names: &mut Pseudonyms, kind| text(&names.of(kind, name));
    match column {
        "vm" | "victim" => of(names, Kind::Vm),
        "uuid" => of(names, Kind::Uuid),
        // Of marks.csv.
        "text" => of(names, Kind::Mark),
        "aggressor" => {
            let class = columns.iter().position(|column| column == "aggressor_kind");
            let class = class.and_then(|at| AggressorClass::from_name(row.get(at)?));
            match class {
                Some(AggressorClass::Vm) => of(names, Kind::Vm),
                Some(AggressorClass::Process) | None => of(names, Kind::Process),
                Some(_) => text(&names.of_kernel_thread(name)),
            }
        }
        "thread" => text(&names.of_thread(name)),
        "swap_device" if !name.is_empty() => text(&names.of_device(name)),
        "swapins_by_device" => {
            let each = plain.split(' ').map(|device| match device.rsplit_once('=') {
                Some((device, pages)) => format!("{}={pages}", names.of_device(device)),
                None => device.to_owned(),
            });
            each.collect::<Vec<_>>().join(" ")
        }
        "address" => "0x0".to_owned(),
        "guest_address" => String::new(),
        _ => plain.to_owned(),
    }
}
