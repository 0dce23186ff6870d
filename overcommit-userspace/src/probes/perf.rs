//! The `perf` backend: page faults by perf's software events, one a fault.
//!
//! `PERF_COUNT_SW_PAGE_FAULTS` fires when the architecture's handler begins
//! (x86: `do_user_addr_fault`), `…_MIN` or `…_MAJ` when `mm_account_fault`
//! (mm/memory.c) has completed the fault. Neither fires for get_user_pages, by
//! which KVM resolves the faults of a guest on hardware: there this backend sees
//! what QEMU itself touches.

use anyhow::{Context, Result, anyhow};
use aya::Ebpf;
use aya::programs::PerfEvent;
use overcommit_ebpf::layout::HotProgram;
use perf_event::events::Software;
use perf_event::{Builder, Counter};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;

/// The programs of this backend.
pub const PROGRAMS: [HotProgram; 3] =
    [HotProgram::FaultStart, HotProgram::FaultMinor, HotProgram::FaultMajor];
/// The events of one CPU, in the order of [`PROGRAMS`].
type CpuEvents = [Counter; PROGRAMS.len()];

/// The software events of every CPU that is online.
pub struct PerfEvents {
    programs: [RawFd; PROGRAMS.len()],
    /// With the time for which they had been enabled at the last look.
    cpus: BTreeMap<u32, (CpuEvents, Duration)>,
    /// What the events of CPUs that went offline had counted.
    gone: [u64; HotProgram::COUNT],
}

impl PerfEvents {
    /// Loads the programs; [`Self::follow_cpus`] attaches them.
    ///
    /// # Errors
    /// The kernel refuses a program.
    pub fn load(ebpf: &mut Ebpf) -> Result<Self> {
        let mut programs = [0; PROGRAMS.len()];
        for program in PROGRAMS {
            programs[program as usize] = load(ebpf, program)?;
        }
        Ok(Self { programs, cpus: BTreeMap::new(), gone: [0; HotProgram::COUNT] })
    }

    /// With one program for all of them, attached.
    ///
    /// # Errors
    /// As [`Self::follow_cpus`].
    pub(super) fn of(program: RawFd) -> Result<Self> {
        let programs = [program; PROGRAMS.len()];
        let mut events = Self { programs, cpus: BTreeMap::new(), gone: [0; HotProgram::COUNT] };
        events.follow_cpus()?;
        Ok(events)
    }

    /// Opens events on CPUs that came online and closes those of CPUs that went:
    /// the kernel does neither.
    ///
    /// # Errors
    /// The list of CPUs cannot be read, or the kernel refuses an event.
    pub fn follow_cpus(&mut self) -> Result<()> {
        let online = online_cpus()?;
        let mut gone = Vec::new();
        for (cpu, (events, enabled)) in &mut self.cpus {
            // The clock of an event stands still once its CPU has been offline, also
            // when it came back meanwhile.
            let now = events[0].read_full().ok().and_then(|data| data.time_enabled());
            if !online.contains(cpu) || now <= Some(*enabled) {
                gone.push(*cpu);
            }
            *enabled = now.unwrap_or(*enabled);
        }
        for cpu in gone {
            if let Some((mut events, _)) = self.cpus.remove(&cpu) {
                for (total, count) in self.gone.iter_mut().zip(read(&mut events)) {
                    *total += count;
                }
            }
        }
        for cpu in online {
            if self.cpus.contains_key(&cpu) {
                continue;
            }
            match self.open(cpu) {
                Ok(events) => {
                    self.cpus.insert(cpu, (events, Duration::ZERO));
                }
                // It went again meanwhile.
                Err(_) if !online_cpus()?.contains(&cpu) => {}
                Err(error) => {
                    let failed = format!("the kernel refuses the page fault events of CPU {cpu}");
                    return Err(error.context(failed));
                }
            }
        }
        Ok(())
    }

    /// How often each event has fired on all CPUs, to be held against the runs of
    /// its program.
    pub fn fired(&mut self) -> [u64; HotProgram::COUNT] {
        let mut fired = self.gone;
        for (events, _) in self.cpus.values_mut() {
            for (total, count) in fired.iter_mut().zip(read(events)) {
                *total += count;
            }
        }
        fired
    }

    /// Stops all events; they can still be read.
    pub fn stop(&mut self) {
        for event in self.cpus.values_mut().flat_map(|(events, _)| events) {
            // The event of a CPU that just went offline is stopped already.
            let _ = event.disable();
        }
    }

    fn open(&self, cpu: u32) -> Result<CpuEvents> {
        let open = |event: Software, program: HotProgram| -> Result<Counter> {
            let mut builder = Builder::new(event);
            builder.any_pid().one_cpu(cpu as usize).include_kernel().sample_period(1);
            let mut event = builder.build()?;
            event.set_bpf(self.programs[program as usize])?;
            Ok(event)
        };
        let mut events = [
            open(Software::PAGE_FAULTS, HotProgram::FaultStart)?,
            open(Software::PAGE_FAULTS_MIN, HotProgram::FaultMinor)?,
            open(Software::PAGE_FAULTS_MAJ, HotProgram::FaultMajor)?,
        ];
        for event in &mut events {
            event.enable()?;
        }
        Ok(events)
    }
}

fn online_cpus() -> Result<Vec<u32>> {
    aya::util::online_cpus().map_err(|(path, error)| anyhow!("cannot read {path}: {error}"))
}

/// Counts of events; one that cannot be read any more adds nothing.
fn read(events: &mut CpuEvents) -> [u64; PROGRAMS.len()] {
    let mut counts = [0; PROGRAMS.len()];
    for (count, event) in counts.iter_mut().zip(events) {
        *count = event.read().unwrap_or(0);
    }
    counts
}

fn load(ebpf: &mut Ebpf, program: HotProgram) -> Result<RawFd> {
    let name = program.name();
    let program = ebpf.program_mut(name).ok_or_else(|| anyhow!("no program {name}"))?;
    let program: &mut PerfEvent = program.try_into()?;
    program.load().with_context(|| format!("the kernel refuses the program {name}"))?;
    Ok(program.fd()?.as_fd().as_raw_fd())
}
