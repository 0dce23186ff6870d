//! Attached probes, and what they say interval by interval. What becomes of it is the business
//! of whoever asks.

pub mod boundary;
mod cost;
pub mod load;
pub mod run;
pub mod wait;
mod want;

pub use want::Want;

use crate::host::Host;
use crate::host::inventory::swap_areas;
use crate::host::oom::OomKills;
use crate::host::survey::Options as HostOptions;
use crate::kernel::{self, clock};
use crate::probes::decide::Decision;
use crate::probes::log::ProgramLog;
use crate::probes::raw::Group;
use crate::probes::rings::{Events, SlowFaults};
use crate::probes::stacks::Stacks;
use crate::probes::{Kernel, Probes, Rings};
use crate::sampler::Sampler;
use crate::sampler::roster::Roster;
use crate::session::cost::CostMeter;
use anyhow::Result;
use overcommit_ebpf::layout::{self, FaultBacking, LifecycleKind, Metric};
use overcommit_recording::model::breakdown::Breakdown;
use overcommit_recording::model::clock::Clocks;
use overcommit_recording::model::coverage::is_part_seen;
use overcommit_recording::model::evictions::Aggressor;
use overcommit_recording::model::interval::{Interval, Place};
use overcommit_recording::model::memory::LeastHeadroom;
use overcommit_recording::model::name::escape;
use overcommit_recording::model::run::{
    BackendChoice, EvictionSight, HostState, NotCounted, Options, Run, RunClocks, RunVm,
};
use overcommit_recording::model::slow_fault::SlowFault;
use overcommit_recording::model::state::StateTimes;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Attached probes, whose intervals have not begun yet.
pub struct Session {
    sampler: Sampler,
    run: Run,
    slow: SlowFaults,
    stacks: Stacks,
    events: Events,
    log: Option<ProgramLog>,
    /// `None` where nobody wants to know what it costs.
    cost: Option<CostMeter>,
}

impl Session {
    /// Attaches the backend and takes up the VMs that run.
    ///
    /// # Errors
    /// The kernel refuses something, or /proc cannot be read.
    pub fn attach(kernel: &Kernel, decision: Decision, roster: Roster, want: Want) -> Result<Self> {
        let sizes = want.sizes(decision.backend)?;
        let (probes, Rings { events, slow, stacks, log }) =
            Probes::attach(kernel, decision.backend, &want.without, sizes)?;
        let now = clock::now()?;
        let sampler = Sampler::new(probes, roster, &now);
        let cost = want.cost.then(|| CostMeter::start(&sampler));
        let mut session = Self { sampler, run: run(&decision)?, slow, stacks, events, log, cost };
        session.sampler.rescan(&mut session.run.vms, &now)?;
        Ok(session)
    }

    /// Where VMs that start and end are announced.
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// Takes up what has been announced.
    ///
    /// # Errors
    /// The clocks cannot be read, or there is no memory for histograms.
    pub fn follow_events(&mut self) -> Result<()> {
        if let Some(log) = &mut self.log {
            log.print();
        }
        let now = clock::now()?;
        for event in &mut self.events {
            match event.kind {
                LifecycleKind::Started => self.sampler.started(event, &mut self.run.vms, &now),
                LifecycleKind::NoSlot => self.sampler.missed(event.pid),
                // The drain sees it in the slot.
                LifecycleKind::Ended | LifecycleKind::FewChunks => {}
            }
        }
        self.sampler.make_room()
    }

    /// Looks for what was not announced.
    ///
    /// # Errors
    /// See [`Sampler::rescan`].
    pub fn rescan(&mut self) -> Result<()> {
        self.cost.iter_mut().for_each(CostMeter::tick);
        self.sampler.rescan(&mut self.run.vms, &clock::now()?)
    }

    /// Forgets what was counted so far; the first interval begins.
    ///
    /// # Errors
    /// The host cannot be followed, or the clocks not be read.
    pub fn begin(mut self, options: Options, host: &HostOptions) -> Result<RunningSession> {
        self.slow.by_ref().for_each(drop);
        let start = clock::now()?;
        self.sampler.drain(&mut self.run, &start)?;
        self.sampler.restart(&mut self.run.vms, &start);
        let sight = self.sampler.sight();
        let sees_swapouts = sight.absent(Group::Swapouts).is_none();
        let host = Host::start(sight.sees_swapins(), sees_swapouts, host)?;
        self.run.options = options;
        self.run.backend.hooks.clone_from(&sight.hooks);
        self.run.clocks = RunClocks { start, steps: Vec::new(), end: None };
        self.run.evictions = Some(EvictionSight {
            written_absent: sight.absent(Group::Swapouts).map(str::to_owned),
            dropped_absent: sight.drops_absent(),
        });
        let start_us = start.realtime_ns / 1_000;
        let open = OpenInterval { start, start_us, number: 0, seen: None };
        let (oom_kills, unreadable) = OomKills::follow();
        self.run.host_state.kills_unreadable = unreadable;
        self.cost.as_mut().map_or(Ok(()), CostMeter::begin)?;
        Ok(RunningSession { session: self, host, last: start, open, oom_kills, ended: Vec::new() })
    }
}

/// What is known of a recording before it begins.
fn run(decision: &Decision) -> Result<Run> {
    let refused = decision.refused.iter();
    let refused = refused.map(|no| (no.backend.name().to_owned(), no.reason.clone()));
    Ok(Run {
        schema: Run::schema(),
        run_id: uuid::Uuid::now_v7().to_string(),
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        host: kernel::host_name()?,
        kernel: kernel::release()?,
        boot_id: kernel::boot_id()?,
        recorder: kernel::process_id(std::process::id().cast_signed())?.to_string(),
        page_size: kernel::page_size(),
        host_state: HostState {
            swap_areas: Some(swap_areas(Path::new("/proc"))),
            ..HostState::default()
        },
        command_status: None,
        backend: BackendChoice {
            name: decision.backend.name().to_owned(),
            fault_starts_at: decision.backend.fault_starts_at().to_owned(),
            refused: refused.collect::<BTreeMap<_, _>>(),
            hooks: Vec::new(),
        },
        ..Run::default()
    })
}

/// Intervals, one after the other.
pub struct RunningSession {
    session: Session,
    host: Host,
    /// Of the last drain.
    last: Clocks,
    open: OpenInterval,
    oom_kills: OomKills,
    /// VMs that have ended and have not been told of.
    ended: Vec<usize>,
}

/// The interval that is not over yet.
struct OpenInterval {
    start: Clocks,
    /// Its start as its rows will say, in Unix microseconds.
    start_us: u64,
    number: u64,
    /// What was seen of it so far.
    seen: Option<Interval>,
}

impl RunningSession {
    /// The probes.
    pub fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    /// What holds for the whole recording so far.
    pub fn run(&self) -> &Run {
        &self.session.run
    }

    /// The slow faults that have come, of VMs that have been announced by now.
    ///
    /// # Errors
    /// The clocks, or the names of functions, cannot be read.
    pub fn slow_faults(&mut self) -> Result<Vec<SlowFault>> {
        self.session.follow_events()?;
        let faults: Vec<_> = self.session.slow.by_ref().collect();
        let mut aggressors: HashMap<u64, Option<Aggressor>> = HashMap::new();
        let now = clock::now()?;
        let mut told = Vec::with_capacity(faults.len());
        for (metric, fault) in faults {
            let Session { sampler, run, stacks, .. } = &mut self.session;
            // None of a VM that is not recorded.
            let Some(vm) = sampler.vm_of(fault.vm_tgid.cast_signed()) else { continue };
            let stack = fault.stack.checked_sub(1).map(|number| stacks.folded(number));
            let aggressor = aggressors.entry(fault.aggressor);
            let aggressor = aggressor.or_insert_with_key(|word| sampler.aggressor(*word)).clone();
            let is_seen = |part| is_part_seen(&run.coverage, part);
            told.push(SlowFault {
                swap_device: fault.swap_device.checked_sub(1).map(|n| sampler.swap_device(n)),
                guest_address: sampler.vms()[vm].guest_address(fault.address),
                stack: stack.transpose()?.map(str::to_owned),
                aggressor,
                time: Breakdown::new(fault.latency_ns, fault.parts_ns, is_seen),
                ..slow_fault(vm, metric, &fault, &now)
            });
        }
        Ok(told)
    }

    /// Looks at the host and its VMs within an interval: what state they are in does not depend
    /// on how long intervals are. As [`Self::end_interval`], after the slow faults.
    ///
    /// # Errors
    /// See [`Self::end_interval`].
    pub fn look(&mut self) -> Result<()> {
        self.drain(false)
    }

    /// Ends the interval at a boundary, in Unix microseconds, and begins the next
    /// there. `None` ends it now, short of a boundary. Slow faults are to be taken before: a VM
    /// that ended gives its slot back.
    ///
    /// # Errors
    /// The kernel refuses something, or the clocks cannot be read.
    pub fn end_interval(&mut self, boundary_us: Option<u64>) -> Result<Interval> {
        self.drain(self.open.number == 0 || boundary_us.is_none())?;
        let number = self.open.number + 1;
        let Session { sampler, run, .. } = &mut self.session;
        run.recorded.intervals = number;
        sampler.next_interval(&run.vms);
        let start_us = boundary_us.unwrap_or(self.last.realtime_ns / 1_000);
        let next = OpenInterval { start: self.last, start_us, number, seen: None };
        let ended = std::mem::replace(&mut self.open, next);
        Ok(ended.seen.unwrap_or_default())
    }

    /// Takes what happened since the last drain, and adds it to the open interval.
    fn drain(&mut self, partial: bool) -> Result<()> {
        self.session.follow_events()?;
        let now = clock::now()?;
        let Session { sampler, run, cost, .. } = &mut self.session;
        if now.stepped_since(&self.last) {
            run.clocks.steps.push(now);
        }
        let running = |vm: &RunVm| vm.ended_us.is_none();
        let ran: Vec<bool> = run.vms.iter().map(running).collect();
        let mut drained = sampler.drain(run, &now)?;
        for (index, ran) in ran.into_iter().enumerate() {
            let vm = &mut run.vms[index];
            if ran && !running(vm) {
                vm.ended_by = self.oom_kills.of(vm.pid, self.host.cgroup_name(index));
                self.ended.push(index);
            }
        }
        let open_ns = now.monotonic_ns - self.open.start.monotonic_ns;
        let place = Place {
            number: self.open.number,
            start_us: self.open.start_us,
            offset_ns: self.open.start.monotonic_ns - run.clocks.start.monotonic_ns,
            length_ns: open_ns,
            partial,
            delayed: Place::is_delayed(open_ns, run.options.interval_ns),
        };
        let mut host = self.host.advance(sampler.vms(), &mut drained, &place, now.monotonic_ns);
        let length_ns = now.monotonic_ns - self.last.monotonic_ns;
        host.swap.times = StateTimes::of(host.swap.state, length_ns);
        host.balloon_times = StateTimes::of(host.balloon, length_ns);
        let overcommit = host.overcommit.map(|sum| sum.state).unwrap_or_default();
        host.overcommit_times = StateTimes::of(overcommit, length_ns);
        for (vm, _) in &mut drained {
            vm.swap.times = StateTimes::of(vm.swap.state, vm.recorded_of(length_ns));
            sampler.count_swapouts(vm.vm, self.host.cgroup_id(vm.vm))?;
        }
        run.host_state.discards_absent = None;
        if self.host.needs_discards() {
            let absent = sampler.see_discards().err().map(|error| format!("{error:#}"));
            self.host.sees_discards(absent.is_none());
            run.host_state.discards_absent = absent;
        }
        self.host.note(run);
        run.not_counted = not_counted(sampler);
        if let Some(cost) = cost {
            let length_ns = now.monotonic_ns - run.clocks.start.monotonic_ns;
            run.cost = Some(cost.so_far(length_ns, sampler)?);
        }
        self.last = now;
        let vms = drained.into_iter().map(|(vm, _)| vm).collect();
        let mut seen = Interval { place, host, vms, evictions: sampler.evictions() };
        let is_measured = seen.is_measured();
        let left = seen.host.overcommit.and_then(|sum| sum.headroom());
        seen.host.least_headroom = left.map(|headroom| LeastHeadroom { headroom, is_measured });
        match &mut self.open.seen {
            Some(open) => open.extend(seen),
            open => *open = Some(seen),
        }
        Ok(())
    }

    /// The VMs that have ended since the last call, as indices into those of the recording.
    pub fn ended(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.ended)
    }

    /// Ends counting for every VM at once, so that what is still open is no loss.
    pub fn stop_counting(&mut self) {
        self.session.sampler.close();
    }

    /// Detaches the probes; gives the last interval.
    ///
    /// # Errors
    /// As [`Self::end_interval`].
    pub fn close(&mut self) -> Result<Interval> {
        let last = self.end_interval(None)?;
        let Session { sampler, run, .. } = &mut self.session;
        sampler.stop();
        run.clocks.end = Some(self.last);
        run.not_counted = not_counted(sampler);
        Ok(last)
    }
}

/// What the programs tell of a slow fault.
fn slow_fault(vm: usize, metric: Metric, fault: &layout::SlowFault, now: &Clocks) -> SlowFault {
    let backing = (fault.backing as usize).checked_sub(1);
    let comm = fault.comm.split(|byte| *byte == 0).next().unwrap_or_default();
    SlowFault {
        vm,
        end_ns: now.realtime_of(fault.end_ns),
        tid: fault.tid,
        thread: escape(comm),
        metric: metric.into(),
        latency_ns: fault.latency_ns,
        address: fault.address,
        backing: backing.and_then(|number| FaultBacking::ALL.get(number)).copied(),
        ..SlowFault::none()
    }
}

fn not_counted(sampler: &mut Sampler) -> NotCounted {
    NotCounted {
        programs_skipped: sampler.skipped(),
        vms_without_slot: sampler.without_slot(),
        unserved: sampler.unserved(),
        vms_left_out: sampler.left_out(),
    }
}
