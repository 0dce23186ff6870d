//! Who takes pages of whom?

use crate::Tests;
use crate::fakes::empty_until;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::Path;
use testbed::host::{MemoryCgroup, Setting, swapped_out};
use testbed::qemu::{Config, Vm};
use testbed::record::Recording;
use testbed::results::{await_cgroups, json, rows, vm};
use testbed::swap::ZramSwap;
use testbed::{PATIENCE, await_some};

pub(crate) const TESTS: Tests = &[
    ("a_growing_vm_is_named_as_the_aggressor_of_an_idle_one_kvm", idle_victim),
    ("a_busy_victim_takes_its_own_part_kvm", busy_victim),
    ("pages_taken_while_the_matrix_is_full_are_taken_by_others_kvm", full_matrix),
];

/// MiB of the VM that is there first, of the one that grows, and of both together.
const FIRST: u64 = 96;
const GROWING: u64 = 224;
const LIMIT: u64 = 256;
/// MiB that the first one may hold by itself, where it is to reclaim at its own limit: more than
/// the other leaves it, less than it walks.
const OWN: u64 = 80;

/// What is taken of whom in a recording, with the pages that the kernel swapped out
/// meanwhile.
struct Taken {
    first: Value,
    growing: Value,
    written: u64,
    kernel: u64,
}

/// Pages of a VM that an aggressor has taken so far.
fn so_far(folder: &Path, victim: &str, aggressor: &str) -> Result<u64> {
    let rows = rows(folder, "evictions.csv")?;
    let of = rows.iter().filter(|row| row["victim"] == victim && row["aggressor"] == aggressor);
    of.map(|row| Ok(row["written_pages"].parse::<u64>()?)).sum()
}

/// Two VMs in sibling cgroups below one limit: the first idles until the other has taken that many
/// pages of it. If it is to take some `itself` too, it then walks on alone, in a limit of its own. If so
/// wished, no entry of the matrix is free.
fn taken(
    folder: &Path,
    first: &str,
    growing: &str,
    pages: u64,
    itself: Option<u64>,
    fills_matrix: bool,
) -> Result<Taken> {
    let _settings = [Setting::small_pages()?, Setting::no_readahead()?];
    let parent = MemoryCgroup::new("matrix")?;
    let _swap = ZramSwap::new(1024)?;
    let (one, two) = (parent.child("first")?, parent.child("growing")?);
    let hot = if itself.is_some() { FIRST } else { 1 };
    let config = Config { cgroup: Some(&one), hot: Some((hot, 1)), ..Config::new(first, FIRST) };
    let mut victim = Vm::start(&config)?;
    victim.await_passes(1)?;
    if itself.is_some() {
        victim.stop()?;
    }
    let config = Config::new(growing, GROWING);
    let mut other = Vm::start(&Config { cgroup: Some(&two), stopped: true, ..config })?;
    let recording = Recording::start(folder, ["--interval", "500ms"])?;
    // By then the cgroups are known.
    await_cgroups(folder, [first, growing], PATIENCE)?;
    if fills_matrix {
        empty_until()?.set(FREE_EVICTIONS, u64::MAX, 0)?;
    }
    let before = swapped_out()?;
    parent.limit(LIMIT)?;
    other.resume()?;
    let reach = |aggressor: &str, pages: u64| {
        let aggressor = if fills_matrix { "others" } else { aggressor };
        await_some(&format!("evictions by {aggressor}"), PATIENCE, || {
            Ok((so_far(folder, first, aggressor)? >= pages).then_some(()))
        })
    };
    reach(growing, pages)?;
    other.stop()?;
    if let Some(pages) = itself {
        one.limit(OWN)?;
        victim.resume()?;
        reach(first, pages)?;
    }
    victim.stop()?;
    let kernel = swapped_out()? - before;
    recording.end()?;
    let all = rows(folder, "evictions.csv")?;
    let written: u64 =
        all.iter().map(|row| Ok(row["written_pages"].parse::<u64>()?)).sum::<Result<_>>()?;
    Ok(Taken { first: vm(folder, first)?, growing: vm(folder, growing)?, written, kernel })
}

/// The list of the free entries of the matrix, among those that may be empty.
const FREE_EVICTIONS: u32 = 2;

/// The share that an aggressor has of what was taken of a VM.
fn share(victim: &Value, aggressor: &str) -> f64 {
    let by = victim["evictions"]["by"].as_array().into_iter().flatten();
    let shares = by.filter(|by| by["name"] == aggressor).filter_map(|by| by["share"].as_f64());
    shares.sum()
}

impl Taken {
    fn check(&self, folder: &Path) -> Result<()> {
        for vm in [&self.first, &self.growing] {
            println!("{}: {}", vm["vm"], vm["evictions"]);
        }
        println!("{} pages in the matrix, {} by the kernel", self.written, self.kernel);
        // Third parties are in it: DAMON's reclaim, where the host runs one.
        ensure!(
            self.written.abs_diff(self.kernel) * 50 <= self.kernel,
            "{} pages, the kernel says {}",
            self.written,
            self.kernel
        );
        // It works at the host's swap tracepoint alone, so it must say what it cannot see.
        let sight = &json(folder, "run.json")?["evictions"];
        ensure!(
            sight["written_absent"].is_null() && sight["dropped_absent"].is_string(),
            "{sight}"
        );
        ensure!(self.first["evictions"]["dropped_pages"].is_null(), "{}", self.first);
        Ok(())
    }
}

fn idle_victim() -> Result<()> {
    let dir = tempfile::tempdir()?;
    for (idle, growing) in [("calm", "greedy"), ("greedy", "calm")] {
        let folder = dir.path().join(idle);
        let taken = taken(&folder, idle, growing, 10_000, None, false)?;
        taken.check(&folder)?;
        let seen = share(&taken.first, growing);
        ensure!(seen >= 0.9, "{growing} took {seen:.3} of {idle}'s evictions");
        let worst = &taken.first["evictions"]["by"][0];
        ensure!(worst["name"] == growing && worst["class"] == "vm", "{worst}");
        ensure!(worst["is_itself"] == false, "{worst}");
        let text = testbed::results::run(["report", &folder.to_string_lossy()])?;
        let text = String::from_utf8(text.stdout).context("no text")?;
        let said = text.lines().skip_while(|line| *line != idle);
        let said = said.take_while(|line| !line.is_empty()).find(|line| line.contains("evicted"));
        println!("{said:?}");
        let by = |of| said.is_some_and(|line: &str| line.contains(&format!("{of} by {growing}")));
        ensure!(by("%") || by("all"), "{text}");
    }
    Ok(())
}

fn busy_victim() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let folder = dir.path().join("run");
    let taken = taken(&folder, "busy", "growing", 16_000, Some(5_000), false)?;
    taken.check(&folder)?;
    let by = taken.first["evictions"]["by"].as_array().into_iter().flatten();
    let (own, others): (Vec<&Value>, Vec<&Value>) = by.partition(|by| by["is_itself"] == true);
    ensure!(own.len() == 1 && own[0]["name"] == "busy", "{own:#?}");
    ensure!(others.iter().any(|by| by["name"] == "growing"), "{others:#?}");
    let seen = share(&taken.first, "busy") + share(&taken.first, "growing");
    ensure!(seen >= 0.9, "{seen:.3} of its evictions are by the two");
    Ok(())
}

/// No page is lost, what a VM takes of nobody's keeps its name, and the loss is named.
fn full_matrix() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let folder = dir.path().join("run");
    let taken = taken(&folder, "calm", "greedy", 10_000, None, true)?;
    taken.check(&folder)?;
    let by = &taken.first["evictions"]["by"];
    let all = by.as_array().into_iter().flatten();
    ensure!(all.count() == 1 && by[0]["name"] == "others" && by[0]["class"] == "other", "{by}");
    let rows = rows(&folder, "vms.csv")?;
    let lost = rows.iter().filter(|row| row["vm"] == "calm").map(|row| &row["lost_evictions_full"]);
    let lost: u64 = lost.map(|lost| Ok(lost.parse::<u64>()?)).sum::<Result<_>>()?;
    ensure!(lost >= 10_000, "{lost}");
    Ok(())
}
