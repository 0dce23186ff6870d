//! DAMON, which looks at one page of each region of a process's memory every sampling
//! interval, and splits and joins regions by what it finds (mm/damon/core.c). Its
//! interface is one folder for the whole host, /sys/kernel/mm/damon/admin.

use crate::host::working_set::WINDOWS;
use crate::host::working_set::guard::Guard;
use crate::vm::regions::{AddressRange, normalized, size};
use anyhow::{Context, Result, ensure};
use nix::fcntl::{Flock, FlockArg};
use overcommit_recording::model::memory::Range;
use overcommit_recording::model::vm::VmId;
use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Operations that follow given ranges of a process's memory.
const FIXED_RANGES: &str = "fvaddr";
/// Regions of a VM.
const REGIONS: (u32, u32) = (10, 100);
/// Samples in an aggregation.
const SAMPLES: u64 = 20;
/// Sampling interval that is tried first, in microseconds.
pub const SAMPLE_US: u64 = 10_000;
/// Never longer than this: what is seen less often is not told from what is not used.
pub const SAMPLE_US_MAX: u64 = 500_000;
/// Looks after which the regions have been split and joined often enough to follow what
/// is touched.
const SETTLING: usize = 6;
/// Interval of updating the list of mappings, in microseconds: an odd figure, by which
/// what an overcommit that was killed has left is known.
const UPDATE_US: u64 = 60_000_007;

/// The switch of the kernel's own use.
const STAT: &str = "module/damon_stat/parameters/enabled";
/// How long another overcommit may take to put it back.
const PATIENCE: Duration = Duration::from_secs(1);

/// DAMON in our hands. Dropping it stops it.
pub struct Damon {
    kdamonds: PathBuf,
    /// Held for as long as it is ours; the kernel lets go of it in any case.
    _lock: Flock<File>,
    /// Put back at the end, if it was changed.
    stat: Option<PathBuf>,
    running: Vec<Followed>,
    /// Looks since the start.
    looked: usize,
    looks: BTreeMap<VmId, VecDeque<Look>>,
    /// In microseconds.
    sample_us: u64,
    /// The last to go: it may take the lock then.
    _guard: Guard,
}

/// A VM, and where it has its guest's memory.
pub type Followed = (VmId, Vec<AddressRange>);

/// What was touched in an aggregation.
#[derive(Clone, Debug, Default)]
struct Look {
    /// Regions of which any sampled page was.
    touched: Vec<AddressRange>,
    /// Bytes of them, each region by the part of its samples that were touched: that is what
    /// an even sample of its pages says of the region.
    sampled: u64,
}

/// Held for as long as it is ours. A guard may still put it back.
fn locked(admin: &Path) -> Result<Flock<File>> {
    let (start, mut file) = (Instant::now(), File::open(admin)?);
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((again, _)) if start.elapsed() < PATIENCE => file = again,
            Err((_, error)) => return Err(error).context("another overcommit uses DAMON"),
        }
        std::thread::sleep(PATIENCE / 10);
    }
}

/// Why it cannot be used.
///
/// # Errors
/// The kernel has none for virtual addresses, or somebody uses it.
pub fn check(sys: &Path, may_stop_stat: bool) -> Result<()> {
    let admin = sys.join("kernel/mm/damon/admin");
    ensure!(admin.exists(), "this kernel has no DAMON (CONFIG_DAMON_SYSFS)");
    // Told as soon as somebody has a worker.
    if let Ok(can) = read(&admin.join("kdamonds/0/contexts/0/avail_operations")) {
        let follows = can.lines().any(|operations| operations == FIXED_RANGES);
        ensure!(follows, "this kernel's DAMON cannot follow processes (CONFIG_DAMON_VADDR)");
    }
    let stat = enabled(sys);
    ensure!(
        may_stop_stat || stat.is_none(),
        "the kernel's damon_stat uses DAMON; --working-set damon stops it meanwhile"
    );
    let count = read(&admin.join("kdamonds/nr_kdamonds"))?;
    ensure!(
        count == "0" || is_ours(&admin.join("kdamonds")),
        "somebody else uses DAMON: PID {}",
        pid(&admin)
    );
    Ok(())
}

/// Of the worker.
fn pid(admin: &Path) -> String {
    read(&admin.join("kdamonds/0/pid")).unwrap_or_else(|_| "not known".to_owned())
}

/// The switch of the kernel's own use, if that is on.
fn enabled(sys: &Path) -> Option<PathBuf> {
    let switch = sys.join(STAT);
    (read(&switch).ok()? == "Y").then_some(switch)
}

fn is_ours(kdamonds: &Path) -> bool {
    let update = kdamonds.join("0/contexts/0/monitoring_attrs/intervals/update_us");
    read(&update).is_ok_and(|text| text == UPDATE_US.to_string())
}

impl Damon {
    /// Takes it.
    ///
    /// # Errors
    /// See [`check`]; or another overcommit has it.
    pub fn take(sys: &Path, may_stop_stat: bool) -> Result<Self> {
        check(sys, may_stop_stat)?;
        let admin = sys.join("kernel/mm/damon/admin");
        let lock = locked(&admin)?;
        let stat = enabled(sys);
        let guard = Guard::start(stat.is_some())?;
        let mut damon = Self {
            kdamonds: admin.join("kdamonds"),
            _lock: lock,
            stat: None,
            running: Vec::new(),
            looked: 0,
            looks: BTreeMap::new(),
            sample_us: SAMPLE_US,
            _guard: guard,
        };
        if let Some(switch) = stat {
            write(&switch, "N")?;
            damon.stat = Some(switch);
        }
        damon.stop()?;
        Ok(damon)
    }

    /// Whether it follows just these VMs, with about all of their memory: a small mapping that
    /// comes beside a guest's is not worth beginning anew.
    pub fn follows(&self, vms: &[Followed]) -> bool {
        let is_about = |now: &[AddressRange], then: &[AddressRange]| {
            let (now, then) = (size(now), size(then));
            now.abs_diff(then) <= then / 100
        };
        self.running.len() == vms.len()
            && self
                .running
                .iter()
                .zip(vms)
                .all(|((id, then), (other, now))| id == other && is_about(now, then))
    }

    /// Follows these VMs, sampling at that interval, in microseconds.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn start(&mut self, vms: &[Followed], sample_us: u64) -> Result<()> {
        self.stop()?;
        self.sample_us = sample_us;
        write(&self.kdamonds.join("nr_kdamonds"), &vms.len().to_string())?;
        for (number, vm) in vms.iter().enumerate() {
            let kdamond = self.kdamond(number);
            self.configure(&kdamond, vm)?;
            write(&kdamond.join("state"), "on").context("DAMON does not start")?;
            self.running.push(vm.clone());
        }
        Ok(())
    }

    fn kdamond(&self, number: usize) -> PathBuf {
        self.kdamonds.join(number.to_string())
    }

    fn configure(&self, kdamond: &Path, (id, memory): &Followed) -> Result<()> {
        let context = kdamond.join("contexts/0");
        let target = context.join("targets/0");
        let scheme = context.join("schemes/0");
        let attributes = context.join("monitoring_attrs");
        let (sample_us, most) = (self.sample_us, u64::from(u32::MAX));
        write(&kdamond.join("contexts/nr_contexts"), "1")?;
        // With `vaddr` the kernel puts all that is mapped in place of the regions at each update
        // (`damon_va_update`, mm/damon/vaddr.c).
        write(&context.join("operations"), FIXED_RANGES)
            .context("not for fixed virtual addresses")?;
        for (file, value) in [
            (attributes.join("intervals/sample_us"), sample_us),
            (attributes.join("intervals/aggr_us"), sample_us * SAMPLES),
            (attributes.join("intervals/update_us"), UPDATE_US),
            (attributes.join("nr_regions/min"), REGIONS.0.into()),
            (attributes.join("nr_regions/max"), REGIONS.1.into()),
            (context.join("targets/nr_targets"), 1),
            (target.join("pid_target"), id.pid.cast_unsigned().into()),
            (target.join("regions/nr_regions"), memory.len() as u64),
            (context.join("schemes/nr_schemes"), 1),
            (scheme.join("access_pattern/sz/min"), 0),
            (scheme.join("access_pattern/sz/max"), u64::MAX),
            // Touched in an aggregation, however often.
            (scheme.join("access_pattern/nr_accesses/min"), 1),
            (scheme.join("access_pattern/nr_accesses/max"), most),
            (scheme.join("access_pattern/age/min"), 0),
            (scheme.join("access_pattern/age/max"), most),
        ] {
            write(&file, &value.to_string())?;
        }
        for (number, (start, end)) in memory.iter().enumerate() {
            let region = target.join(format!("regions/{number}"));
            write(&region.join("start"), &start.to_string())?;
            write(&region.join("end"), &end.to_string())?;
        }
        write(&scheme.join("action"), "stat")
    }

    /// Looks at each VM once: the least that was touched in one of the last looks, by its
    /// samples, and the whole of all regions that were touched in any.
    ///
    /// A VM is left out before there were enough looks, or when it is gone.
    pub fn look(&mut self) -> BTreeMap<VmId, Range> {
        let mut ranges = BTreeMap::new();
        self.looked += 1;
        if self.looked <= SETTLING {
            return ranges;
        }
        for (number, (id, _)) in self.running.iter().enumerate() {
            let Ok(touched) = self.touched(number) else { continue };
            let looks = self.looks.entry(*id).or_default();
            looks.push_back(touched);
            if looks.len() > WINDOWS {
                looks.pop_front();
            }
            if looks.len() == WINDOWS {
                ranges.insert(*id, over(looks));
            }
        }
        ranges
    }

    fn touched(&self, number: usize) -> Result<Look> {
        let kdamond = self.kdamond(number);
        // Waits for the end of an aggregation.
        write(&kdamond.join("state"), "update_schemes_tried_regions")?;
        let tried = kdamond.join("contexts/0/schemes/0/tried_regions");
        let mut look = Look::default();
        for entry in fs::read_dir(&tried)?.flatten() {
            let region = entry.path();
            if region.is_dir() {
                let number = |name| Ok::<u64, anyhow::Error>(read(&region.join(name))?.parse()?);
                look.add((number("start")?, number("end")?), number("nr_accesses")?);
            }
        }
        look.touched = normalized(look.touched);
        Ok(look)
    }

    /// The kernel threads that do the work.
    pub fn threads(&self) -> Vec<(VmId, i32)> {
        let pid = |number| read(&self.kdamond(number).join("pid")).ok()?.parse().ok();
        let threads = self.running.iter().enumerate();
        threads.filter_map(|(number, (id, _))| Some((*id, pid(number)?))).collect()
    }

    /// Sampling interval, in microseconds.
    pub fn sample_us(&self) -> u64 {
        self.sample_us
    }

    /// Time of an aggregation, in seconds.
    pub fn window_s(&self) -> f64 {
        (self.sample_us * SAMPLES) as f64 / 1e6
    }

    fn stop(&mut self) -> Result<()> {
        self.looked = 0;
        self.looks.clear();
        self.running.clear();
        stop(&self.kdamonds)
    }
}

fn stop(kdamonds: &Path) -> Result<()> {
    let count: usize = read(&kdamonds.join("nr_kdamonds"))?.parse()?;
    for number in 0..count {
        // Off already if its process is gone.
        let _ = write(&kdamonds.join(number.to_string()).join("state"), "off");
    }
    write(&kdamonds.join("nr_kdamonds"), "0")
}

/// Ends what a recorder that was killed has left, once no other one uses DAMON; `stat` if it turned
/// the kernel's own use off.
///
/// # Errors
/// The kernel refuses.
pub fn put_back(sys: &Path, stat: bool) -> Result<()> {
    let admin = sys.join("kernel/mm/damon/admin");
    let lock = Flock::lock(File::open(&admin)?, FlockArg::LockExclusive);
    let _lock = lock.map_err(|(_, error)| error).context("cannot lock DAMON")?;
    let kdamonds = admin.join("kdamonds");
    if is_ours(&kdamonds) {
        stop(&kdamonds)?;
    }
    if stat { write(&sys.join(STAT), "Y") } else { Ok(()) }
}

impl Drop for Damon {
    fn drop(&mut self) {
        let stopped = self.stop();
        let restored = self.stat.as_ref().map_or(Ok(()), |switch| write(switch, "Y"));
        if let Err(error) = stopped.and(restored) {
            crate::terminal::say(&format!("overcommit: cannot put DAMON back: {error:#}"));
        }
    }
}

impl Look {
    /// Adds a region of which that many samples were touched.
    fn add(&mut self, (start, end): AddressRange, accesses: u64) {
        self.sampled += (end - start) * accesses.min(SAMPLES) / SAMPLES;
        self.touched.push((start, end));
    }
}

fn over(looks: &VecDeque<Look>) -> Range {
    let any = looks.iter().flat_map(|look| &look.touched).copied();
    let upper = size(&normalized(any.collect()));
    let lower = looks.iter().map(|look| look.sampled).min().unwrap_or(0);
    Range { lower: lower.min(upper), upper }
}

fn read(path: &Path) -> Result<String> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text.trim().to_owned())
}

fn write(path: &Path, value: &str) -> Result<()> {
    // Of the kernel's own: nothing is made.
    let written = OpenOptions::new().write(true).open(path);
    let written = written.and_then(|mut file| file.write_all(value.as_bytes()));
    written.with_context(|| format!("cannot write {value} to {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(regions: &[(AddressRange, u64)]) -> Look {
        let mut look = Look::default();
        regions.iter().for_each(|(region, accesses)| look.add(*region, *accesses));
        look
    }

    #[test]
    fn the_least_of_any_look_below_and_all_that_was_touched_above() {
        let looks = [
            look(&[((0, 10), SAMPLES), ((20, 30), SAMPLES)]),
            look(&[((5, 25), SAMPLES / 2)]),
            look(&[((0, 30), SAMPLES)]),
        ];
        assert_eq!(over(&looks.into()), Range { lower: 10, upper: 30 });
    }

    /// Regions are larger than what is hot in them: one of a VM of 64 GiB is 655 MiB.
    #[test]
    fn a_region_that_is_hot_here_and_there_counts_for_its_part() {
        let mebibyte = 1 << 20;
        let sparse = look(&[((0, 100 * mebibyte), 5)]);
        let looks = VecDeque::from(vec![sparse; WINDOWS]);
        assert_eq!(over(&looks), Range { lower: 25 * mebibyte, upper: 100 * mebibyte });
    }

    #[test]
    fn another_user_of_it_is_left_alone() {
        let sys = tempfile::tempdir().unwrap();
        let refused = |may| format!("{:#}", check(sys.path(), may).unwrap_err());
        assert!(refused(false).contains("no DAMON"));
        let kdamonds = sys.path().join("kernel/mm/damon/admin/kdamonds");
        fs::create_dir_all(&kdamonds).unwrap();
        fs::write(kdamonds.join("nr_kdamonds"), "1\n").unwrap();
        assert!(refused(true).contains("somebody else"));
        let intervals = kdamonds.join("0/contexts/0/monitoring_attrs/intervals");
        fs::create_dir_all(&intervals).unwrap();
        fs::write(intervals.join("update_us"), format!("{UPDATE_US}\n")).unwrap();
        check(sys.path(), false).unwrap();
        let stat = sys.path().join("module/damon_stat/parameters");
        fs::create_dir_all(&stat).unwrap();
        fs::write(stat.join("enabled"), "Y\n").unwrap();
        assert!(refused(false).contains("damon_stat"));
        check(sys.path(), true).unwrap();
    }
}
