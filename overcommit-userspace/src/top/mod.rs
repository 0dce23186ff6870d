//! `overcommit top`: a screen that follows a living session, or a recording.
//!
//! `app` holds what is looked at and takes keys; `list`, `vm` and `help` give the lines of each
//! view for a size, `columns` what the list has, `plot` those of its plots, in the signs and styles of `look`; `terminal` shows
//! them; `replay` is a recording as a source.

pub mod app;
mod columns;
mod help;
mod list;
pub mod look;
mod plot;
pub mod replay;
#[cfg(test)]
mod story;
pub mod terminal;
mod vm;

use overcommit_recording::model::interval::Interval;
use overcommit_recording::model::run::Run;
use overcommit_recording::model::slow_fault::SlowFault;

/// What a source hands on.
pub enum Update {
    /// An interval is over.
    Interval(Box<(Run, Interval)>),
    /// Slow faults have come.
    SlowFaults(Vec<SlowFault>),
}
