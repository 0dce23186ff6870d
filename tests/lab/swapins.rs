//! Where do swapped pages come from?

use crate::Scenario;
use anyhow::{Context, Result, ensure};
use std::path::Path;
use testbed::host::{Setting, counter};
use testbed::qemu::{Config, Vm};
use testbed::record::Recording;
use testbed::results::{figure, json, only_vm, rows, sum, within_a_percent};
use testbed::squeeze::Squeeze;
use testbed::{PATIENCE, await_some};

pub(crate) fn scenarios() -> Vec<Scenario> {
    crate::FUNCTION_BACKENDS
        .into_iter()
        .map(|backend| -> Scenario {
            let run = move |dir: &Path| from_zswap(dir, backend);
            (format!("zswap_{backend}"), Box::new(run))
        })
        .collect()
}

const MAJORS: u64 = 3_000;

/// Compressed in memory on their way to the device, they come back from there.
fn from_zswap(dir: &Path, backend: &str) -> Result<()> {
    let _zswap = Setting::new("/sys/module/zswap/parameters/enabled", "Y")?;
    let squeeze = Squeeze::new()?;
    let mut vm = Vm::start(&Config { stopped: true, ..squeeze.config("squeezed") })?;
    let folder = dir.join("run");
    let recording = Recording::start(&folder, ["--backend", backend])?;
    let read = |name| counter(Path::new("/proc/vmstat"), name);
    let (zswap_before, device_before) = (read("zswpin")?, read("pswpin")?);
    vm.resume()?;
    await_some("pages out of zswap", PATIENCE, || {
        Ok((read("zswpin")? >= zswap_before + MAJORS).then_some(()))
    })?;
    // Of all the swapping vmstat's si shows nothing.
    await_some("pressure", PATIENCE, || {
        let vms = rows(&folder, "vms.csv")?;
        let state = vms.last().map_or("", |row| &row["swap_state"]).to_owned();
        Ok(["pressure", "thrashing"].contains(&state.as_str()).then_some(()))
    })?;
    vm.stop()?;
    let folder = recording.end()?;
    let rate = "swapped_out_pages_per_s";
    let out = |name| rows(&folder, name).and_then(|rows| sum(&rows, rate));
    let (out_of_vm, out_of_host) = (out("vms.csv")?, out("host.csv")?);
    let sources = json(&folder, "run.json")?["vms"][0]["swap_sources"].clone();
    println!("swapped out: {out_of_vm:.0} of the VM, {out_of_host:.0} of the host; {sources}");
    ensure!(out_of_vm > 0.0 && (out_of_vm / out_of_host - 1.0).abs() < 0.05, "not the same");
    let summary = only_vm(&folder)?;
    ensure!(summary["swap"]["worst"] != "healthy", "{summary:#}");
    let swapins = &summary["swapins"];
    let (by_zswap, by_device) = (read("zswpin")? - zswap_before, read("pswpin")? - device_before);
    println!("{backend}: {swapins}; zswpin {by_zswap}, pswpin {by_device}");
    ensure!(by_device * 100 <= by_zswap, "pages came past zswap");
    let number = |key: &str| swapins[key].as_u64().with_context(|| format!("no {key}"));
    within_a_percent("from zswap", number("from_zswap")?, by_zswap, 0)?;
    let devices = swapins["from_device"].as_object().context("no devices")?;
    let from_devices: u64 = devices.values().filter_map(serde_json::Value::as_u64).sum();
    ensure!(from_devices.abs_diff(by_device) <= 3, "{from_devices} from devices, {by_device}");
    let parts = number("from_zswap")? + number("from_cache")? + from_devices;
    ensure!(parts == figure(&summary, "swapin", "count")?, "{parts} in all: {summary:#}");
    Ok(())
}
