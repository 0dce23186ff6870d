//! What recording many VMs takes of the host: time until it counts, CPU, memory, and bytes of files.
//! Each VM is a process with KVM open that touches fresh pages ten times a second. As root, once the
//! release build is there (`cargo xtask build`):
//!
//!     cargo bench -p overcommit-tests --bench many_vms [-- SECONDS]

use anyhow::{Context, Result};
use procfs::process::Process;
use std::path::Path;
use std::time::{Duration, Instant};
use testbed::record::Recording;
use testbed::results::{StandIn, json};
use testbed::serving::Server;

const VMS: [usize; 3] = [1, 50, 500];
const INTERVALS: [&str; 2] = ["1s", "100ms"];
/// Pages that each VM touches a second.
const PAGES: &str = "40";
/// Seconds of each recording, unless others are asked for.
const SECONDS: u64 = 30;

fn main() -> Result<()> {
    let seconds = std::env::args().skip(1).find_map(|word| word.parse().ok()).unwrap_or(SECONDS);
    println!("Each VM takes {PAGES} faults a second; {seconds} s each.\n");
    println!(
        "| VMs | interval | until it counts, s | CPU, % | programs, % | RSS, MiB | kernel, MiB | files, MB an hour |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    let mut vms = Vec::new();
    for count in VMS {
        while vms.len() < count {
            let mut vm = StandIn::start(["steady", PAGES])?;
            vm.work()?;
            vms.push(vm);
        }
        for interval in INTERVALS {
            println!("| {count} | {interval} {}", measured(interval, seconds)?);
        }
        println!("| {count} | {}", served(seconds)?);
    }
    Ok(())
}

/// Cells of a server that is scraped once a second.
fn served(seconds: u64) -> Result<String> {
    let dir = tempfile::tempdir()?;
    let server = Server::start(dir.path(), &[])?;
    let process = Process::new(server.pid().cast_signed())?;
    let ticks = || -> Result<u64> {
        let stat = process.stat()?;
        Ok(stat.utime + stat.stime)
    };
    let (before, start) = (ticks()?, Instant::now());
    let (mut longest, mut length) = (Duration::ZERO, 0);
    for second in 1..=seconds {
        let asked = Instant::now();
        let answer = server.metrics()?;
        (longest, length) = (longest.max(asked.elapsed()), answer.len());
        std::thread::sleep(
            (start + Duration::from_secs(second)).saturating_duration_since(Instant::now()),
        );
    }
    let cpu_s = (ticks()? - before) as f64 / procfs::ticks_per_second() as f64;
    let resident = process.status()?.vmhwm.unwrap_or(0) as f64 / 1024.0;
    server.end()?;
    Ok(format!(
        "serve, scraped every second | | {:.2} | | {resident:.1} | | {:.1} MB in {:.2} s at most, a scrape |",
        100.0 * cpu_s / start.elapsed().as_secs_f64(),
        length as f64 / 1e6,
        longest.as_secs_f64(),
    ))
}

/// Cells of a recording of the VMs that run.
fn measured(interval: &str, seconds: u64) -> Result<String> {
    let dir = tempfile::tempdir()?;
    let folder = dir.path().join("run");
    let start = Instant::now();
    let recording = Recording::start(&folder, ["--interval", interval])?;
    let ready_s = start.elapsed().as_secs_f64();
    let before = bytes(&folder)?;
    // How long is what is asked for, and no event.
    std::thread::sleep(Duration::from_secs(seconds));
    let hour = (bytes(&folder)? - before) as f64 * 3600.0 / seconds as f64;
    recording.end()?;
    let cost = &json(&folder, "run.json")?["cost"];
    let figure = |key: &str| cost[key].as_f64().with_context(|| format!("no {key} in {cost}"));
    let per_cent =
        |part: &str, whole: &str| Ok::<_, anyhow::Error>(100.0 * figure(part)? / figure(whole)?);
    let mib = |key: &str| Ok::<_, anyhow::Error>(figure(key)? / f64::from(1 << 20));
    Ok(format!(
        "| {ready_s:.2} | {:.2} | {:.2} | {:.1} | {:.1} | {:.0} |",
        per_cent("cpu_ns", "length_ns")?,
        per_cent("programs_ns", "programs_timed_ns")?,
        mib("resident_peak_bytes")?,
        mib("kernel_bytes")?,
        hour / 1e6,
    ))
}

/// Of all files in a folder and those below it.
fn bytes(folder: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        sum += if metadata.is_dir() { bytes(&entry.path())? } else { metadata.len() };
    }
    Ok(sum)
}
