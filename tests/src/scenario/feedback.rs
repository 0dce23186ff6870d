//! Two guests that both say that all is well, though the host swaps one of them; and what they say
//! once their host tells them.

use crate::qemu::{Config, Vm};
use crate::record::Recording;
use crate::results::rows;
use crate::scenario::{Row, figure, print_report};
use crate::serving::{PORT, Serving};
use crate::squeeze::Squeeze;
use crate::{PATIENCE, await_some, overcommit};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::path::Path;

/// MiB of each guest: by that they tell each other's figures from their own.
const MEMORY: [u64; 2] = [384, 448];
/// MiB that each of them reads over and over.
const WORK: u64 = 160;
/// MiB that the squeezed one may hold then: less than its work and what QEMU itself takes, which is more
/// where it emulates the guest.
const LIMIT: u64 = 220;
/// The same under KVM.
const LIMIT_UNDER_KVM: u64 = 150;
/// Messages of the host that are held against the recording.
const MESSAGES: usize = 12;
/// How far a share may lie beyond those of the intervals around it: two recorders do not end them at
/// the very same time.
const SLACK: f64 = 0.05;
/// Part of the messages that have to agree.
const AGREE: f64 = 0.9;
/// What of its time the squeezed one waits for memory at least, and the calm one does not.
const SQUEEZED: f64 = 0.02;
/// A VM that also has vsock, by that CID.
const VSOCK: &str = "vhost-vsock-pci,guest-cid=";
const CIDS: [u32; 2] = [41, 42];

/// Whether guests of this host can have vsock.
pub fn has_vsock() -> bool {
    Path::new("/dev/vhost-vsock").exists()
}

/// Works, asks the host all the time, and in the end says what it sees. busybox's `cat` uses
/// sendfile, which does not touch the pages; `dd` copies them.
fn script() -> String {
    let guest = format!("{} guest", overcommit().display());
    format!(
        "dd if=/dev/zero of=/dev/shm/work bs=1M count={WORK} 2> /dev/null
while :; do dd if=/dev/shm/work of=/dev/null bs=1M 2> /dev/null; sleep 0.2; done &
{guest} --watch --json > /run/results/told 2> /run/results/complaints &
echo works
while [ ! -e /run/results/end ]; do sleep 0.2; done
(free -m; cat /proc/pressure/memory; {guest}) > /run/results/seen 2>&1
{guest} --vsock --json > /run/results/by-vsock 2>&1
echo has-said-it
sleep 1000"
    )
}

pub(super) fn run(dir: &Path) -> Result<()> {
    told_on(dir, Config::shell("", 0, "").accel, LIMIT)
}

/// The same with KVM, where that runs Linux: in the lab with an arm64 CPU.
///
/// # Errors
/// A guest was not told the truth, or another's.
pub fn under_kvm(dir: &Path) -> Result<()> {
    told_on(dir, "kvm", LIMIT_UNDER_KVM)
}

fn told_on(dir: &Path, accel: &str, limit: u64) -> Result<()> {
    let script = script();
    // As much as both take while they start.
    let squeeze = Squeeze::to(4 * MEMORY.iter().sum::<u64>())?;
    let mut vms = [("squeezed", Some(&squeeze.cgroup)), ("calm", None)]
        .into_iter()
        .zip(MEMORY.into_iter().zip(CIDS))
        .map(|((name, cgroup), (memory, cid))| {
            let vsock = format!("{VSOCK}{cid}");
            let vsock = if has_vsock() { &["-device", &vsock][..] } else { &[] };
            let more = [&PORT[..], vsock].concat();
            let shell = Config::shell(name, memory, &script);
            Vm::start(&Config { cgroup, more: &more, accel, ..shell })
        })
        .collect::<Result<Vec<Vm>>>()?;
    vms.iter_mut().try_for_each(|vm| vm.await_text("works"))?;
    let mut serving = Serving::start(dir, &["--guests-only", "--guests", "*"])?;
    serving.await_told(|text| text.contains("telling guests").then_some(()))?;
    squeeze.cgroup.limit(limit)?;
    let folder = dir.join("feedback");
    let recording = Recording::start(&folder, [""; 0])?;
    let each = await_some("word of the host in both guests", PATIENCE, || {
        let told = vms.iter().map(told).collect::<Result<Vec<_>>>()?;
        // The first of them are of before.
        let is_enough = told.iter().all(|told| told.len() >= 2 * MESSAGES);
        Ok(is_enough.then_some(told))
    })?;
    let mut seen = Vec::new();
    for vm in &mut vms {
        std::fs::write(vm.dir().join("results/end"), "")?;
        vm.await_text("has-said-it")?;
        seen.push(std::fs::read_to_string(vm.dir().join("results/seen"))?);
    }
    recording.end()?;
    serving.end()?;
    print_report(&folder)?;
    for ((name, seen), told) in ["squeezed", "calm"].iter().zip(&seen).zip(&each) {
        println!("\ninside {name}\n{}", indented(seen));
        agree(name, &folder, told)?;
    }
    check(&seen, &each)?;
    if has_vsock() {
        for (vm, memory) in vms.iter().zip(MEMORY) {
            let text = std::fs::read_to_string(vm.dir().join("results/by-vsock"))?;
            let told: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
            let configured = told["host"]["configured_bytes"].as_u64();
            ensure!(configured == Some(memory << 20), "by vsock {text}");
        }
        println!("both guests were told the same by vsock");
    }
    Ok(())
}

/// What the host has told a guest so far.
fn told(vm: &Vm) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(vm.dir().join("results/told")).unwrap_or_default();
    // The last line may not be whole.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| serde_json::from_str(line).context(line.to_owned())).collect()
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect()
}

/// Holds what a guest was told against the recording's rows of the same seconds.
fn agree(name: &str, folder: &Path, told: &[Value]) -> Result<()> {
    let rows: Vec<Row> = rows(folder, "vms.csv")?
        .into_iter()
        .filter(|row| row["vm"] == name && !row["stall_share"].is_empty())
        .collect();
    let end = |row: &Row| Ok(figure(row, "start_unix_s")? + figure(row, "length_s")?);
    let ends: Vec<f64> = rows.iter().map(end).collect::<Result<_>>()?;
    let shares: Vec<f64> =
        rows.iter().map(|row| figure(row, "stall_share")).collect::<Result<_>>()?;
    let (mut compared, mut agreed) = (0, 0);
    for message in told {
        let unix_s = message["unix_s"].as_f64().context("no unix_s")?;
        let Some(share) = message["last_1s"]["stall_share"].as_f64() else { continue };
        let Some(place) = ends.iter().position(|end| (end - unix_s).abs() < 0.5) else { continue };
        let around = &shares[place.saturating_sub(1)..(place + 2).min(shares.len())];
        let least = around.iter().copied().fold(f64::INFINITY, f64::min);
        let most = around.iter().copied().fold(0.0, f64::max);
        compared += 1;
        agreed += usize::from(share >= least - SLACK && share <= most + SLACK);
        if compared == MESSAGES / 2 {
            println!("the line of a second\n    {message}");
            println!("its row\n    {}", cells(&rows[place])?);
        }
    }
    println!("{name}: {agreed} of {compared} messages agree with the recording");
    ensure!(compared >= MESSAGES / 2, "{compared} messages are of recorded seconds");
    ensure!(agreed as f64 >= AGREE * compared as f64, "{agreed} of {compared} agree");
    Ok(())
}

/// What a row has of what a message tells.
fn cells(row: &Row) -> Result<String> {
    let columns = ["start_unix_s", "length_s", "stall_share", "cpu_wait_share", "swapped_bytes"];
    let cell = |column: &str| Ok(format!("{column} {}", figure(row, column)?));
    Ok(columns.into_iter().map(cell).collect::<Result<Vec<_>>>()?.join(", "))
}

fn check(seen: &[String], told: &[Vec<Value>]) -> Result<()> {
    let [squeezed, calm] = seen else { bail!("{} guests have said something", seen.len()) };
    ensure!(squeezed.contains("The host took"), "{squeezed}");
    // Lines may be broken there.
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    // The larger loss comes first: on a busy machine it is the want of a CPU.
    let memory = ["at the memory limit that the host sets for it", "was lost waiting for memory"];
    let is_of_memory = |text: &str| memory.iter().any(|part| words(text).contains(part));
    ensure!(is_of_memory(squeezed), "{squeezed}");
    ensure!(!is_of_memory(calm), "{calm}");
    // Its own kernel saw nobody wait for memory.
    let some = squeezed.lines().find(|line| line.starts_with("some")).context("no PSI")?;
    ensure!(some.contains("avg10=0.00"), "{some}");
    for (memory, told) in MEMORY.iter().zip(told) {
        for message in told {
            let is_own = message["configured_bytes"].as_u64() == Some(memory << 20);
            ensure!(is_own, "a guest of {memory} MiB is told {message}");
        }
    }
    let last =
        |told: &[Value]| told.last().and_then(|last| last["last_10s"]["stall_share"].as_f64());
    let shares = told.iter().map(|told| last(told)).collect::<Option<Vec<f64>>>();
    let shares = shares.context("a guest was told no share")?;
    let is_told_apart = shares[0] > SQUEEZED && shares[1] < SQUEEZED;
    ensure!(is_told_apart, "{shares:?} of the last ten seconds");
    Ok(())
}
