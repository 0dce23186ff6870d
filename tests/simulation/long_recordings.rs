//! What `report`, its page and `compare` of long recordings of many VMs cost: time and peak memory
//! of this checkout's release build, or of the binaries given, side by side; and the page's size.
//!
//!     cargo bench -p overcommit-tests --bench long_recordings -- [BINARY...]

mod model;

use anyhow::{Context, Result, ensure};
use model::{Random, latencies, write};
use overcommit_ebpf::layout::Metric;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// VMs and minutes of each recording. Beside the largest, one of half its length and one of half
/// its VMs: they show what grows with which.
const SIZES: [(usize, u64); 3] = [(50, 60), (50, 30), (25, 60)];
/// Times that each is run.
const RUNS: usize = 3;

fn main() -> Result<()> {
    let given = std::env::args_os().skip(1).filter(|argument| argument != "--bench");
    let mut binaries: Vec<PathBuf> = given.map(PathBuf::from).collect();
    if binaries.is_empty() {
        binaries.push(testbed::target().join("release/overcommit"));
    }
    println!("{:>3} VMs {:>7}  {:<8} {:>22} {:>12}", "", "minutes", "", "seconds", "peak MiB");
    for (vms, minutes) in SIZES {
        let dir = tempfile::tempdir()?;
        let [base, new] = ["base", "new"].map(|name| dir.path().join(name));
        make(&base, vms, minutes * 60, 1)?;
        make(&new, vms, minutes * 60, 2)?;
        let report = vec!["report".as_ref(), base.as_path()];
        let compare = vec!["compare".as_ref(), base.as_path(), new.as_path()];
        let file = dir.path().join("page.html");
        let words = ["report", "--format", "html", "--out"].map(Path::new);
        let page = [words.as_slice(), &[file.as_path(), base.as_path()]].concat();
        for (name, command) in [("report", report), ("page", page), ("compare", compare)] {
            for binary in &binaries {
                let mut runs =
                    (0..RUNS).map(|_| measure(binary, &command)).collect::<Result<Vec<_>>>()?;
                runs.sort_by(|one, other| one.0.total_cmp(&other.0));
                let [(least, _), (median, _), (most, _)] = runs[..] else { continue };
                let peak = runs.iter().map(|(_, peak)| *peak).max().unwrap_or(0);
                let spread = format!("{median:.1} ({least:.1}-{most:.1})");
                let binary = binary.display();
                println!("{vms:>7} {minutes:>7}  {name:<8} {spread:>22} {peak:>12}  {binary}");
            }
        }
        println!("{:>16} the page has {} KiB", "", file.metadata()?.len() >> 10);
    }
    Ok(())
}

fn make(path: &Path, vms: usize, seconds: u64, seed: u64) -> Result<()> {
    let mut random = Random(seed);
    write(path, vms, seconds, &Metric::ALL, |_, _| {
        let count = 20 + random.next() % 11;
        latencies((0..count).map(|_| (20_000.0 * random.normal().exp()) as u64))
    })?;
    Ok(())
}

/// Seconds that a command takes, and the most memory that it holds, in MiB.
fn measure(binary: &Path, arguments: &[&Path]) -> Result<(f64, u64)> {
    let start = Instant::now();
    let child = Command::new(binary).args(arguments).stdout(Stdio::null()).spawn();
    let child = child.with_context(|| format!("cannot run {}", binary.display()))?;
    let mut status = 0;
    // SAFETY: all of it may be zero; wait4 fills it.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let pid = libc::pid_t::try_from(child.id())?;
    // SAFETY: a child of ours that nobody else waits for, and two places to write to.
    let waited = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
    ensure!(waited == pid && status == 0, "{} {arguments:?} failed: {status}", binary.display());
    Ok((start.elapsed().as_secs_f64(), u64::try_from(usage.ru_maxrss)? >> 10))
}
