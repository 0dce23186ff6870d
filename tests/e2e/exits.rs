//! Where exits cannot be seen they are absent, with the reason, and not zero.

use crate::Tests;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testbed::host::Tracefs;
use testbed::qemu::{Config, Vm};
use testbed::record::Recording;
use testbed::results::json;
use testbed::{PATIENCE, await_some};

pub(crate) const TESTS: Tests =
    &[("exits_of_a_kvm_vm_are_absent_with_the_reason", absent_with_the_reason)];

/// What a short recording of a running VM says.
fn record() -> Result<Value> {
    let dir = tempfile::tempdir()?;
    let vm = Vm::start(&Config { accel: "kvm", ..Config::new("running", 32) })?;
    let recording = Recording::start(&dir.path().join("run"), ["--interval", "100ms"])?;
    let passes = vm.passes()?;
    await_some("passes of the guest", PATIENCE, || Ok((vm.passes()? > passes + 2).then_some(())))?;
    json(&recording.end()?, "run.json")
}

/// Once without a tracefs where others look, once with it: nobody has to mount it for us.
fn absent_with_the_reason() -> Result<()> {
    let by_itself = record()?;
    let tracefs = Tracefs::mounted()?;
    let run = record()?;
    drop(tracefs);
    for run in [by_itself, run] {
        // A KVM that runs guests on hardware does have exits.
        if run["vms"][0]["vcpu_times"].as_array().is_none_or(Vec::is_empty) {
            says(&run, "kvm_exit does not fire on this KVM")?;
        }
    }
    Ok(())
}

fn says(run: &Value, reason: &str) -> Result<()> {
    let coverage = run["coverage"].as_array().context("no coverage")?;
    for family in ["exit", "idle", "stall.memory", "apf"] {
        let entry = coverage.iter().find(|entry| entry["metric"] == family);
        let entry = entry.with_context(|| format!("{family} is not named"))?;
        ensure!(entry["coverage"] == "absent", "{entry}");
        ensure!(entry["not_seen"].to_string().contains(reason), "{entry}");
    }
    let vm = &run["vms"][0];
    ensure!(vm["exits_absent"].as_str().is_some_and(|text| text.contains(reason)), "{vm:#}");
    Ok(())
}
