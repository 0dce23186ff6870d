//! How much does a guest use that runs on page tables of its own?

use crate::Scenario;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use std::collections::HashMap;
use std::path::Path;
use testbed::host::{MemoryCgroup, Setting, read};
use testbed::qemu::{Config, Vm};
use testbed::record::Recording;
use testbed::results::{json, rows, run};
use testbed::{PATIENCE, await_some};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        ("working_set_contiguous".to_owned(), Box::new(contiguous)),
        ("working_set_scattered".to_owned(), Box::new(scattered)),
        ("killed_recorder_leaves_no_damon".to_owned(), Box::new(killed)),
    ]
}

const MIB: u64 = 1 << 20;
/// MiB that the guest fills, and that it goes on touching.
const WALK: u64 = 96;
const HOT: u64 = 64;
/// What measuring may take of a CPU.
const COST: f64 = 0.0205;
const DAMON_STAT: &str = "/sys/module/damon_stat/parameters/enabled";

type Row = HashMap<String, String>;

/// A row in which the working set was measured, as it is looked for.
fn measured(folder: &Path, wanted: &str, is_it: impl Fn(&Row) -> bool) -> Result<Row> {
    let recording = Recording::start(folder, ["--working-set", wanted])?;
    let found = await_some("working set", PATIENCE, || {
        let row = rows(folder, "vms.csv")?.pop();
        let is_measured = |row: &Row| !["", "bounds"].contains(&row["working_set_source"].as_str());
        Ok(row.filter(|row| is_measured(row) && is_it(row)))
    });
    let folder = recording.end()?;
    let why = json(&folder, "run.json")?["vms"][0]["working_set_unknown"].clone();
    found.with_context(|| {
        format!("{why}; {:?}", rows(&folder, "vms.csv").map(|mut rows| rows.pop()))
    })
}

/// Whether both ends of the range are that near to the hot set, at a price that is
/// settled: DAMON's regions take longer to find its end where the emulated host has to wait
/// for its CPU.
fn is_near(row: &Row) -> bool {
    let is_cheap = row["working_set_cost_share"].parse::<f64>().is_ok_and(|cost| cost <= COST);
    let truth = HOT * MIB + overhead(row);
    let near = |end: &str| {
        let bytes = row[&format!("working_set_{end}_bytes")].parse::<u64>();
        bytes.is_ok_and(|bytes| bytes.abs_diff(truth) * 10 <= truth)
    };
    is_cheap && near("lower") && near("upper")
}

/// QEMU's own memory, which DAMON does not look at and which counts as used; of the generations
/// it is there only if it was touched.
fn overhead(row: &Row) -> u64 {
    let is_added = row["working_set_source"] == "damon";
    row["overhead_bytes"].parse().ok().filter(|_| is_added).unwrap_or(0)
}

fn ends(row: &Row) -> Result<(u64, u64)> {
    let end = |end: &str| row[&format!("working_set_{end}_bytes")].parse::<u64>();
    let ends = (end("lower")?, end("upper")?);
    println!(
        "{}: {:.1} to {:.1} MiB in {} s, {} of a CPU",
        row["working_set_source"],
        ends.0 as f64 / MIB as f64,
        ends.1 as f64 / MIB as f64,
        row["working_set_window_s"],
        row["working_set_cost_share"]
    );
    let cost: f64 = row["working_set_cost_share"].parse()?;
    ensure!(cost <= COST, "measuring takes {cost} of a CPU");
    Ok(ends)
}

/// Sources that this kernel has and that see: Linux 6.1 has generations too.
fn sources() -> &'static [&'static str] {
    if Path::new("/sys/kernel/mm/damon/admin").exists() { &["damon", "mglru"] } else { &[] }
}

fn contiguous(dir: &Path) -> Result<()> {
    let _small_pages = Setting::small_pages()?;
    let cgroup = MemoryCgroup::new("lab")?;
    let config = Config { cgroup: Some(&cgroup), ..Config::new("vm", WALK) };
    let mut guest = Vm::start(&Config { hot: Some((HOT, 1)), ..config })?;
    guest.await_passes(3)?;
    let sources = sources();
    let stat = read(DAMON_STAT).ok();
    for source in sources {
        ends(&measured(&dir.join(source), source, is_near)?)?;
        ensure!(read(DAMON_STAT).ok() == stat, "DAMON was not put back");
    }
    // The referenced bits of QEMU's own page tables tell nothing of the guest, nor do
    // old kernels' generations.
    let blind: &[&str] = if sources.is_empty() { &["clear-refs", "auto"] } else { &["clear-refs"] };
    guest.stop()?;
    blind.iter().try_for_each(|source| refused(&dir.join(format!("blind-{source}")), source))?;
    if sources.is_empty() {
        // Known before anything is recorded.
        let _lru = switched_on()?;
        let folder = dir.join("blind-mglru").to_string_lossy().into_owned();
        let refused = run(["record", "--out", &folder, "--working-set", "mglru"])?;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(refused.status.code() == Some(1) && said.contains("does not see"), "{said}");
    }
    Ok(())
}

/// Has the generations on, if they are off.
fn switched_on() -> Result<Option<Setting>> {
    let switch = "/sys/kernel/mm/lru_gen/enabled";
    let is_off = read(switch)?.trim() == "0x0000";
    is_off.then(|| Setting::new(switch, "0x0007")).transpose()
}

fn refused(folder: &Path, source: &str) -> Result<()> {
    let _lru = switched_on()?;
    let recording = Recording::start(folder, ["--working-set", source])?;
    await_some("refusal", PATIENCE, || {
        let why = json(folder, "run.json")?["vms"][0]["working_set_unknown"].clone();
        Ok(why.as_str().is_some_and(|why| why.contains("does not see")).then_some(()))
    })?;
    recording.end()?;
    Ok(())
}

/// A recorder that is killed while DAMON works for it leaves nothing of that, without a next one.
fn killed(dir: &Path) -> Result<()> {
    let kdamonds = "/sys/kernel/mm/damon/admin/kdamonds/nr_kdamonds";
    ensure!(Path::new(kdamonds).exists(), "this kernel has no DAMON");
    let stat = read(DAMON_STAT).ok();
    let before = read(kdamonds)?;
    let mut guest = Vm::start(&Config { hot: Some((1, 1)), ..Config::new("vm", 16) })?;
    guest.await_passes(1)?;
    let mut recording = Recording::start(&dir.join("killed"), ["--working-set", "damon"])?;
    await_some("DAMON", PATIENCE, || Ok((read(kdamonds)?.trim() == "1").then_some(())))?;
    recording.signal(Signal::SIGKILL)?;
    recording.wait()?;
    await_some("end of DAMON", PATIENCE, || {
        let is_back = read(kdamonds)? == before && read(DAMON_STAT).ok() == stat;
        Ok(is_back.then_some(()))
    })
}

/// Every 64th page.
fn scattered(dir: &Path) -> Result<()> {
    let _small_pages = Setting::small_pages()?;
    let cgroup = MemoryCgroup::new("lab")?;
    let config = Config { cgroup: Some(&cgroup), ..Config::new("vm", WALK) };
    let mut guest = Vm::start(&Config { hot: Some((WALK, 64)), ..config })?;
    guest.await_passes(3)?;
    let truth = WALK * MIB / 64;
    if sources().is_empty() {
        return Ok(());
    }
    // From Linux 7.x on the kernel uses DAMON itself, and is left alone.
    let both = [("auto", "damon"), ("mglru", "mglru")];
    let wanted = if Path::new(DAMON_STAT).exists() { &[("auto", "mglru")] } else { &both[..] };
    for (asked, source) in wanted {
        let row = measured(&dir.join(asked), asked, |_| true)?;
        let (lower, upper) = ends(&row)?;
        // What the guest and its firmware touch beside.
        let few = MIB + overhead(&row);
        ensure!(lower <= truth + few && upper >= truth, "{source}: {truth} is not in the range");
        ensure!(row["working_set_source"] == *source, "{row:#?}");
    }
    Ok(())
}
