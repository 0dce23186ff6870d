//! A guest restored from a snapshot: its memory is a private mapping of a file. What it reads
//! comes from the file, what it writes is copied, page by page, in faults that it knows
//! nothing of.

use crate::PATIENCE;
use crate::host::{Setting, quote};
use crate::qemu::{Config, Vm};
use crate::record::Recording;
use crate::results::{fault_share, figure, only_vm};
use crate::scenario::print_report;
use crate::{target, undo::Undo};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// MiB that the guest walks natively, and those that it has beside.
const WALK: u64 = 96;
const BESIDE: u64 = 64;
/// Passes that only read: enough for the guest to be stopped among them.
const READS: u32 = 200;
const PAGES_PER_MIB: u64 = 256;

/// A walk of the guest through its memory.
pub struct Walk {
    /// What it is.
    pub name: String,
    /// The VM's entry in the summary of its recording.
    pub vm: Value,
    /// Its recording.
    pub folder: PathBuf,
}

pub(super) fn run(dir: &Path) -> Result<()> {
    let file = target().join(format!("snapshot-{}", std::process::id()));
    let script = format!("rm -f {}", quote(&file.display().to_string()));
    let _undo = Undo::script("the snapshot", &script)?;
    let mut snapshot = File::create(&file)?;
    // No holes: those would not be read from a disk.
    (0..WALK + BESIDE).try_for_each(|_| snapshot.write_all(&[1; 1 << 20]))?;
    let walks = measure(dir, &file, WALK, &["cold", "warm"], &["--causes"])?;
    walks.iter().try_for_each(|walk| print_report(&walk.folder))?;
    print(&walks)?;
    let [cold, cold_write, warm, warm_write] = &walks[..] else { return Ok(()) };
    let majors = |walk: &Walk| figure(&walk.vm, "fault.major", "count");
    // Those that the kernel has read ahead are none.
    ensure!(majors(cold)? > 2 * majors(warm)?, "nothing was read from the disk");
    for walk in [cold, cold_write, warm, warm_write] {
        // That they make up the whole.
        fault_share(&walk.vm, "io")?;
    }
    for walk in [cold_write, warm_write] {
        let faults = majors(walk)? + figure(&walk.vm, "fault.minor", "count")?;
        ensure!(faults * 10 >= WALK * PAGES_PER_MIB * 9, "{}: {faults} faults", walk.name);
    }
    Ok(())
}

/// Restores a guest with the file out of the page cache (`cold`) or in it (`warm`); each
/// time it reads all of its memory once and writes it once.
///
/// # Errors
/// A VM or a recording fails.
pub fn measure(
    dir: &Path,
    file: &Path,
    walk: u64,
    caches: &[&str],
    options: &[&str],
) -> Result<Vec<Walk>> {
    let _small_pages = Setting::small_pages()?;
    let size = walk + BESIDE;
    let path = file.display().to_string().replace(',', ",,");
    let backend = format!("memory-backend-file,id=ram,mem-path={path},share=off,size={size}M");
    let more = ["-object", &backend, "-machine", "memory-backend=ram"];
    let mut walks = Vec::new();
    for cache in caches {
        if *cache == "cold" {
            forget(file)?;
        }
        let config = Config { more: &more, reads: READS, ..Config::new("restored", walk) };
        let mut vm = Vm::start(&Config { stopped: true, ..config })?;
        for (what, passes) in [("reads", 1), ("writes", READS as usize + 1)] {
            let folder = dir.join(format!("{cache}-{what}"));
            let recording = Recording::start(&folder, options)?;
            vm.resume()?;
            let come =
                crate::await_some("walk", PATIENCE, || Ok((vm.passes()? >= passes).then_some(())));
            vm.explain(come)?;
            vm.stop()?;
            let reads_on = what == "writes" || vm.passes()? <= READS as usize;
            ensure!(reads_on, "the guest wrote before it was stopped: {READS} reads are too few");
            recording.end()?;
            let name = format!("{what}, {cache}");
            walks.push(Walk { name, vm: only_vm(&folder)?, folder });
        }
    }
    Ok(walks)
}

/// Has the kernel drop the file from its page cache.
fn forget(file: &Path) -> Result<()> {
    let file = File::open(file)?;
    file.sync_all()?;
    let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
    nix::fcntl::posix_fadvise(&file, 0, 0, advice).context("cannot drop it from the page cache")
}

/// Prints what guest and host saw of each walk.
///
/// # Errors
/// A figure is missing.
pub fn print(walks: &[Walk]) -> Result<()> {
    println!("\nthe guest saw nothing; the host saw");
    println!("                  minor   major    in faults   of that for the disk");
    for Walk { name, vm, .. } in walks {
        let count = |metric| figure(vm, metric, "count");
        let time = |part: &str| vm["fault_time"][part].as_u64().unwrap_or(0) as f64;
        let (all, disk) = (time("total_ns"), time("io_ns"));
        println!(
            "{name:<13}  {:>8}  {:>6}  {:>8.1} ms  {:>19.1} %",
            count("fault.minor")?,
            count("fault.major")?,
            all / 1e6,
            100.0 * disk / all.max(1.0)
        );
    }
    Ok(())
}
