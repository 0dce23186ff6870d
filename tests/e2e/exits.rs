//! Where exits cannot be seen they are absent, with the reason, and not zero.

use crate::Tests;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testbed::host::Tracefs;
use testbed::qemu::{Config, Vm};
use testbed::record::Recording;
use testbed::results::{json, run, vm};
use testbed::{PATIENCE, await_some};

pub(crate) const TESTS: Tests = &[
    ("exits_of_a_kvm_vm_are_absent_with_the_reason", absent_with_the_reason),
    ("exits_of_a_tcg_vm_are_absent_for_it_alone", without_kvm),
];

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

/// What a VM of which KVM knows nothing has not is named as its own.
fn without_kvm() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let _guest = Vm::start(&Config { accel: "tcg", ..Config::new("tcg", 16) })?;
    let recording = Recording::start(&dir.path().join("run"), ["--interval", "100ms"])?;
    let folder = recording.end()?;
    let said = "it runs under tcg, not under KVM";
    ensure!(json(&folder, "run.json")?["vms"][0]["exits_absent"] == said);
    ensure!(vm(&folder, "tcg")?["exits_absent"] == said);
    let text = run(["report", "-v", &folder.to_string_lossy()])?;
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    ensure!(text.contains(said), "{text}");
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
