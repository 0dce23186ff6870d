//! The failures of the field, each on real VMs: what the guest saw beside what the host
//! saw, and the verdict held against what is known to be true.

mod balloon;
pub mod feedback;
mod java_heap;
pub mod restore;
mod synchronized;
mod thrash;

use crate::results::run;
use anyhow::{Context, Result};
use std::collections::HashMap;
use std::path::Path;

/// A scenario: it is given a folder for its recordings and ends by printing what was seen.
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// What it shows.
    pub shows: &'static str,
    /// Whether it needs /dev/kvm.
    pub needs_kvm: bool,
    /// Runs it.
    pub run: fn(&Path) -> Result<()>,
}

/// Each of them.
pub const ALL: [Scenario; 6] = [
    Scenario {
        name: "thrash",
        shows: "the cliff: a working set that grows past its limit",
        needs_kvm: true,
        run: thrash::run,
    },
    Scenario {
        name: "synchronized",
        shows: "eight VMs, each fine alone, whose jobs start together",
        needs_kvm: true,
        run: synchronized::run,
    },
    Scenario {
        name: "java-heap",
        shows: "a JVM whose full collections touch what the host has swapped out",
        needs_kvm: false,
        run: java_heap::run,
    },
    Scenario {
        name: "balloon",
        shows: "memory that a balloon takes from a guest, and gives back",
        needs_kvm: false,
        run: balloon::run,
    },
    Scenario {
        name: "restore",
        shows: "a guest restored from a snapshot, whose memory comes page by page",
        needs_kvm: true,
        run: restore::run,
    },
    Scenario {
        name: "feedback",
        shows: "two guests, one of them squeezed: what each sees, and what its host tells it",
        needs_kvm: false,
        run: feedback::run,
    },
];

/// A row of a CSV file by column name.
type Row = HashMap<String, String>;

/// A figure of a row; 0 where it was not measured.
fn figure(row: &Row, column: &str) -> Result<f64> {
    let cell = row.get(column).with_context(|| format!("no column {column}"))?;
    if cell.is_empty() { Ok(0.0) } else { Ok(cell.parse()?) }
}

/// Prints what `report` says of a recording, as a user sees it.
fn print_report(folder: &Path) -> Result<()> {
    let report = run(["report", &folder.to_string_lossy()])?;
    print!("{}", String::from_utf8_lossy(&report.stdout));
    Ok(())
}
