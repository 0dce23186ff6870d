//! A whole screen's content at one moment.

use crate::model::run::{Run, RunVm};
use crate::model::totals::Totals;
use crate::recent::history::{History, Line};
use crate::recent::row::{HostRow, VmRow};
use crate::slo::judge::Judging;
use crate::slo::{Judged, Objective};
use crate::summary::cause::Cause;
use crate::summary::verdict::{Fared, worst_first};
use crate::summary::{Marks, Summary, SummaryVm, Summing};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The host and its VMs at one moment.
#[derive(Debug, Serialize)]
pub struct Board {
    /// `overcommit.top/1`.
    pub schema: &'static str,
    /// Host name.
    pub host_name: String,
    /// The end of the interval that is shown, in Unix seconds.
    pub unix_s: f64,
    /// Its length, in seconds.
    pub interval_s: f64,
    /// What verdicts and objectives are of, in seconds.
    pub window_s: f64,
    /// The host.
    pub host: HostRow,
    /// Each VM, the worst first.
    pub vms: Vec<VmRow>,
    /// Each objective, over the window.
    pub objectives: Vec<Judged>,
    /// The run as it was then.
    #[serde(skip)]
    pub run: Arc<Run>,
    /// What the window holds.
    #[serde(skip)]
    pub summary: Summary,
    /// Its distributions.
    #[serde(skip)]
    pub totals: Totals,
}

impl Board {
    /// At the end of that line of the history.
    pub fn of(run: &Arc<Run>, history: &History, line: &Line, objectives: &[Objective]) -> Self {
        let mut summing = Summing::new(run);
        let mut judging = Judging::new(objectives.to_vec());
        for interval in history.window(line) {
            summing.add(interval);
            judging.add(run, interval);
        }
        let judged = judging.judge(run, &summing.totals);
        let summary = summing.summary(run, Marks::default(), judged.clone());
        let host = HostRow::of(run, history, line, summary.is_measured());
        Self {
            schema: "overcommit.top/1",
            host_name: run.host.clone(),
            unix_s: line.place.end_s(),
            interval_s: line.place.length_ns as f64 / 1e9,
            window_s: summary.length_s,
            host,
            vms: rows(run, history, line, &summary),
            objectives: judged,
            run: Arc::clone(run),
            summary,
            totals: summing.totals,
        }
    }

    /// How many VMs were hurt, and how many took what others lack.
    pub fn counts(&self) -> [usize; 2] {
        let is_hurt = |vm: &&VmRow| vm.verdict.fared > Fared::Unseen;
        let hurt = self.vms.iter().filter(is_hurt).count();
        let causes = self.vms.iter().filter(|vm| vm.is_cause).count();
        [hurt, causes]
    }

    /// What the window holds of a VM.
    pub fn summary_of(&self, vm_id: &str) -> Option<&SummaryVm> {
        self.summary.vms.iter().find(|vm| vm.vm_id == vm_id)
    }
}

fn rows(run: &Run, history: &History, line: &Line, summary: &Summary) -> Vec<VmRow> {
    let mut names: BTreeMap<&str, usize> = BTreeMap::new();
    run.vms.iter().for_each(|vm| *names.entry(&vm.name).or_default() += 1);
    let mut seen: Vec<_> = run.vms.iter().enumerate().zip(&summary.vms).collect();
    seen.retain(|(_, vm)| vm.length_s > 0.0);
    seen.sort_by(|(_, a), (_, b)| worst_first(a, b));
    let row = |(of, summary): &((usize, &RunVm), &SummaryVm)| {
        let is_only = names.get(of.1.name.as_str()).is_none_or(|count| *count == 1);
        VmRow::of(run, history, line, *of, summary, is_only)
    };
    let mut rows: Vec<VmRow> = seen.iter().map(row).collect();
    let causes: BTreeSet<&str> = seen.iter().filter_map(|(_, vm)| cause_of(vm)).collect();
    for row in &mut rows {
        row.is_cause = row.verdict.fared <= Fared::Unseen && causes.contains(row.vm_id.as_str());
    }
    // Who is to blame stands behind those who are hurt.
    rows.sort_by_key(|row| (row.verdict.fared <= Fared::Unseen, !row.is_cause));
    rows
}

/// The id of the VM that took its pages, if that is why it is hurt.
pub fn cause_of(vm: &SummaryVm) -> Option<&str> {
    let most = vm.evictions.as_ref()?.by.first()?;
    (vm.verdict.cause == Some(Cause::OtherVm)).then_some(most.aggressor.id.as_str())
}
