//! The host as a whole runs short: kswapd takes pages for whoever allocates.

use crate::Scenario;
use anyhow::{Context, Result, ensure};
use std::path::Path;
use testbed::host::{MemoryCgroup, Setting, counter};
use testbed::qemu::{Config, Vm};
use testbed::record::Recording;
use testbed::results::{await_cgroups, rows, vm};
use testbed::swap::ZramSwap;
use testbed::{PATIENCE, await_some};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![("kswapd_works_for_who_allocates".to_owned(), Box::new(kswapd))]
}

/// MiB of a guest that does nothing any more, and of one that grows.
const IDLE: u64 = 48;
const GROWING: u64 = 96;
/// Pages that the host may still give before kswapd begins.
const BEFORE: u64 = 4 << 8;
/// Pages of the idle one that make a share worth a look.
const TAKEN: u64 = 1_000;
/// Pages by which the other one grows meanwhile: most of what it has.
const GROWN: u64 = GROWING << 7;

fn kswapd(dir: &Path) -> Result<()> {
    let _settings = [Setting::small_pages()?, Setting::no_readahead()?];
    let _swap = ZramSwap::new(1024)?;
    let cgroups = [MemoryCgroup::new("idle")?, MemoryCgroup::new("growing")?];
    let config = Config { cgroup: Some(&cgroups[0]), ..Config::new("idle", IDLE) };
    let mut idle = Vm::start(&config)?;
    idle.await_passes(1)?;
    idle.stop()?;
    let config = Config { cgroup: Some(&cgroups[1]), ..Config::new("growing", GROWING) };
    let mut growing = Vm::start(&Config { stopped: true, ..config })?;
    let folder = dir.join("run");
    let recording = Recording::start(&folder, ["--interval", "500ms"])?;
    await_cgroups(&folder, ["idle", "growing"], PATIENCE)?;
    let short = run_short()?;
    let before = growing.faults()?[0];
    growing.resume()?;
    let come = await_some("pages taken by kswapd", PATIENCE, || {
        let rows = rows(&folder, "evictions.csv")?;
        let its = rows.iter().filter(|row| row["victim"] == "idle");
        let its = its.filter(|row| row["aggressor_kind"] == "kswapd");
        let taken = its.map(|row| row["written_pages"].parse::<u64>().unwrap_or(0)).sum::<u64>();
        // Others allocate too, and may have had it begin before the guest has grown.
        let grown = growing.faults()?[0] - before >= GROWN;
        Ok((taken >= TAKEN && grown).then_some(()))
    });
    growing.explain(come)?;
    growing.stop()?;
    drop(short);
    // What is allocated is looked at once a second.
    let looks = || -> Result<usize> {
        let rows = rows(&folder, "host.csv")?;
        Ok(rows.iter().filter(|row| !row["allocated_pages_per_s"].is_empty()).count())
    };
    let before = looks()?;
    await_some("a look at the host", PATIENCE, || Ok((looks()? > before).then_some(())))?;
    recording.end()?;
    let evictions = vm(&folder, "idle")?["evictions"].clone();
    println!("{evictions}");
    let most = &evictions["kswapd_estimate"]["charged"][0];
    let share = most["share"].as_f64().context("kswapd's part is charged to nobody")?;
    // How much others allocate is their business: the tool, and whoever reads files.
    ensure!(most["vm"] == "growing" && share > 0.0, "{evictions:#}");
    Ok(())
}

/// Has kswapd begin as soon as little more is given: it wakes at the low watermark, a
/// quarter above the least that the host keeps free (`__setup_per_zone_wmarks`,
/// mm/page_alloc.c).
fn run_short() -> Result<Setting> {
    let free = counter(Path::new("/proc/vmstat"), "nr_free_pages")?;
    let least = (free - BEFORE) * 4 / 5;
    Setting::new("/proc/sys/vm/min_free_kbytes", &(least * 4).to_string())
}
