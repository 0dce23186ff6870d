//! Who takes pages of whom, written to a disk or dropped because they are there already?

use crate::{FUNCTION_BACKENDS, Scenario};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use testbed::host::{MemoryCgroup, Setting, swapped_out};
use testbed::qemu::{Config, Vm};
use testbed::record::Recording;
use testbed::results::{await_cgroups, json, rows, vm};
use testbed::squeeze::Squeeze;
use testbed::swap::DiskSwap;
use testbed::{PATIENCE, await_some};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        ("evictions".to_owned(), Box::new(matrix)),
        ("slow_faults_name_who_evicted".to_owned(), Box::new(own_aggressor)),
    ]
}

type Row = HashMap<String, String>;

/// MiB that each of two guests fills, and what both may hold when one has.
const WALK: u64 = 32;
const SPARE: u64 = 2;
const ENOUGH: u64 = 1024;
/// Pages that make a share worth a look.
const DROPPED: u64 = 1_000;
/// Major faults of a squeezed VM.
const MAJORS: u64 = 1_500;

/// Who had evicted what a squeezed VM reads back: itself, within its limit. Its entries in the page
/// table are those that the kernel wrote out.
fn own_aggressor(dir: &Path) -> Result<()> {
    let squeeze = Squeeze::new()?;
    let mut vm = Vm::start(&Config { stopped: true, ..squeeze.config("squeezed") })?;
    let recording = Recording::start(&dir.join("run"), ["--slow-faults", "0ns"])?;
    vm.resume()?;
    vm.await_majors(MAJORS)?;
    vm.stop()?;
    let slow = rows(&recording.end()?, "slow-faults.csv")?;
    let swapped: Vec<&Row> = slow.iter().filter(|row| row["backing"] == "swap").collect();
    let own = swapped.iter().filter(|row| row["aggressor"] == "squeezed").count();
    println!("{own} of {} by itself", swapped.len());
    ensure!(swapped.len() > 100 && own * 10 >= swapped.len() * 9, "{own} of {}", swapped.len());
    Ok(())
}

/// Two VMs in sibling cgroups below one limit. The memory of one lies on the disk and is
/// only read by its QEMU, so that it is clean; the other one grows and writes.
struct Pair {
    reader: Vm,
    writer: Vm,
    cgroups: [MemoryCgroup; 2],
    parent: MemoryCgroup,
}

impl Pair {
    fn start() -> Result<Self> {
        let parent = MemoryCgroup::new("matrix")?;
        let cgroups = [parent.child("reader")?, parent.child("writer")?];
        let config = Config { cgroup: Some(&cgroups[0]), ..Config::new("reader", WALK) };
        let mut reader = Vm::start(&config)?;
        reader.await_passes(1)?;
        reader.stop()?;
        let config = Config::new("writer", WALK);
        let writer = Vm::start(&Config { cgroup: Some(&cgroups[1]), stopped: true, ..config })?;
        Ok(Self { reader, writer, cgroups, parent })
    }

    /// Has all of both in memory, so that a recording sees who evicts what it reads back.
    fn bring_back(&mut self) -> Result<()> {
        self.parent.limit(ENOUGH)?;
        for vm in [&mut self.reader, &mut self.writer] {
            vm.execute("pmemsave", whole())?;
        }
        Ok(())
    }

    /// Has the kernel write out what it can of both; the reader gets it back by reading.
    fn read_from_disk(&mut self) -> Result<()> {
        for cgroup in &self.cgroups {
            // Some of it cannot be taken, which is said as an error.
            let _ = cgroup.reclaim(cgroup.charged()? >> 20);
        }
        self.reader.execute("pmemsave", whole())?;
        self.parent.limit((self.parent.charged()? >> 20) + SPARE)
    }
}

/// All that a guest walks, read by its QEMU.
fn whole() -> Value {
    json!({ "val": 0, "size": WALK << 20, "filename": "/dev/null" })
}

fn matrix(dir: &Path) -> Result<()> {
    let _small_pages = Setting::small_pages()?;
    let _swap = DiskSwap::new(crate::disk())?;
    let mut pair = Pair::start()?;
    FUNCTION_BACKENDS.iter().try_for_each(|backend| {
        let taken = Taken::of(&mut pair, &dir.join(backend), backend)?;
        taken.is_whole()?;
        taken.has_its_aggressor()?;
        taken.has_its_aggressors()
    })
}

/// What is taken in a recording, with what the kernel says.
struct Taken {
    rows: Vec<Row>,
    slow: Vec<Row>,
    reader: Value,
    writer: Value,
    run: Value,
    out: u64,
    stolen: u64,
}

impl Taken {
    fn of(pair: &mut Pair, folder: &Path, backend: &str) -> Result<Self> {
        let options = ["--interval", "500ms", "--backend", backend, "--slow-faults", "1us"];
        pair.bring_back()?;
        let recording = Recording::start(folder, options)?;
        await_cgroups(folder, ["reader", "writer"], PATIENCE)?;
        let (out, stolen) = (swapped_out()?, pair.parent.stat("pgsteal")?);
        pair.read_from_disk()?;
        pair.writer.resume()?;
        let dropped =
            || pages(&rows(folder, "evictions.csv")?, "dropped_pages", of_reader_by_writer);
        let come =
            await_some("clean drops", PATIENCE, || Ok((dropped()? >= DROPPED).then_some(())));
        pair.writer.explain(come)?;
        pair.writer.stop()?;
        let (out, stolen) = (swapped_out()? - out, pair.parent.stat("pgsteal")? - stolen);
        recording.end()?;
        Ok(Self {
            rows: rows(folder, "evictions.csv")?,
            slow: rows(folder, "slow-faults.csv")?,
            reader: vm(folder, "reader")?,
            writer: vm(folder, "writer")?,
            run: json(folder, "run.json")?,
            out,
            stolen,
        })
    }

    /// The kernel's own counters know of no more.
    fn is_whole(&self) -> Result<()> {
        let (out, stolen) = (self.out, self.stolen);
        let written = pages(&self.rows, "written_pages", |_| true)?;
        let dropped = pages(&self.rows, "dropped_pages", |_| true)?;
        // Where the kernel preempts such programs it leaves some out, and counts them.
        let skipped = self.run["not_counted"]["programs_skipped"]["swapout"].as_u64().unwrap_or(0);
        println!("{written} written, {dropped} dropped, {skipped} skipped; {out}, {stolen} stolen");
        let seen = written + skipped;
        ensure!(seen.abs_diff(out) * 50 <= out, "{written} and {skipped}, the kernel says {out}");
        // What is on its way to the disk is not stolen yet.
        ensure!(
            stolen * 98 <= (seen + dropped) * 100 && dropped <= stolen,
            "{written} written, {dropped} dropped, the kernel says {stolen} taken"
        );
        let sight = &self.run["evictions"];
        ensure!(sight["written_absent"].is_null() && sight["dropped_absent"].is_null(), "{sight}");
        Ok(())
    }

    /// Who had evicted what slow faults read back: the test itself, which has the kernel take
    /// pages. Only what QEMU has of its own may have been out before the recording began.
    fn has_its_aggressors(&self) -> Result<()> {
        let swapped = self.slow.iter().filter(|row| row["backing"] == "swap");
        let mut aggressors: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        for row in swapped {
            let who = (row["aggressor_kind"].as_str(), row["aggressor"].as_str());
            *aggressors.entry(who).or_default() += 1;
        }
        println!("evicted by {aggressors:?}");
        let all: u64 = aggressors.values().sum();
        let unknown = aggressors.remove(&("", "")).unwrap_or(0);
        ensure!(all > 100 && unknown * 4 <= all, "{unknown} of {all} have no aggressor");
        let by_test = aggressors.iter().filter(|((kind, _), _)| *kind == "process");
        let by_test: u64 = by_test.map(|(_, count)| count).sum();
        ensure!(by_test * 10 >= (all - unknown) * 9, "{aggressors:?}");
        Ok(())
    }

    fn has_its_aggressor(&self) -> Result<()> {
        for vm in [&self.reader, &self.writer] {
            println!("{}: {}", vm["vm"], vm["evictions"]);
        }
        let by_vms = pages(&self.rows, "dropped_pages", of_reader_by_vm)?;
        let by_writer = pages(&self.rows, "dropped_pages", of_reader_by_writer)?;
        ensure!(by_writer * 10 >= by_vms * 9, "{by_writer} of {by_vms} by the one that grows");
        Ok(())
    }
}

fn of_reader_by_vm(row: &Row) -> bool {
    row["victim"] == "reader" && row["aggressor_kind"] == "vm"
}

fn of_reader_by_writer(row: &Row) -> bool {
    of_reader_by_vm(row) && row["aggressor"] == "writer"
}

fn pages(rows: &[Row], column: &str, is_it: fn(&Row) -> bool) -> Result<u64> {
    let of = rows.iter().filter(|row| is_it(row));
    of.map(|row| row[column].parse::<u64>().with_context(|| column.to_owned())).sum()
}
