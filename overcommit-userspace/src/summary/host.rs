//! The host over a whole run.

use crate::model::memory::Headroom;
use crate::model::state::{State, Times};
use crate::recording::Recording;
use crate::recording::rows::{HostFigures, HostRow};
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;

/// The host over the whole run.
#[derive(Debug, Serialize)]
pub struct SummaryHost {
    /// How much swapping hurt anybody.
    pub swap: StateSummary,
    /// How hard memory was taken back from VMs.
    pub balloon: StateSummary,
    /// How near the edge it was.
    pub overcommit: StateSummary,
    /// Its memory, as last known.
    pub memory: HostFigures,
    /// How the headroom moved; `null` if it was never known.
    pub headroom: Option<Moved>,
}

/// The headroom over the run, in bytes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Moved {
    /// When it was first known.
    pub first: Headroom,
    /// At its least.
    pub least: Headroom,
    /// When it was last known.
    pub last: Headroom,
}

/// States over the whole run.
#[derive(Debug, Serialize)]
pub struct StateSummary {
    /// The worst.
    pub worst: &'static str,
    /// Time in each, in seconds; the worst last.
    #[serde(serialize_with = "as_map")]
    pub seconds: Vec<(&'static str, f64)>,
}

fn as_map<S: Serializer>(
    seconds: &[(&'static str, f64)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(seconds.iter().copied())
}

impl StateSummary {
    /// Of the time in each.
    pub fn of<S: State>(times: &Times<S>) -> Self {
        let worst = times.keys().max().copied().unwrap_or_default();
        let seconds = times.iter().map(|(state, ns)| (state.name(), *ns as f64 / 1e9));
        Self { worst: worst.name(), seconds: seconds.collect() }
    }
}

impl SummaryHost {
    /// Of a recording.
    pub fn of(recording: &Recording) -> Self {
        let rows: Vec<&HostRow> = recording.host_rows().collect();
        let headroom: Vec<Headroom> =
            rows.iter().filter_map(|row| row.memory.headroom_bytes).collect();
        let least = headroom.iter().copied().min_by_key(|left| left.lower);
        let known = rows.iter().rfind(|row| row.memory.physical_bytes.is_some());
        Self {
            swap: times(&rows, |row| row.swap_state),
            balloon: times(&rows, |row| row.balloon_state),
            overcommit: times(&rows, |row| row.overcommit_state),
            memory: known.map(|row| row.memory.clone()).unwrap_or_default(),
            headroom: least
                .zip(headroom.first())
                .zip(headroom.last())
                .map(|((least, first), last)| Moved { first: *first, least, last: *last }),
        }
    }
}

fn times<S: State>(rows: &[&HostRow], state: fn(&HostRow) -> S) -> StateSummary {
    let mut times = BTreeMap::new();
    for row in rows {
        *times.entry(state(row)).or_default() += row.length_ns;
    }
    StateSummary::of(&times)
}
