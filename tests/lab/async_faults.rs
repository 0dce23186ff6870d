//! Asynchronous page faults: the vCPU goes on while a kernel worker brings the page.

use crate::witness::Histogram;
use crate::{FUNCTION_BACKENDS, Scenario};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::{Path, PathBuf};
use testbed::host::{MemoryCgroup, Setting, counter, read};
use testbed::payload::{self, Guest};
use testbed::qemu::{Config, Vm};
use testbed::record::Recording;
use testbed::results::{figure, json, only_vm};
use testbed::swap::DiskSwap;
use testbed::{PATIENCE, await_some};

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut scenarios: Vec<Scenario> = Vec::new();
    for backend in FUNCTION_BACKENDS {
        let taken = move |dir: &Path| workers_count(dir, backend);
        scenarios.push((format!("async_faults_{backend}"), Box::new(taken)));
    }
    for (name, guest) in [("walker", Guest::Paravirtual), ("linux", Guest::Linux)] {
        if guest != Guest::Linux || payload::named_file(payload::LINUX_INITRAMFS).is_ok() {
            let halt = move |dir: &Path| halts_wait(dir, guest);
            scenarios.push((format!("async_faults_halt_{name}"), Box::new(halt)));
        }
    }
    scenarios.push(("async_faults_not_without_interrupts".to_owned(), Box::new(control)));
    scenarios
}

/// MiB that the guest walks, and may hold.
const WALK: u64 = 64;
const LIMIT: u64 = 48;
/// MiB that it may hold if it is Linux, which has some of its own.
const LINUX_LIMIT: u64 = 90;
/// Majors that make a share worth a look.
const MAJORS: u64 = 1_200;
/// Waits for pages that make their time worth a look, and halts in them. How often a page is there
/// before its guest has come to halting hangs on the disk's speed.
const WAITS: u64 = 80;
const HALTS: u64 = 3;
/// Nanoseconds of the lab's time, which counts instructions, below which a halt waited for
/// nothing.
const AT_ONCE: u64 = 20_000;
/// Majors after which QEMU has its own memory back.
const WARM: u64 = 300;

/// A VM whose memory lies on a slow disk in part.
struct Swapped {
    vm: Vm,
    cgroup: MemoryCgroup,
    _swap: DiskSwap,
    _settings: Vec<Setting>,
}

impl Swapped {
    /// Filled without a limit, then squeezed while it stands still.
    fn start(guest: Guest) -> Result<Self> {
        let settings = settings()?;
        let swap = DiskSwap::new(crate::disk())?;
        let cgroup = MemoryCgroup::new("lab")?;
        let config = Config { cgroup: Some(&cgroup), guest, ..Config::new("swapped", WALK) };
        let mut vm = Vm::start(&config)?;
        vm.await_boot()?;
        vm.stop()?;
        let limit = if guest == Guest::Linux { LINUX_LIMIT } else { LIMIT };
        // The kernel says that it found too little when it did not find all of it.
        let _ = cgroup.reclaim((cgroup.charged()? >> 20).saturating_sub(limit));
        cgroup.limit(limit)?;
        let before = majors(&cgroup)?;
        let mut swapped = Self { vm, cgroup, _swap: swap, _settings: settings };
        swapped.run_until("major faults", |cgroup| Ok(majors(cgroup)? >= before + WARM))?;
        Ok(swapped)
    }

    /// Lets it run until enough of something has come.
    fn run_until(
        &mut self,
        what: &str,
        is_enough: impl Fn(&MemoryCgroup) -> Result<bool>,
    ) -> Result<()> {
        self.vm.resume()?;
        let come = await_some(what, PATIENCE, || Ok(is_enough(&self.cgroup)?.then_some(())));
        self.vm.explain(come)?;
        self.vm.stop()
    }
}

fn majors(cgroup: &MemoryCgroup) -> Result<u64> {
    cgroup.stat("pgmajfault")
}

/// What makes the kernel read swap while others wait.
///
/// 6.1 waits for a page that it reads alone, also for one that does not want to
/// (`swap_vma_readahead`, mm/swap_state.c): there it reads the next in the area too.
fn settings() -> Result<Vec<Setting>> {
    let small_pages = Setting::small_pages()?;
    if read("/proc/sys/kernel/osrelease")?.starts_with("6.1.") {
        let by_area = Setting::new("/sys/block/vda/queue/rotational", "0")?;
        return Ok(vec![small_pages, by_area, Setting::new("/proc/sys/vm/page-cluster", "3")?]);
    }
    Ok(vec![small_pages, Setting::no_readahead()?])
}

/// What the tool and the witnesses say of a while.
struct Seen {
    folder: PathBuf,
    summary: Value,
    /// `kvm_async_pf_not_present` and `…_ready`, by ftrace.
    begun: u64,
    ended: u64,
    /// Majors by the cgroup, and by QEMU's own stat.
    by_memcg: u64,
    by_qemu: u64,
    /// Pages that the kernel read from swap.
    read: u64,
    /// Whether a read brings more than the page that is waited for.
    reads_ahead: bool,
}

/// What a guest is recorded until.
#[derive(Clone, Copy)]
struct Until {
    majors: u64,
    /// Asynchronous page faults. How many of the majors are some differs from run to run.
    waits: u64,
}

/// Records a guest until it has had enough.
fn watch(dir: &Path, guest: Guest, options: &[&str], until: Until) -> Result<Seen> {
    let mut swapped = Swapped::start(guest)?;
    let recording = Recording::start(&dir.join("run"), options)?;
    let begun = Histogram::start("kvm/kvm_async_pf_not_present", "token")?;
    let ended = Histogram::start("kvm/kvm_async_pf_ready", "token")?;
    let qemu_before = swapped.vm.faults()?[1];
    let before = majors(&swapped.cgroup)?;
    let read_before = counter(Path::new("/proc/vmstat"), "pswpin")?;
    swapped.run_until("majors and waits for pages", |cgroup| {
        Ok(majors(cgroup)? >= before + until.majors && begun.total()? >= until.waits)
    })?;
    let folder = recording.end()?;
    Ok(Seen {
        summary: only_vm(&folder)?,
        folder,
        begun: begun.total()?,
        ended: ended.total()?,
        by_memcg: majors(&swapped.cgroup)? - before,
        by_qemu: swapped.vm.faults()?[1] - qemu_before,
        read: counter(Path::new("/proc/vmstat"), "pswpin")? - read_before,
        reads_ahead: read("/proc/sys/vm/page-cluster")?.trim() != "0",
    })
}

impl Seen {
    fn apf(&self) -> u64 {
        figure(&self.summary, "apf", "count").unwrap_or(0)
    }

    /// Pages read from the disk, whoever began to read them, are as many as the kernel says, less
    /// those that were read ahead of anybody's need.
    fn sources_agree(&self) -> Result<()> {
        let swapins = &self.summary["swapins"];
        let from_disk =
            swapins["from_device"][crate::disk().trim_start_matches("/dev/")].as_u64().unwrap_or(0);
        println!("from the disk {from_disk} of {} read; {swapins}", self.read);
        let most = self.read + 3.max(self.read / 100);
        ensure!(from_disk > 0 && from_disk <= most, "{swapins}, read {}", self.read);
        let least = self.read - 3.max(self.read / 100);
        ensure!(self.reads_ahead || from_disk >= least, "{swapins}, read {}", self.read);
        Ok(())
    }

    fn outside(&self) -> Result<u64> {
        self.summary["taken_by"]["outside"].as_u64().context("nobody took any")
    }
}

fn workers_count(dir: &Path, backend: &str) -> Result<()> {
    let until = Until { majors: MAJORS, waits: MAJORS / 3 };
    let seen = watch(dir, Guest::Interruptible, &["--backend", backend], until)?;
    let (apf, outside) = (seen.apf(), seen.outside()?);
    let majors = figure(&seen.summary, "fault.major", "count")?;
    let Seen { begun, ended, by_memcg, by_qemu, .. } = seen;
    println!("apf: counted {apf}, ftrace {begun} begun, {ended} ready");
    println!(
        "majors: counted {majors}, {outside} faults from outside; memcg {by_memcg}, QEMU {by_qemu}"
    );
    // The others are QEMU's own.
    ensure!(apf > MAJORS / 4, "{apf} asynchronous page faults are too few");
    ensure!(apf.abs_diff(ended) <= 3.max(ended / 100), "apf {apf}, ftrace {ended}");
    ensure!(outside.abs_diff(begun) <= 3.max(begun / 100), "workers {outside}, ftrace {begun}");
    // The vCPU's attempt starts the read, which memcg counts, and a worker ends it. Those
    // who only wait for a page that is on its way are not in memcg's count: with its
    // neighbours read too, many are.
    ensure!(
        (by_memcg * 100 >= outside * 99 || seen.reads_ahead)
            && by_memcg * 100 <= (outside + by_qemu) * 101,
        "memcg counts {by_memcg}, workers {outside}, QEMU {by_qemu}"
    );
    seen.sources_agree()?;
    // The guest cannot be told, so it stands still meanwhile: that is no work of KVM's.
    let time = &seen.summary["stall_time"];
    let part = |name: &str| time[name].as_u64().with_context(|| format!("no {name} in {time}"));
    let (all, kvm, background) = (part("total_ns")?, part("kvm_ns")?, part("background_ns")?);
    println!("of {all} ns of waits {background} in the background, {kvm} KVM's own");
    // With its neighbours read too, the vCPU waits for most pages in faults of its own.
    let is_most = kvm * 5 < all && background * 2 > all;
    ensure!(background > 0 && (is_most || seen.reads_ahead), "{time}");
    // Each is a worker's or QEMU's own, which has some of its memory on swap too and needs it to
    // answer its monitor. What a worker finds read already is a minor one.
    let slack = 3.max(majors / 100);
    ensure!(
        majors + slack >= by_qemu && majors <= outside + by_qemu + slack,
        "{majors} majors, {outside} faults by workers, {by_qemu} majors of QEMU's own"
    );
    Ok(())
}

/// A guest that sleeps until its page is there halts, and is not idle.
fn halts_wait(dir: &Path, guest: Guest) -> Result<()> {
    let seen = watch(dir, guest, &[], Until { majors: 0, waits: WAITS })?;
    let run = json(&seen.folder, "run.json")?;
    let vcpu = &run["vms"][0]["vcpu_times"][0];
    let number = |key: &str| vcpu[key].as_u64().with_context(|| format!("no {key} in {vcpu}"));
    let (halted, idle) = (number("stall_halted_ns")?, number("idle_ns")?);
    let halts = figure(&seen.summary, "exit.hlt", "count")?;
    let apf = seen.apf();
    println!("{apf} asynchronous page faults, {halts} halts; {vcpu}; {}", seen.summary["stall"]);
    ensure!(apf >= WAITS * 9 / 10 && halts > HALTS, "{halts} halts in {apf} waits are too few");
    // A halt that finds its page there is idle, and over at once.
    let longest = if idle == 0 { 0 } else { figure(&seen.summary, "idle", "max_ns")? };
    ensure!(longest < AT_ONCE || idle * 10 < halted, "idle for {longest} ns, {idle} ns in all");
    ensure!(halted > AT_ONCE, "waited for pages {halted} ns");
    let waited = seen.summary["stall"]["waited_ns"].as_u64().context("no stall")?;
    ensure!(waited >= halted, "{waited} ns waited, {halted} ns of it in halts");
    Ok(())
}

fn control(dir: &Path) -> Result<()> {
    // memcg and the fault's own rule differ by a few.
    let seen = watch(dir, Guest::Walker, &[], Until { majors: MAJORS * 3 / 10, waits: 0 })?;
    let (apf, outside) = (seen.apf(), seen.outside()?);
    ensure!(seen.begun == 0 && apf == 0, "{apf} asynchronous page faults");
    let majors = figure(&seen.summary, "fault.major", "count")?;
    println!("no asynchronous page faults in {majors} majors, {outside} from outside");
    let are_enough = majors >= MAJORS / 10;
    ensure!(are_enough && outside * 10 <= majors, "{outside} of {majors} from outside");
    Ok(())
}
