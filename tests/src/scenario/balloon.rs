//! A balloon: the guest sees less memory and not why; the host knows.

use crate::host::Setting;
use crate::qemu::{Config, Vm};
use crate::record::Recording;
use crate::results::{json, rows};
use crate::scenario::{Row, figure, print_report};
use crate::{PATIENCE, await_some};
use anyhow::{Context, Result, ensure};
use serde_json::json as value;
use std::path::Path;

/// MiB that the guest has, and that its balloon takes.
const MEMORY: u64 = 512;
const BALLOONED: u64 = 256;
const MIB: f64 = (1 << 20) as f64;

/// Says every second what the guest has.
const SCRIPT: &str = "while :; do echo; free -m | grep Mem: | sed s/Mem:/guest:/; sleep 1; done";

/// What guest and host said of a moment.
struct Moment {
    name: &'static str,
    guest: [u64; 2],
    host: Row,
    state: String,
}

pub(super) fn run(dir: &Path) -> Result<()> {
    let _small_pages = Setting::small_pages()?;
    let more =
        ["-device", "virtio-balloon-pci,id=balloon", "-qmp", "unix:DIR/monitor,server=on,wait=off"];
    let config = Config { more: &more, ..Config::shell("web", MEMORY, SCRIPT) };
    let mut vm = Vm::start(&config)?;
    vm.await_text("guest:")?;
    let folder = dir.join("balloon");
    let recording = Recording::start(&folder, ["--guest-stats"])?;
    let mut moments = vec![moment(&mut vm, &folder, "before", 0, "normal")?];
    // Held for half a minute it is no coincidence.
    moments.push(moment(&mut vm, &folder, "inflated", BALLOONED, "pressure")?);
    moments.push(moment(&mut vm, &folder, "deflated", 0, "normal")?);
    recording.end()?;

    print_report(&folder)?;
    println!("\n              guest saw (free -m)    host saw");
    println!("              total    available     ballooned   resident  balloon state");
    for Moment { name, guest: [total, available], host, state } in &moments {
        let mebibytes = |column| figure(host, column).map(|bytes| bytes / MIB);
        println!(
            "{name:<10}  {total:>5} MiB  {available:>7} MiB  {:>10.0} MiB  {:>5.0} MiB  {state}",
            mebibytes("ballooned_bytes")?,
            mebibytes("resident_bytes")?
        );
    }
    let [before, inflated, deflated] = &moments[..] else { return Ok(()) };
    let taken = before.guest[1].saturating_sub(inflated.guest[1]);
    ensure!(taken.abs_diff(BALLOONED) * 10 <= BALLOONED, "the guest lost {taken} MiB");
    ensure!(deflated.guest[1] + 32 > before.guest[1], "the guest did not get it back");
    let summary = json(&folder, "summary.json")?;
    ensure!(summary["host"]["balloon"]["worst"] == "pressure", "{:#}", summary["host"]);
    ensure!(summary["vms"][0]["vm"] == "web", "{:#}", summary["vms"]);
    ensure!(summary["vms"][0]["memory"]["balloon_source"] == "qmp", "{:#}", summary["vms"]);
    Ok(())
}

/// Has the balloon take so much and waits until the host is in that state.
fn moment(
    vm: &mut Vm,
    folder: &Path,
    name: &'static str,
    ballooned: u64,
    state: &str,
) -> Result<Moment> {
    vm.execute("balloon", value!({ "value": (MEMORY - ballooned) << 20 }))?;
    let last = |name| rows(folder, name).map(|rows| rows.into_iter().next_back());
    let expected = (ballooned << 20).to_string();
    let host = await_some(&format!("{state} of balloons"), PATIENCE, || {
        let (Some(host), Some(vm)) = (last("host.csv")?, last("vms.csv")?) else {
            return Ok(None);
        };
        let is_it = host["balloon_state"] == state && vm["ballooned_bytes"] == expected;
        // Memory is walked every ten seconds.
        Ok((is_it && !vm["resident_bytes"].is_empty()).then_some(vm))
    })?;
    let lines = vm.serial()?.matches("guest:").count();
    await_some("line of the guest", PATIENCE, || {
        Ok((vm.serial()?.matches("guest:").count() > lines + 1).then_some(()))
    })?;
    let serial = vm.serial()?;
    let line = serial.lines().rev().skip(1).find(|line| line.contains("guest:"));
    let words: Vec<u64> = line
        .context("the guest says nothing")?
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    let (Some(total), Some(available)) = (words.first(), words.last()) else {
        anyhow::bail!("free -m says {line:?}");
    };
    Ok(Moment { name, guest: [*total, *available], host, state: state.to_owned() })
}
