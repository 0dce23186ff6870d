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
    let values = facts.into_iter().map(|(what, of)| (what, of_all(of)));
    let differ = values.filter(|(_, values)| values.len() > 1);
    differ
        .map(|(what, values)| {
            let values: Vec<String> = values.into_iter().collect();
            format!("{}: its {what} differs: {}", pair.name, values.join(" and "))
        })
        .collect()
}

/// Whether the recordings of both sides took turns: the side changes at every second of them,
/// as it does where each pair is drawn.
fn alternate(base: &[Side], new: &[Side]) -> bool {
    let start = |side: &Side| side.recording.run.clocks.start.realtime_ns;
    let mut starts: Vec<(u64, bool)> = base.iter().map(|side| (start(side), false)).collect();
    starts.extend(new.iter().map(|side| (start(side), true)));
    starts.sort_unstable();
    let changes = starts.windows(2).filter(|pair| pair[0].1 != pair[1].1).count();
    starts.len() > 2 && changes * 2 >= starts.len()
}

fn warnings(base: &[Side], new: &[Side], alternate: bool) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut differ = |what: &str, of: fn(&Run) -> String| {
        let runs = base.iter().chain(new).map(|side| &side.recording.run);
        let values: BTreeSet<String> = runs.map(of).collect();
        if values.len() > 1 {
            let values: Vec<String> = values.into_iter().collect();
            warnings.push(format!("{what} differs: {}", values.join(" and ")));
        }
    };
    differ("backend", |run| run.backend.name.clone());
    differ("where a fault begins", |run| run.backend.fault_starts_at.clone());
    differ("host", |run| run.host.clone());
    differ("kernel", |run| run.kernel.clone());
    differ("the interval", |run| readable(run.options.interval_ns));
    let ids = |sides: &[Side]| -> BTreeSet<String> {
        sides.iter().map(|side| side.recording.run.run_id.clone()).collect()
    };
    if ids(base).intersection(&ids(new)).any(|id| !id.is_empty()) {
        warnings.push("the same recording is on both sides".to_owned());
    }
    let least = LEAST_IN_BLOCKS * 100.0;
    if base.len() == 1 && new.len() == 1 {
        warnings.push(format!(
            "one recording a side cannot tell your change from the time of day, so no difference \
             below {least:.0} % is claimed; overcommit ab can"
        ));
    } else if !alternate {
        warnings.push(format!(
            "the recordings do not alternate, so a change of the day may look like yours, and no \
             difference below {least:.0} % is claimed; overcommit ab alternates them"
        ));
    }
    warnings
}
