//! What do VMs give back, hold and use?

use crate::Tests;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use testbed::host::{Setting, Tracefs};
use testbed::qemu::{Config, Vm, stat_field};
use testbed::record::Recording;
use testbed::results::{json, rows, vm};
use testbed::{PATIENCE, await_some};

pub(crate) const TESTS: Tests = &[
    ("a_balloon_is_told_by_qemu_or_seen_by_the_kernel", balloon),
    ("what_two_kvm_vms_share_is_held_once", shared_once),
    ("huge_pages_are_a_memory_of_their_own_kvm", huge_pages),
    ("what_twins_share_is_saved_once_kvm", twins),
    ("a_working_set_is_measured_or_bounded", working_set),
];

const MIB: u64 = 1 << 20;
/// Memory of the guest, and what its balloon takes.
const MEMORY: u64 = 512;
const BALLOONED: u64 = 256;

/// A guest that frees 128 MiB when its shell starts, then waits. Its files are its memory.
const SCRIPT: &str = "dd if=/dev/zero of=/root-of-guest bs=1M count=128 2>/dev/null
rm /root-of-guest
echo freed
exec sleep 1000";

type Row = HashMap<String, String>;

fn last(folder: &Path, name: &str) -> Result<Option<Row>> {
    Ok(rows(folder, "vms.csv")?.into_iter().rev().find(|row| row["vm"] == name))
}

fn bytes(row: &Row, column: &str) -> Option<u64> {
    row[column].parse().ok()
}

/// Waits until the VM's last row shows something.
fn await_row(folder: &Path, vm: &str, what: &str, is_it: impl Fn(&Row) -> bool) -> Result<Row> {
    let found = await_some(what, PATIENCE, || Ok(last(folder, vm)?.filter(&is_it)));
    found.with_context(|| format!("{:#?}", last(folder, vm)))
}

/// What the VM has in RAM, once that is known.
fn held(folder: &Path, name: &str) -> Result<u64> {
    let row = await_row(folder, name, "memory", |row| !row["resident_bytes"].is_empty())?;
    bytes(&row, "resident_bytes").context("not resident")
}

fn inflate(vm: &mut Vm, by_mib: u64) -> Result<()> {
    let target = (MEMORY - by_mib) * MIB;
    vm.execute("balloon", json!({ "value": target }))?;
    await_some("balloon", PATIENCE, || {
        let actual = vm.execute("query-balloon", json!({}))?["actual"].as_u64();
        Ok((actual == Some(target)).then_some(()))
    })
}

fn polling(vm: &mut Vm) -> Result<Value> {
    let property = "guest-stats-polling-interval";
    vm.execute("qom-get", json!({ "path": "/machine/peripheral/b0", "property": property }))
}

fn near(what: &str, seen: u64, truth: u64, percent: u64) -> Result<()> {
    println!("{what}: {seen}, should be {truth}");
    ensure!(seen.abs_diff(truth) * 100 <= truth * percent, "{what}: {seen}, should be {truth}");
    Ok(())
}

fn balloon() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let _small_pages = Setting::small_pages()?;
    let _tracefs = Tracefs::mounted()?;
    let more = [
        "-device",
        "virtio-balloon-pci,id=b0,free-page-reporting=on",
        "-qmp",
        "unix:DIR/free,server=on,wait=off",
    ];
    let config = Config { more: &more, ..Config::shell("web", MEMORY, SCRIPT) };
    let mut guest = Vm::start(&config)?;
    let free = guest.dir().join("free");
    guest.await_text("freed")?;

    // A monitor of its own is free.
    let told = dir.path().join("told");
    let recording = Recording::start(&told, ["--interval", "500ms", "--guest-stats"])?;
    inflate(&mut guest, BALLOONED)?;
    let row = await_row(&told, "web", "balloon told by QEMU", |row| {
        bytes(row, "ballooned_bytes") == Some(BALLOONED * MIB)
            && bytes(row, "guest_available_bytes").is_some_and(|free| free < BALLOONED * MIB)
            && row["guest_is_stale"] == "false"
    })?;
    ensure!(row["balloon_source"] == "qmp", "{row:#?}");
    ensure!(bytes(&row, "configured_bytes") == Some(MEMORY * MIB), "{row:#?}");
    ensure!(polling(&mut guest)? == 2, "the guest is not asked to report");
    // A guest that stands still says nothing of now.
    guest.stop()?;
    await_row(&told, "web", "stale report", |row| row["guest_is_stale"] == "true")?;
    guest.resume()?;
    // Somebody else asks now: what was told is not forgotten.
    let other = UnixStream::connect(&free)?;
    let row = await_row(&told, "web", "balloon seen", |row| row["balloon_source"] == "discards")?;
    near("still told", bytes(&row, "ballooned_bytes").unwrap_or(0), BALLOONED * MIB, 5)?;
    drop(other);
    recording.end()?;
    ensure!(polling(&mut guest)? == 0, "the guest's reports go on");
    let memory = vm(&told, "web")?["memory"].clone();
    ensure!(memory["guest_available_bytes"].is_u64(), "{memory:#}");

    // Both are in use.
    inflate(&mut guest, 0)?;
    let _held = UnixStream::connect(free)?;
    let seen = dir.path().join("seen");
    let recording = Recording::start(&seen, ["--interval", "500ms"])?;
    await_row(&seen, "web", "balloon seen", |row| row["balloon_source"] == "discards")?;
    let run = json(&seen, "run.json")?;
    let why = run["vms"][0]["balloon_unknown"].as_str().unwrap_or_default();
    ensure!(why.contains("in use"), "{why}");
    // What the guest just took from its balloon lies idle, and is reported as free.
    let resident = || stat_field(guest.pid(), 24).map(|pages| pages * 4096);
    await_some("free page reporting", PATIENCE, || {
        Ok((resident()? < (MEMORY - BALLOONED) * MIB).then_some(()))
    })?;
    let row = last(&seen, "web")?.context("no row")?;
    ensure!(bytes(&row, "ballooned_bytes") == Some(0), "free page reporting counts: {row:#?}");
    inflate(&mut guest, BALLOONED)?;
    let row = await_row(&seen, "web", "balloon", |row| {
        bytes(row, "ballooned_bytes").is_some_and(|seen| seen * 100 > 95 * BALLOONED * MIB)
    })?;
    near("seen of the balloon", bytes(&row, "ballooned_bytes").unwrap_or(0), BALLOONED * MIB, 5)?;
    inflate(&mut guest, 0)?;
    await_row(&seen, "web", "deflation", |row| {
        bytes(row, "ballooned_bytes").is_some_and(|seen| seen * 20 < BALLOONED * MIB)
    })?;
    recording.end()?;
    Ok(())
}

/// Two VMs on one file of shared memory.
fn shared_once() -> Result<()> {
    const WALK: u64 = 192;
    let dir = tempfile::tempdir_in("/dev/shm")?;
    let file = dir.path().join("ram").display().to_string();
    let backend =
        format!("memory-backend-file,id=ram,share=on,size={}M,mem-path={file}", WALK + 64);
    let more = ["-object", &backend, "-machine", "memory-backend=ram"];
    let config = |name| Config { more: &more, ..Config::new(name, WALK) };
    let mut one = Vm::start(&config("one"))?;
    one.await_passes(1)?;
    // Only one of them may use it at a time.
    one.stop()?;
    let _two = Vm::start(&Config { stopped: true, ..config("two") })?;
    let folder = dir.path().join("run");
    let recording = Recording::start(&folder, ["--interval", "200ms"])?;
    let sum = held(&folder, "one")? + held(&folder, "two")?;
    let host = await_some("safe host", PATIENCE, || {
        let looked = |row: &Row| !row["memory_total_bytes"].is_empty();
        let last = rows(&folder, "host.csv")?.into_iter().rev().find(looked);
        Ok(last.filter(|row| row["overcommit_state"] == "safe"))
    })?;
    recording.end()?;
    // The guests' memory once, and what each QEMU has beside it.
    println!("{} MiB of two VMs on {WALK} MiB", sum / MIB);
    ensure!(sum > WALK * MIB && sum < (WALK + 150) * MIB, "{} MiB", sum / MIB);
    let of = |column: &str| host[column].parse::<u64>().with_context(|| column.to_owned());
    ensure!(of("configured_bytes")? == 2 * (WALK + 64) * MIB, "{host:#?}");
    ensure!(of("physical_bytes")? <= of("memory_total_bytes")?, "{host:#?}");
    let parts = sum + of("hugetlb_pools_bytes")? + of("zram_bytes")? + of("zswap_bytes")?;
    ensure!(parts <= of("memory_total_bytes")?, "the parts are more than there is: {host:#?}");
    let report = fs::read_to_string(folder.join("summary.json"))?;
    ensure!(report.contains("\"can_grow_bytes\""), "{report}");

    // One that is left out has its part of the host's memory all the same.
    let alone = dir.path().join("alone");
    let recording = Recording::start(&alone, ["--interval", "200ms", "--vm", "one"])?;
    let both = (2 * (WALK + 64) * MIB).to_string();
    await_host(&alone, "both VMs", |row| row["configured_bytes"] == both)?;
    recording.end()?;
    ensure!(rows(&alone, "vms.csv")?.iter().all(|row| row["vm"] == "one"));
    Ok(())
}

/// Waits until the host's last row shows something.
fn await_host(folder: &Path, what: &str, is_it: impl Fn(&Row) -> bool) -> Result<Row> {
    let last = || anyhow::Ok(rows(folder, "host.csv")?.pop());
    let found = await_some(what, PATIENCE, || Ok(last()?.filter(&is_it)));
    found.with_context(|| format!("{:#?}", last().ok().flatten()))
}

/// A VM in huge pages of the pool.
fn huge_pages() -> Result<()> {
    const WALK: u64 = 64;
    let dir = tempfile::tempdir()?;
    let pool = (WALK + 64) / 2;
    let _pool = Setting::new("/proc/sys/vm/nr_hugepages", &pool.to_string())?;
    let backend = format!("memory-backend-memfd,id=ram,hugetlb=on,size={}M", WALK + 64);
    let more = ["-object", &backend, "-machine", "memory-backend=ram"];
    let mut guest = Vm::start(&Config { more: &more, ..Config::new("huge", WALK) })?;
    guest.await_passes(1)?;
    let folder = dir.path().join("run");
    let recording = Recording::start(&folder, ["--interval", "200ms"])?;
    let row = await_row(&folder, "huge", "memory", |row| !row["resident_bytes"].is_empty())?;
    let host = await_host(&folder, "overcommit", |row| {
        !row["physical_bytes"].is_empty() && !row["memory_total_bytes"].is_empty()
    })?;
    recording.end()?;
    // In the pool, and so neither resident nor of the memory that the others share.
    ensure!(bytes(&row, "hugetlb_bytes") >= Some(WALK * MIB), "{row:#?}");
    ensure!(bytes(&row, "resident_bytes") < Some(WALK * MIB), "{row:#?}");
    ensure!(bytes(&host, "hugetlb_pools_bytes") == Some(pool * 2 * MIB), "{host:#?}");
    let total = bytes(&host, "memory_total_bytes").context("no total")?;
    ensure!(bytes(&host, "physical_bytes") == Some(total - pool * 2 * MIB), "{host:#?}");
    ensure!(bytes(&host, "configured_bytes") == Some(0), "{host:#?}");
    Ok(())
}

/// Two VMs of the same content, which the kernel merges.
fn twins() -> Result<()> {
    const WALK: u64 = 96;
    const KSM: &str = "/sys/kernel/mm/ksm";
    let dir = tempfile::tempdir()?;
    let _small_pages = Setting::small_pages()?;
    // Every page of it is the same from the first pass on, but for the first MiB.
    let config = |name| Config { hot: Some((1, 1)), ..Config::new(name, WALK) };
    let mut vms = [Vm::start(&config("one"))?, Vm::start(&config("two"))?];
    for guest in &mut vms {
        guest.await_passes(1)?;
    }
    const RUN: &str = "/sys/kernel/mm/ksm/run";
    // Or it would still count what was merged of processes that are gone.
    let _emptied = Setting::new(RUN, "2")?;
    let _pace = Setting::new("/sys/kernel/mm/ksm/pages_to_scan", "20000")?;
    let _runs = Setting::new(RUN, "1")?;
    let saved = || -> Result<u64> {
        let pages: u64 = fs::read_to_string(format!("{KSM}/pages_sharing"))?.trim().parse()?;
        Ok(pages * 4096)
    };
    await_some("merged pages", PATIENCE, || Ok((saved()? > 2 * (WALK - 8) * MIB).then_some(())))?;
    let folder = dir.path().join("run");
    let recording = Recording::start(&folder, ["--interval", "200ms"])?;
    let sum = held(&folder, "one")? + held(&folder, "two")?;
    let host = await_host(&folder, "KSM", |row| !row["ksm_saved_bytes"].is_empty())?;
    recording.end()?;
    println!("{} MiB held of two VMs on {WALK} MiB, {} MiB saved", sum / MIB, saved()? / MIB);
    // What is merged is in nobody's part twice, and taken off only once.
    ensure!(sum < WALK * MIB + 48 * MIB, "{} MiB", sum / MIB);
    ensure!(bytes(&host, "ksm_saved_bytes") > Some(2 * (WALK - 8) * MIB), "{host:#?}");
    Ok(())
}

fn working_set() -> Result<()> {
    const WALK: u64 = 256;
    let dir = tempfile::tempdir()?;
    let _small_pages = Setting::small_pages()?;
    // Under emulation QEMU touches the guest's memory itself, which clear_refs sees.
    let config = Config { accel: "tcg", ..Config::new("walker", WALK) };
    let mut guest = Vm::start(&config)?;
    guest.await_passes(2)?;
    let measured = dir.path().join("measured");
    let options = ["--interval", "500ms", "--working-set", "clear-refs"];
    let recording = Recording::start(&measured, options)?;
    let row = await_row(&measured, "walker", "working set", |row| {
        row["working_set_source"] == "clear_refs"
    })?;
    recording.end()?;
    let of = |row: &Row, end: &str| {
        bytes(row, &format!("working_set_{end}_bytes")).context("no working set")
    };
    let truth = WALK * MIB + bytes(&row, "overhead_bytes").context("no overhead")?;
    near("working set, at least", of(&row, "lower")?, truth, 10)?;
    near("working set, at most", of(&row, "upper")?, truth, 10)?;
    ensure!(!row["working_set_cost_share"].is_empty(), "{row:#?}");

    let bounded = dir.path().join("bounded");
    let recording = Recording::start(&bounded, ["--interval", "500ms", "--working-set", "bounds"])?;
    // Its memory can be known before it is known how its working set is to be found.
    await_some("the reason", PATIENCE, || {
        let run = json(&bounded, "run.json")?;
        let mut vms = run["vms"].as_array().context("no VMs")?.iter();
        let walker = vms.find(|vm| vm["name"] == "walker").context("no walker")?;
        Ok((walker["working_set_unknown"] == "not asked for").then_some(()))
    })?;
    let row = await_row(&bounded, "walker", "bounds", |row| row["working_set_source"] == "bounds")?;
    recording.end()?;
    let (lower, upper) = (of(&row, "lower")?, of(&row, "upper")?);
    println!("bounds: {lower} to {upper}");
    ensure!(lower == 0 && upper >= WALK * MIB, "{row:#?}");
    Ok(())
}
