//! One recording: attach, drain once an interval, write, detach.

use crate::host::Host;
use crate::host::survey::Options as HostOptions;
use crate::kernel;
use crate::kernel::clock;
use crate::model::clock::Clocks;
use crate::model::evictions::Aggressor;
use crate::model::interval::{HostSample, Interval, VmHostSample, VmSample};
use crate::model::run::{
    BackendChoice, EvictionSight, HostState, NotCounted, Options, RunClocks, RunFile,
};
use crate::model::slow_fault::SlowFault;
use crate::probes::decide::{Backend, Decision};
use crate::probes::log::ProgramLog;
use crate::probes::object::Sizes;
use crate::probes::raw::Group;
use crate::probes::rings::{Events, SlowFaults};
use crate::probes::stacks::Stacks;
use crate::probes::{Kernel, Probes, Rings, sight};
use crate::recording::{Folder, Writer};
use crate::sampler::Sampler;
use crate::sampler::roster::{Member, Roster, Selection};
use anyhow::{Context, Result};
use overcommit_ebpf::layout::LifecycleKind;
use std::collections::HashMap;
use std::time::Duration;

/// VMs that can be recorded at a time beyond twice those that run at the start.
const SPARE_VMS: u32 = 64;
/// Threads that can fault in VMs at a time.
const THREADS: u32 = 16_384;
/// Ring buffer of slow faults: more than a second of a host that swaps hard.
const SLOW_BYTES: u32 = 16 << 20;

/// Attached probes that nobody is writing down yet.
pub struct Session {
    sampler: Sampler,
    slow: SlowFaults,
    stacks: Stacks,
    events: Events,
    log: Option<ProgramLog>,
    decision: Decision,
}

impl Session {
    /// Attaches the backend and takes up the VMs that run.
    ///
    /// # Errors
    /// The kernel refuses something, or /proc cannot be read.
    pub fn attach(kernel: &Kernel, decision: Decision, roster: Roster, want: Want) -> Result<Self> {
        let sizes = Sizes {
            vms: want.running_vms.saturating_mul(2).saturating_add(SPARE_VMS).min(4096),
            threads: THREADS,
            cpus: kernel::possible_cpus()?,
            slow_bytes: if want.slow_faults.is_some() { SLOW_BYTES } else { 4096 },
            slow_ns: want.slow_faults.map_or(u64::MAX, |least| least.as_nanos() as u64),
            follow_exec: want.follow_exec,
            hooks_calls: decision.backend != Backend::Perf,
            sees_sleeps: want.causes || want.slow_faults.is_some(),
            verbose: want.verbose,
        };
        let (probes, Rings { events, slow, stacks, log }) =
            Probes::attach(kernel, decision.backend, &want.without, sizes)?;
        let now = clock::now()?;
        let mut sampler = Sampler::new(probes, roster, &now);
        sampler.rescan(&now)?;
        Ok(Self { sampler, slow, stacks, events, log, decision })
    }

    /// Where VMs that start and end are announced.
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// The sampler.
    pub fn sampler(&self) -> &Sampler {
        &self.sampler
    }

    /// Takes up what has been announced.
    ///
    /// # Errors
    /// The clocks cannot be read.
    pub fn follow_events(&mut self) -> Result<()> {
        if let Some(log) = &mut self.log {
            log.print();
        }
        let now = clock::now()?;
        for event in &mut self.events {
            match event.kind {
                LifecycleKind::Started => self.sampler.started(event, &now),
                LifecycleKind::NoSlot => self.sampler.missed(event.pid),
                // The drain sees it in the slot.
                LifecycleKind::Ended => {}
            }
        }
        Ok(())
    }

    /// Looks for what was not announced.
    ///
    /// # Errors
    /// See [`Sampler::rescan`].
    pub fn rescan(&mut self) -> Result<()> {
        self.sampler.rescan(&clock::now()?)
    }

    /// Forgets what was counted so far and begins to write.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn record(
        mut self,
        folder: Folder,
        options: Options,
        host: &HostOptions,
    ) -> Result<RunningSession> {
        self.slow.by_ref().for_each(drop);
        let start = clock::now()?;
        self.sampler.drain(&start)?;
        self.sampler.restart(&start);
        let sight = self.sampler.sight();
        let host = Host::start(&sight, host)?;
        let run = RunFile {
            schema: RunFile::schema(),
            run_id: uuid::Uuid::now_v7().to_string(),
            tool_version: env!("CARGO_PKG_VERSION").to_owned(),
            host: kernel::host_name()?,
            kernel: kernel::release()?,
            boot_id: kernel::boot_id()?,
            recorder: kernel::process_id(std::process::id().cast_signed())?.to_string(),
            options,
            backend: BackendChoice {
                name: self.decision.backend.name().to_owned(),
                fault_starts_at: self.decision.backend.fault_starts_at().to_owned(),
                refused: refused(&self.decision),
                hooks: sight.hooks.clone(),
            },
            clocks: RunClocks { start, steps: Vec::new(), end: None },
            recorded: Default::default(),
            vms: Vec::new(),
            coverage: sight::declared(&sight),
            not_counted: NotCounted::default(),
            host_state: HostState::default(),
            evictions: Some(EvictionSight {
                written_absent: sight.absent(Group::Swapouts).map(str::to_owned),
                dropped_absent: sight.drops_absent(),
            }),
        };
        let writer = Writer::create(folder, run)?;
        let start_us = start.realtime_ns / 1_000;
        Ok(RunningSession { session: self, host, writer, start, last: start, start_us, number: 0 })
    }
}

/// What the user wants of the probes.
#[derive(Clone, Debug)]
pub struct Want {
    /// VMs that run now.
    pub running_vms: u32,
    /// `--slow-faults`
    pub slow_faults: Option<Duration>,
    /// `--causes`
    pub causes: bool,
    /// Whether VMs that start later can be meant.
    pub follow_exec: bool,
    /// `--verbose`
    pub verbose: bool,
    /// `--without`
    pub without: Vec<String>,
}

impl Want {
    /// For these VMs.
    pub fn new(selection: &Selection, running_vms: usize) -> Self {
        let running_vms = u32::try_from(running_vms).unwrap_or(u32::MAX);
        Self {
            running_vms,
            slow_faults: None,
            causes: false,
            follow_exec: selection.is_open(),
            verbose: false,
            without: Vec::new(),
        }
    }
}

fn refused(decision: &Decision) -> std::collections::BTreeMap<String, String> {
    let refused = decision.refused.iter();
    refused.map(|refusal| (refusal.backend.name().to_owned(), refusal.reason.clone())).collect()
}

/// A recording that is being written.
pub struct RunningSession {
    session: Session,
    host: Host,
    writer: Writer,
    start: Clocks,
    last: Clocks,
    /// Start of the open interval as its rows will say, in Unix microseconds.
    start_us: u64,
    number: u64,
}

impl RunningSession {
    /// The probes.
    pub fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    /// The recording so far.
    pub fn writer(&self) -> &Writer {
        &self.writer
    }

    /// Writes the slow faults that have come.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_slow_faults(&mut self) -> Result<()> {
        let faults: Vec<_> = self.session.slow.by_ref().collect();
        if faults.is_empty() {
            return Ok(());
        }
        let Session { sampler, stacks, .. } = &mut self.session;
        let mut aggressors: HashMap<u64, Option<Aggressor>> = HashMap::new();
        let mut told = Vec::with_capacity(faults.len());
        for (metric, fault) in faults {
            let is_its = |member: &&Member| member.vm.id.pid == fault.vm_tgid.cast_signed();
            let member = sampler.members().iter().rev().find(is_its);
            let stack = fault.stack.checked_sub(1).map(|number| stacks.folded(number));
            told.push(SlowFault {
                metric,
                guest_address: member.and_then(|member| member.vm.guest_address(fault.address)),
                device: fault.swap_device.checked_sub(1).map(|device| sampler.swap_device(device)),
                stack: stack.transpose()?.map(str::to_owned),
                aggressor: aggressors
                    .entry(fault.aggressor)
                    .or_insert_with_key(|aggressor| sampler.aggressor(*aggressor))
                    .clone(),
                fault,
            });
        }
        self.writer.write_slow_faults(sampler.members(), told, &clock::now()?)
    }

    /// Ends the interval at a boundary, in Unix microseconds, and begins the next
    /// there. `None` ends it now, short of a boundary.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn end_interval(&mut self, boundary_us: Option<u64>) -> Result<Interval> {
        self.session.follow_events()?;
        // Before a VM that ended gives its slot back.
        self.write_slow_faults()?;
        let now = clock::now()?;
        if now.stepped_since(&self.last) {
            self.writer.note_step(now);
        }
        let vms: Vec<VmSample> = self.session.sampler.drain(&now)?;
        let (host, vm_hosts) = self.look_at_host(&vms, now.monotonic_ns)?;
        let interval = Interval {
            number: self.number,
            start_us: self.start_us,
            offset_ns: self.last.monotonic_ns - self.start.monotonic_ns,
            length_ns: now.monotonic_ns - self.last.monotonic_ns,
            partial: self.number == 0 || boundary_us.is_none(),
            vms,
            evictions: self.session.sampler.evictions(),
            host,
            vm_hosts,
        };
        let not_counted = self.not_counted();
        let sampler = &self.session.sampler;
        let coverage = sight::declared(&sampler.sight());
        self.writer.write(&interval, sampler.members(), not_counted, coverage)?;
        self.number += 1;
        self.last = now;
        self.start_us = boundary_us.unwrap_or(now.realtime_ns / 1_000);
        Ok(interval)
    }

    /// Stops counting, writes the last interval and detaches.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn finish(mut self) -> Result<(RunFile, Folder)> {
        self.session.sampler.close();
        self.end_interval(None).context("cannot write the last interval")?;
        self.session.sampler.stop();
        let not_counted = self.not_counted();
        let folder = self.writer.folder().clone();
        Ok((self.writer.finish(self.last, not_counted)?, folder))
    }

    /// Looks at the host, if it is time.
    fn look_at_host(
        &mut self,
        vms: &[VmSample],
        now_ns: u64,
    ) -> Result<(HostSample, Vec<VmHostSample>)> {
        let Self { session: Session { sampler, .. }, host, .. } = self;
        let sample = host.advance(sampler.members(), vms, now_ns);
        for vm in vms {
            sampler.count_swapouts(vm.member, host.cgroup_id(vm.member))?;
        }
        let mut discards_absent = None;
        if host.needs_discards() {
            discards_absent = sampler.see_discards().err().map(|error| format!("{error:#}"));
            host.sees_discards(discards_absent.is_none());
        }
        self.writer.note_host(host, discards_absent);
        Ok((sample, vms.iter().map(|vm| host.vm(vm.member)).collect()))
    }

    fn not_counted(&mut self) -> NotCounted {
        NotCounted {
            programs_skipped: self.session.sampler.skipped(),
            vms_without_slot: self.session.sampler.without_slot(),
        }
    }
}
