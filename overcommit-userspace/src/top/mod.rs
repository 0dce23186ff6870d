//! `overcommit top`: a screen that follows a living session, or a recording.
//!
//! `app` holds what is looked at and takes keys; `list`, `vm` and `help` give the lines of each
//! view for a size, `columns` what the list has, `plot` those of its plots, in the signs and styles of
//! `look`; `moment` says which one is shown, `marks` goes to marks and makes them; `terminal` shows
//! them; `replay` is a recording as a source.

pub mod app;
mod columns;
mod help;
mod list;
pub mod look;
mod marks;
mod moment;
mod plot;
pub mod replay;
#[cfg(test)]
pub(crate) mod story;
pub mod terminal;
mod vm;

use overcommit_recording::model::interval::Interval;
use overcommit_recording::model::run::Run;
use overcommit_recording::model::slow_fault::SlowFault;
use overcommit_recording::recent::slim;
use overcommit_recording::recording::span::Mark;
use std::sync::Arc;

/// What a source hands on.
pub enum Update {
    /// An interval is over.
    Interval(Arc<Run>, Box<Interval>),
    /// Slow faults have come, each of the VM with that id.
    SlowFaults(Vec<(String, SlowFault)>),
    /// All marks there are by now.
    Marks(Vec<Mark>),
}

impl Update {
    /// An interval, without what no screen shows.
    pub fn interval(run: &Arc<Run>, interval: &Interval) -> Self {
        Self::Interval(Arc::clone(run), Box::new(slim(interval)))
    }

    /// Slow faults of VMs of that run.
    pub fn slow_faults(run: &Run, faults: &[SlowFault]) -> Self {
        let named = |fault: &SlowFault| Some((run.vms.get(fault.vm)?.vm_id.clone(), fault.clone()));
        Self::SlowFaults(faults.iter().filter_map(named).collect())
    }
}
