//! Two recordings compared, or several on each side.

use crate::compare::figures::figures;
use crate::compare::judge::{Compared, LEAST_IN_BLOCKS, judge};
use crate::compare::pairs::{Pair, matched};
use crate::compare::series::Side;
use crate::format::text::{readable, readable_bytes};
use crate::model::run::Run;
use anyhow::Result;
use serde::Serialize;
use std::collections::BTreeSet;

/// Two sides, compared.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// Each VM and figure.
    pub compared: Vec<Compared>,
    /// VMs that are not in every recording, or whose name is not unique there.
    pub unmatched: Vec<String>,
    /// What cannot be compared, and why.
    pub left_out: Vec<String>,
    /// What makes the sides unlike.
    pub warnings: Vec<String>,
}

impl Comparison {
    /// Whether any figure could be judged.
    pub fn is_judged(&self) -> bool {
        self.compared.iter().any(|entry| entry.p.is_some())
    }

    /// Whether anything is proven to be worse.
    pub fn is_worse(&self) -> bool {
        self.compared.iter().any(Compared::is_regression)
    }
}

/// Compares. VMs are matched by uuid, then by name.
///
/// # Errors
/// A log cannot be read.
pub fn compare(base: &[Side], new: &[Side]) -> Result<Comparison> {
    let (pairs, unmatched) = matched(base, new);
    let (figures, left_out) = figures(base, new, &pairs)?;
    let alternate = alternate(base, new);
    let compared = judge(&figures, alternate);
    let mut warnings = warnings(base, new, alternate);
    if let Some(entry) = compared.iter().find(|entry| entry.drifts) {
        warnings.push(format!(
            "{} {} drifts within a recording, so less can be claimed; overcommit ab alternates runs",
            entry.vm, entry.metric
        ));
    }
    warnings.extend(pairs.iter().flat_map(unlike));
    Ok(Comparison { compared, unmatched, left_out, warnings })
}

/// What of a VM is not the same in all recordings.
fn unlike(pair: &Pair<'_>) -> Vec<String> {
    type Of = fn(&Side, usize) -> Option<String>;
    let facts: [(&str, Of); 4] = [
        ("number of vCPUs", |side, vm| side.vms()[vm].vcpus.map(|vcpus| vcpus.to_string())),
        ("configured memory", |side, vm| side.vms()[vm].memory_bytes.map(readable_bytes)),
        ("accelerator", |side, vm| side.vms()[vm].accelerator.clone()),
        ("memory limit", |side, vm| Some(side.limit(vm).map_or("none".to_owned(), readable_bytes))),
    ];
    let of_all = |of: Of| -> BTreeSet<String> {
        pair.everywhere().filter_map(|(side, vm)| of(side, *vm)).collect()
    };
    let differ = |(what, of)| differ(&format!("{}: its {what}", pair.name), of_all(of));
    facts.into_iter().filter_map(differ).collect()
}

/// What is not the same everywhere, with its values; `None` if it is.
fn differ(what: &str, values: BTreeSet<String>) -> Option<String> {
    let values: Vec<String> = values.into_iter().collect();
    (values.len() > 1).then(|| format!("{what} differs: {}", values.join(" and ")))
}

/// Whether the recordings of both sides took turns: the side changes at every second of them,
/// as it does where each pair is drawn.
fn alternate(base: &[Side], new: &[Side]) -> bool {
    let start = |side: &Side| side.recording.run.clocks.start.realtime_ns;
    take_turns(base.iter().map(start), new.iter().map(start))
}

/// The same of when they started.
fn take_turns(base: impl Iterator<Item = u64>, new: impl Iterator<Item = u64>) -> bool {
    let mut starts: Vec<(u64, bool)> = base.map(|start| (start, false)).collect();
    starts.extend(new.map(|start| (start, true)));
    starts.sort_unstable();
    let changes = starts.windows(2).filter(|pair| pair[0].1 != pair[1].1).count();
    starts.len() > 2 && changes * 2 >= starts.len()
}

fn warnings(base: &[Side], new: &[Side], alternate: bool) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut note = |what: &str, of: fn(&Run) -> String| {
        let runs = base.iter().chain(new).map(|side| &side.recording.run);
        warnings.extend(differ(what, runs.map(of).collect()));
    };
    note("backend", |run| run.backend.name.clone());
    note("where a fault begins", |run| run.backend.fault_starts_at.clone());
    note("host", |run| run.host.clone());
    note("kernel", |run| run.kernel.clone());
    note("the interval", |run| readable(run.options.interval_ns));
    let ids = |sides: &[Side]| -> BTreeSet<String> {
        sides.iter().map(|side| side.recording.run.run_id.clone()).collect()
    };
    if ids(base).intersection(&ids(new)).any(|id| !id.is_empty()) {
        warnings.push("the same recording is on both sides".to_owned());
    }
    let least = LEAST_IN_BLOCKS * 100.0;
    if base.len() == 1 && new.len() == 1 {
        warnings.push(format!(
            "one recording per side cannot separate your change from ordinary variation, so no \
             difference below {least:.0} % is claimed; overcommit ab can"
        ));
    } else if !alternate {
        warnings.push(format!(
            "the recordings do not alternate, so other changes over the day \
             may look like yours, and no \
             difference below {least:.0} % is claimed; overcommit ab alternates them"
        ));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recordings_take_turns_or_are_in_blocks() {
        let turns =
            |base: &[u64], new: &[u64]| take_turns(base.iter().copied(), new.iter().copied());
        assert!(turns(&[1, 4, 5, 8], &[2, 3, 6, 7]), "each pair drawn");
        assert!(turns(&[1, 3, 5], &[2, 4, 6]));
        assert!(!turns(&[1, 2, 3, 4, 5], &[6, 7, 8, 9, 10]));
        assert!(!turns(&[1], &[2]), "one of each");
    }
}
