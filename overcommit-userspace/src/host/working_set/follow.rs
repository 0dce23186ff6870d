//! Measures window after window, and keeps the price of that low.

use crate::host::working_set::damon::{Damon, Followed};
use crate::host::working_set::mglru::{Aged, Mglru};
use crate::host::working_set::{
    COST_MAX, Capabilities, Wanted, Windows, choose, clear_refs, damon,
};
use crate::kernel::{self, clock};
use crate::vm::maps;
use crate::vm::memory::ram;
use crate::vm::regions::AddressRange;
use anyhow::{Context, Result};
use overcommit_recording::model::memory::{Range, Source, WorkingSet};
use overcommit_recording::model::vm::{Vm, VmId};
use procfs::process::Process;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Time in which memory must be touched, at the least.
const WINDOW: Duration = Duration::from_secs(1);

/// A VM to be measured.
#[derive(Clone, Debug)]
pub struct Target {
    /// Who.
    pub vm: Vm,
    /// Whether its guest runs on page tables of its own (EPT, NPT).
    pub has_page_tables: bool,
    /// Path of its memory cgroup, if that is its own.
    pub cgroup: Option<String>,
}

/// What a round gave: a working set, or why there is none. Neither is there before
/// there were enough windows.
pub type Measured = BTreeMap<VmId, Result<WorkingSet, String>>;

/// Measures the working sets of VMs.
pub struct Follower {
    proc: PathBuf,
    sys: PathBuf,
    wanted: Wanted,
    can: Capabilities,
    damon: Option<Damon>,
    mglru: Mglru,
    windows: BTreeMap<VmId, Windows>,
    /// CPU time of the kernel's threads at the last look, in ticks, and when that was.
    spent: BTreeMap<VmId, (u64, Instant)>,
}

/// One that waits to be looked at.
enum Waiting {
    Aged(String, Aged),
    Cleared,
}

impl Follower {
    /// Looks at what this host can measure with.
    pub fn new(
        proc: impl Into<PathBuf>,
        sys: impl Into<PathBuf>,
        wanted: Wanted,
        mglru_sees_guests: bool,
    ) -> Self {
        let (proc, sys) = (proc.into(), sys.into());
        let can = Capabilities::probe(&sys, wanted, mglru_sees_guests);
        let mglru = Mglru::new(&sys, kernel::page_size());
        Self {
            proc,
            sys,
            wanted,
            can,
            damon: None,
            mglru,
            windows: BTreeMap::new(),
            spent: BTreeMap::new(),
        }
    }

    /// Measures one window of each VM. `rest` waits, and tells whether to go on.
    pub fn round(&mut self, targets: &[Target], rest: impl Fn(Duration) -> bool) -> Measured {
        let (start, cpu) = (Instant::now(), clock::of_thread());
        self.windows.retain(|id, _| targets.iter().any(|target| target.vm.id == *id));
        let mut measured = Measured::new();
        let mut by_damon = Vec::new();
        let mut waiting = Vec::new();
        for target in targets {
            let vm = &target.vm;
            let begun = choose(self.wanted, &self.can, target).and_then(|source| {
                if source == Source::Damon {
                    by_damon.push((vm.id, self.ram(vm.id)?));
                    return Ok(());
                }
                let begun = self.begin(source, target);
                waiting.push((vm.id, begun.map_err(|error| format!("{error:#}"))?));
                Ok(())
            });
            if let Err(why) = begun {
                measured.insert(vm.id, Err(why));
            }
        }
        let damon_window = self.damon_window(&by_damon);
        let window = if waiting.is_empty() { damon_window } else { damon_window.max(WINDOW) };
        if !rest(window.max(WINDOW)) {
            return Measured::new();
        }
        let window_s = start.elapsed().as_secs_f64();
        let mut found = BTreeMap::new();
        for (id, begun) in &waiting {
            match self.end(*id, begun) {
                Ok((source, range)) => {
                    found.insert(*id, (source, range));
                }
                Err(error) => {
                    measured.insert(*id, Err(format!("{error:#}")));
                }
            }
        }
        let used = clock::of_thread().saturating_sub(cpu).as_secs_f64();
        // Shared by those that this thread has looked at.
        let pace = (used / COST_MAX - start.elapsed().as_secs_f64()).max(0.0);
        let share = used / (start.elapsed().as_secs_f64() + pace) / found.len().max(1) as f64;
        for (id, (source, range)) in found {
            if let Some(range) = self.windows.entry(id).or_default().advance(range) {
                measured.insert(id, Ok(WorkingSet { range, source, window_s, cost: share }));
            }
        }
        self.look_at_damon(&mut measured);
        rest(Duration::from_secs_f64(pace));
        measured
    }

    fn ram(&self, id: VmId) -> Result<Vec<AddressRange>, String> {
        let process = Process::new_with_root(self.proc.join(id.pid.to_string()));
        let maps = process.and_then(|process| maps::read(&process));
        let maps = maps.map_err(|error| format!("cannot read its maps: {error}"))?;
        let ram = ram(maps.iter());
        if ram.is_empty() { Err("its memory is not known yet".to_owned()) } else { Ok(ram) }
    }

    fn begin(&self, source: Source, target: &Target) -> Result<Waiting> {
        if source == Source::ClearRefs {
            clear_refs::clear(&self.proc, target.vm.id.pid)?;
            return Ok(Waiting::Cleared);
        }
        let cgroup = target.cgroup.clone().context("its memory cgroup is not its own")?;
        let aged = self.mglru.age(&cgroup)?;
        Ok(Waiting::Aged(cgroup, aged))
    }

    fn end(&self, id: VmId, begun: &Waiting) -> Result<(Source, Range)> {
        let (source, touched) = match begun {
            Waiting::Cleared => (Source::ClearRefs, clear_refs::look(&self.proc, id.pid)?),
            Waiting::Aged(cgroup, aged) => (Source::Mglru, self.mglru.touched(cgroup, aged)?),
        };
        Ok((source, Range { lower: touched, upper: touched }))
    }

    /// Has DAMON follow these VMs; gives the time of an aggregation.
    fn damon_window(&mut self, vms: &[Followed]) -> Duration {
        if vms.is_empty() {
            self.damon = None;
            return Duration::ZERO;
        }
        match self.follow_by_damon(vms) {
            Ok(window) => window,
            Err(error) => {
                // The next round takes the next best.
                self.can.damon = Err(format!("{error:#}"));
                self.damon = None;
                Duration::ZERO
            }
        }
    }

    fn follow_by_damon(&mut self, vms: &[Followed]) -> Result<Duration> {
        let mut damon = match self.damon.take() {
            Some(damon) => damon,
            None => Damon::take(&self.sys, self.wanted == Wanted::Damon)?,
        };
        let costs = self.costs(&damon);
        let cost: f64 = costs.values().sum();
        // Twice as seldom until it is cheap enough.
        let is_dear = cost > COST_MAX && damon.sample_us() < damon::SAMPLE_US_MAX;
        if is_dear || !damon.follows(vms) {
            let factor = if is_dear { (cost / COST_MAX).ceil() as u64 } else { 1 };
            let sample_us = (damon.sample_us() * factor).min(damon::SAMPLE_US_MAX);
            damon.start(vms, sample_us)?;
            let now = Instant::now();
            let ticks = damon.threads().into_iter().map(|(id, pid)| (id, (self.ticks(pid), now)));
            self.spent = ticks.collect();
        }
        let window = Duration::from_secs_f64(damon.window_s());
        self.damon = Some(damon);
        Ok(window)
    }

    fn look_at_damon(&mut self, measured: &mut Measured) {
        let Some(damon) = self.damon.as_mut() else { return };
        let (ranges, window_s) = (damon.look(), damon.window_s());
        let costs = self.damon.as_ref().map(|damon| self.costs(damon)).unwrap_or_default();
        for (id, range) in ranges {
            let cost = costs.get(&id).copied().unwrap_or(0.0);
            measured.insert(id, Ok(WorkingSet { range, source: Source::Damon, window_s, cost }));
        }
    }

    /// CPU time ÷ time of the kernel's threads since they were started.
    fn costs(&self, damon: &Damon) -> BTreeMap<VmId, f64> {
        let costs = damon.threads().into_iter().filter_map(|(id, pid)| {
            let (before, at) = self.spent.get(&id)?;
            let used = self.ticks(pid).saturating_sub(*before) * kernel::TICK_NS;
            Some((id, used as f64 / 1e9 / at.elapsed().as_secs_f64().max(1e-9)))
        });
        costs.collect()
    }

    fn ticks(&self, pid: i32) -> u64 {
        let process = Process::new_with_root(self.proc.join(pid.to_string()));
        process.and_then(|process| process.stat()).map_or(0, |stat| stat.utime + stat.stime)
    }
}
