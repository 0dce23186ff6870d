//! What a summary says of its recording.

use crate::model::cost::Cost;
use crate::model::run::{Run, StoppedBy};
use serde::Serialize;
use std::collections::BTreeMap;

/// What of run.json tells one recording from another.
#[derive(Clone, Debug, Serialize)]
pub struct SummaryRun {
    /// Version of overcommit.
    pub tool_version: String,
    /// Host name.
    pub host: String,
    /// Kernel release.
    pub kernel: String,
    /// Where faults were seen.
    pub backend: String,
    /// `--label`
    pub labels: BTreeMap<String, String>,
    /// The command that was run.
    pub command: Vec<String>,
    /// How it ended, see [`Run::command_status`].
    pub command_status: Option<u8>,
    /// Why it ended; `null` while it runs, and of one that was killed.
    pub stopped_by: Option<StoppedBy>,
    /// What it took of the host, see [`Run::cost`].
    pub cost: Option<Cost>,
}

impl SummaryRun {
    /// Of a recording.
    pub fn of(run: &Run) -> Self {
        Self {
            tool_version: run.tool_version.clone(),
            host: run.host.clone(),
            kernel: run.kernel.clone(),
            backend: run.backend.name.clone(),
            labels: run.options.labels.clone(),
            command: run.options.command.clone(),
            command_status: run.command_status,
            stopped_by: run.stopped_by,
            cost: run.cost.clone(),
        }
    }
}
