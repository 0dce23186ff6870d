//! Who takes pages of whom, written to a disk or dropped because they are there already?

use crate::{FUNCTION_BACKENDS, Scenario};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;
use testbed::await_some;
use testbed::host::{MemoryCgroup, Setting, swapped_out};
use testbed::qemu::{Config, Vm};
use testbed::record::Recording;
use testbed::results::{await_cgroups, json, rows, vm};
use testbed::swap::DiskSwap;

pub(crate) fn scenarios() -> Vec<Scenario> {
    let of = |backend: &'static str| -> Scenario {
        let run = move |dir: &Path| matrix(dir, backend);
        (format!("evictions_{backend}"), Box::new(run))
    };
    FUNCTION_BACKENDS.into_iter().map(of).collect()
}

type Row = HashMap<String, String>;

const PATIENCE: Duration = Duration::from_secs(180);
/// The lab's slow disk.
const DISK: &str = "/dev/vda";
/// MiB that each of two guests walks, and may hold with the other.
const WALK: u64 = 32;
const LIMIT: u64 = 64;
/// Pages that make a share worth a look.
const DROPPED: u64 = 400;

/// Two VMs in sibling cgroups below one limit: one that only reads from the second pass
/// on, so that what is taken of it lies on the disk, and one that writes.
fn matrix(dir: &Path, backend: &str) -> Result<()> {
    let _settings = [Setting::small_pages()?, Setting::no_readahead()?];
    let _swap = DiskSwap::new(DISK)?;
    let parent = MemoryCgroup::new("matrix")?;
    let cgroups = [parent.child("reader")?, parent.child("writer")?];
    let config = |name, place: usize| Config {
        cgroup: Some(&cgroups[place]),
        reads: place == 0,
        ..Config::new(name, WALK)
    };
    let mut vms = [Vm::start(&config("reader", 0))?, Vm::start(&config("writer", 1))?];
    for vm in &mut vms {
        vm.await_passes(1)?;
        vm.stop()?;
    }
    let folder = dir.join("run");
    let recording = Recording::start(&folder, ["--interval", "500ms", "--backend", backend])?;
    await_cgroups(&folder, ["reader", "writer"], PATIENCE)?;
    let (out_before, stolen_before) = (swapped_out()?, parent.stat("pgsteal")?);
    // Some of it cannot be taken, which is said as an error.
    let _ = parent.reclaim((parent.charged()? >> 20).saturating_sub(LIMIT));
    parent.limit(LIMIT)?;
    for vm in &mut vms {
        vm.resume()?;
    }
    let sum = |column: &str, is_it: fn(&Row) -> bool| -> Result<u64> {
        let rows = rows(&folder, "evictions.csv")?;
        let of = rows.iter().filter(|row| is_it(row));
        of.map(|row| row[column].parse::<u64>().with_context(|| column.to_owned())).sum()
    };
    // The limit itself takes files that QEMU has read, and does so for this process.
    let of_reader = |row: &Row| row["victim"] == "reader" && row["aggressor_kind"] == "vm";
    await_some("clean drops", PATIENCE, || {
        Ok((sum("dropped_pages", of_reader)? >= DROPPED).then_some(()))
    })?;
    for vm in &mut vms {
        vm.stop()?;
    }
    let (out, stolen) = (swapped_out()? - out_before, parent.stat("pgsteal")? - stolen_before);
    recording.end()?;
    let (written, dropped) = (sum("written_pages", |_| true)?, sum("dropped_pages", |_| true)?);
    println!("{backend}: {written} written, {dropped} dropped; kernel: {out} out, {stolen} stolen");
    let (reader, writer) = (vm(&folder, "reader")?, vm(&folder, "writer")?);
    for vm in [&reader, &writer] {
        println!("{}: {}", vm["vm"], vm["evictions"]);
    }
    let run = json(&folder, "run.json")?;
    // Where the kernel preempts such programs it leaves some out, and counts them.
    let skipped = run["not_counted"]["programs_skipped"]["swapout"].as_u64().unwrap_or(0);
    let seen = written + skipped;
    println!("{skipped} were skipped");
    ensure!(seen.abs_diff(out) * 50 <= out, "{written} and {skipped}, the kernel says {out}");
    // What is on its way to the disk is not stolen yet.
    ensure!(
        stolen * 98 <= (seen + dropped) * 100 && dropped <= stolen,
        "{written} written, {dropped} dropped, the kernel says {stolen} taken"
    );
    let (clean, dirty) = (sum("dropped_pages", of_reader)?, sum("written_pages", of_reader)?);
    println!("of the reader by VMs: {clean} dropped, {dirty} written");
    let pages = |vm: &Value, what: &str| vm["evictions"][what].as_u64().unwrap_or(0);
    // The writer's pages are never clean, but for those of its QEMU.
    ensure!(
        pages(&writer, "dropped_pages") * 10 <= pages(&writer, "written_pages"),
        "the writer's were dropped: {writer:#}"
    );
    let sight = &run["evictions"];
    ensure!(sight["written_absent"].is_null() && sight["dropped_absent"].is_null(), "{sight}");
    Ok(())
}
