//! What is wanted of the probes, and how large that makes their maps.

use crate::kernel;
use crate::probes::decide::Backend;
use crate::probes::kvm::Exits;
use crate::probes::object::Sizes;
use crate::sampler::roster::Selection;
use crate::vm::owner::Room;
use anyhow::Result;
use std::time::Duration;

/// VMs that can be recorded at a time, beyond those that run at the start and a quarter of them.
const SPARE_VMS: u32 = 256;
/// The same of VMs by more than their name.
const SPARE_BUSY: u32 = 128;
/// VMs that can be recorded at a time, whatever runs.
const SLOTS_MAX: u32 = 4096;
/// Threads of a VM that fault in its memory beside its vCPUs.
const BESIDE_VCPUS: usize = 16;
/// Threads that can fault in VMs at a time, beyond those of the VMs that run at the start.
const SPARE_THREADS: u32 = 16_384;
/// The same, whatever runs.
const THREADS_MAX: u32 = 65_536;
/// Ring buffer of slow faults: more than a second of a host that swaps hard.
const SLOW_BYTES: u32 = 16 << 20;

/// What the user wants of the probes.
#[derive(Clone, Debug)]
pub struct Want {
    /// For which VMs there is to be room from the start.
    pub room: Room,
    /// Whether every one of them is to be recorded.
    pub is_every: bool,
    /// `--slow-faults`
    pub slow_faults: Option<Duration>,
    /// `--causes`
    pub causes: bool,
    /// `--exits`
    pub exits: Exits,
    /// Whether VMs that start later can be meant.
    pub follow_exec: bool,
    /// `--verbose`
    pub verbose: bool,
    /// `--without`
    pub without: Vec<String>,
    /// Whether it is to be measured what that costs.
    pub cost: bool,
}

impl Want {
    /// How large the maps are for that.
    ///
    /// # Errors
    /// The kernel does not say how many CPUs it can have.
    pub fn sizes(&self, backend: Backend) -> Result<Sizes> {
        let vms = slots(self.room.vms, SPARE_VMS);
        Ok(Sizes {
            vms,
            running: if self.is_every { (self.room.vms as u32).min(vms) } else { 0 },
            busy_vms: slots(self.room.real, SPARE_BUSY).min(vms),
            threads: threads(self.room),
            cpus: kernel::possible_cpus()?,
            slow_bytes: if self.slow_faults.is_some() { SLOW_BYTES } else { 4096 },
            slow_ns: self.slow_faults.map_or(u64::MAX, |least| least.as_nanos() as u64),
            follow_exec: self.follow_exec,
            hooks_calls: backend != Backend::Perf,
            sees_sleeps: self.causes || self.slow_faults.is_some(),
            exits: self.exits,
            verbose: self.verbose,
        })
    }

    /// For these VMs.
    pub fn new(selection: &Selection, room: Room) -> Self {
        Self {
            room,
            is_every: selection.is_every(),
            slow_faults: None,
            causes: false,
            exits: Exits::All,
            follow_exec: selection.is_open(),
            verbose: false,
            without: Vec::new(),
            cost: false,
        }
    }
}

/// Places for VMs: for those that run, and for some that start.
fn slots(running: usize, spare: u32) -> u32 {
    let running = u32::try_from(running).unwrap_or(u32::MAX);
    running.saturating_add(running / 4).saturating_add(spare).min(SLOTS_MAX)
}

fn threads(room: Room) -> u32 {
    let running = room.vcpus + room.real * BESIDE_VCPUS;
    u32::try_from(running).unwrap_or(u32::MAX).saturating_add(SPARE_THREADS).min(THREADS_MAX)
}
