//! The host as a whole runs short: kswapd takes pages for whoever allocates.

use crate::Scenario;
use anyhow::{Context, Result, ensure};
use std::path::Path;
use testbed::host::{MemoryCgroup, Setting, counter, read};
use testbed::qemu::{Config, Vm};
use testbed::record::Recording;
use testbed::results::{await_cgroups, json, rows, vm};
use testbed::scenario::print_report;
use testbed::swap::ZramSwap;
use testbed::{PATIENCE, await_some};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        ("kswapd_works_for_who_allocates".to_owned(), Box::new(kswapd)),
        ("a_short_host_is_the_cause".to_owned(), Box::new(short_host)),
    ]
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

/// MiB of each of the guests that the host has too little for.
const WALKS: u64 = 64;
/// MiB that the host has left for them.
const LEFT: u64 = 16;
/// Pages that each of them has to bring back.
const BROUGHT_BACK: u64 = 2_000;

/// Two VMs without any limit, on a host that cannot hold both.
fn short_host(dir: &Path) -> Result<()> {
    let _settings = [Setting::small_pages()?, Setting::no_readahead()?];
    let _swap = ZramSwap::new(1024)?;
    let mut vms = ["first", "second"]
        .map(|name| Vm::start(&Config::new(name, WALKS)))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    for vm in &mut vms {
        vm.await_passes(1)?;
    }
    let folder = dir.join("run");
    let recording = Recording::start(&folder, ["--interval", "500ms"])?;
    let taken = take_away(LEFT)?;
    let before = vms.iter().map(|vm| Ok(vm.faults()?[1])).collect::<Result<Vec<_>>>()?;
    await_some("pages brought back", PATIENCE, || {
        let faults = vms.iter().map(|vm| Ok(vm.faults()?[1])).collect::<Result<Vec<_>>>()?;
        let are_back = faults.iter().zip(&before).all(|(now, then)| now - then >= BROUGHT_BACK);
        Ok(are_back.then_some(()))
    })?;
    vms.iter_mut().try_for_each(Vm::stop)?;
    drop(taken);
    recording.end()?;
    print_report(&folder)?;
    let summary = json(&folder, "summary.json")?;
    println!("{}", summary["host"]);
    for vm in summary["vms"].as_array().context("no VMs")? {
        println!("{}: {} {} {}", vm["vm"], vm["verdict"], vm["evictions"], vm["swap"]);
    }
    Ok(())
}

/// Takes all memory but so many MiB from the host, as huge pages that nobody uses.
fn take_away(left: u64) -> Result<Setting> {
    let available = meminfo("MemAvailable")?;
    let pages = available.saturating_sub(left << 10) / meminfo("Hugepagesize")?;
    Setting::new("/proc/sys/vm/nr_hugepages", &pages.to_string())
}

/// A figure of /proc/meminfo, in KiB.
fn meminfo(name: &str) -> Result<u64> {
    let text = read("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let value = line.and_then(|line| line.split_whitespace().next());
    Ok(value.with_context(|| format!("no {name}"))?.parse()?)
}

/// Has kswapd begin as soon as little more is given: it wakes at the low watermark, a
/// quarter above the least that the host keeps free (`__setup_per_zone_wmarks`,
/// mm/page_alloc.c).
fn run_short() -> Result<Setting> {
    let free = counter(Path::new("/proc/vmstat"), "nr_free_pages")?;
    let least = (free - BEFORE) * 4 / 5;
    Setting::new("/proc/sys/vm/min_free_kbytes", &(least * 4).to_string())
}
