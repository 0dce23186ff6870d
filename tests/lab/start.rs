//! What does a VM wait for in its first seconds?

use crate::Scenario;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::Path;
use testbed::qemu::{Config, Vm};
use testbed::record::Recording;
use testbed::results::{figure, vm};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![("a_start_is_told_by_phases".to_owned(), Box::new(phases))]
}

/// MiB that a guest walks, and the pages of that.
const WALK: u64 = 8;
const PAGES: u64 = WALK * 256;

/// One VM starts while it is recorded, and walks within ten seconds; the other one was there before.
fn phases(dir: &Path) -> Result<()> {
    let mut early = Vm::start(&Config::new("early", WALK))?;
    early.await_passes(1)?;
    let recording = Recording::start(&dir.join("run"), [""; 0])?;
    let mut late = Vm::start(&Config::new("late", WALK))?;
    late.await_passes(1)?;
    late.stop()?;
    let folder = recording.end()?;
    ensure!(vm(&folder, "early")?["start"].is_null(), "it had started before");
    let late = vm(&folder, "late")?;
    let start = &late["start"];
    println!("{start}");
    let phases = start.as_array().context("no phases")?;
    let within: Vec<f64> = phases.iter().filter_map(|phase| phase["within_s"].as_f64()).collect();
    ensure!(within == [0.1, 1.0, 10.0], "{within:?}");
    let counts: Vec<u64> = phases.iter().map(count).collect();
    ensure!(counts.is_sorted(), "{counts:?}");
    let all = figure(&late, "fault.minor", "count")? + figure(&late, "fault.major", "count")?;
    // Each page of the guest's is its first touch; what QEMU did before the vCPU ran is in none.
    ensure!(counts[2] >= PAGES && counts[2] < all, "{counts:?} of {all}");
    let anonymous = phases[2]["faults"]["anon"]["sum_ns"].as_u64();
    ensure!(anonymous.is_some_and(|ns| ns > 0), "{start}");
    Ok(())
}

/// Faults of a phase.
fn count(phase: &Value) -> u64 {
    let by = phase["faults"].as_object().into_iter().flat_map(|by| by.values());
    by.filter_map(|of| of["count"].as_u64()).sum()
}
