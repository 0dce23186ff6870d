//! A recording as other programs read it.

pub mod files;
mod perfetto;

use crate::recording::{Folder, Recording, Span};
use anyhow::Result;
use clap::ValueEnum;
use files::Selection;
use std::path::PathBuf;

/// The folder for what is made of it, within the recording's.
const FOLDER: &str = "export";

/// What to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// HdrHistogram's log without tags, in nanoseconds
    Hlog,
    /// Percentile distribution, in milliseconds
    Hgrm,
    /// Rows of intervals.csv
    Csv,
    /// One trace for ui.perfetto.dev: slow faults, states, marks, figures over time
    Perfetto,
}

/// Writes the files below `into`, or below a folder in the recording's own; gives where they are.
///
/// # Errors
/// Nothing is meant, the recording cannot be read, or a file cannot be written.
pub fn write(
    recording: &Recording,
    span: Span,
    format: Format,
    selection: &Selection,
    into: Option<&Folder>,
) -> Result<Vec<PathBuf>> {
    let format = match format {
        Format::Hlog => files::Format::Hlog,
        Format::Hgrm => files::Format::Hgrm,
        Format::Csv => files::Format::Csv,
        Format::Perfetto => {
            return Ok(vec![perfetto::write(recording, span, selection, into)?]);
        }
    };
    files::write(recording, span, format, selection, into)
}
