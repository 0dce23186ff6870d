//! What the programs send one by one.

use crate::layout::Part;
#[cfg(doc)]
use crate::layout::{FaultBacking, Metric, pack_aggressor};

/// What happened to a VM's process, as one record of the `EVENTS` ring buffer:
/// the fields in this order, native byte order.
#[repr(C)]
pub struct Lifecycle {
    /// A [`LifecycleKind`].
    pub kind: u32,
    /// Its slot.
    pub vm: u32,
    /// Process id in the initial namespace.
    pub tgid: u32,
    /// 1 of a program that starts and runs VMs by KVM alone.
    pub is_micro_vm: u32,
}

/// See [`Lifecycle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum LifecycleKind {
    /// A program was executed that looks like a hypervisor; it has a slot.
    Started = 1,
    /// Its last thread exited, or it executed another program.
    Ended = 2,
    /// It looks like a hypervisor and there was no free slot.
    NoSlot = 3,
    /// Of no VM: few chunks of histograms are left.
    FewChunks = 4,
}

/// Slow faults of a VM that are sent one by one in a second, unless every fault is.
pub const SLOW_PER_SECOND: u64 = 1_000;

/// Reads of KVM's attempts that did not wait, of pages for which nobody has waited yet.
pub const ATTEMPTS: u32 = 1 << 14;

/// Stacks that are kept.
pub const STACKS: u32 = 1024;

/// A fault of at least the length asked for, as one record of the `SLOW` ring
/// buffer: the fields in this order, native byte order.
#[repr(C)]
pub struct SlowFault {
    /// `CLOCK_MONOTONIC` at its end, in nanoseconds.
    pub end_ns: u64,
    /// Its latency, in nanoseconds.
    pub latency_ns: u64,
    /// The address that faulted.
    pub address: u64,
    /// The VM's process id.
    pub vm_tgid: u32,
    /// The VM's slot.
    pub vm: u32,
    /// Thread that took it.
    pub tid: u32,
    /// A [`Metric`].
    pub metric: u32,
    /// The thread's name, up to the first NUL.
    pub comm: [u8; 16],
    /// What its time went into, by [`Part`], in nanoseconds.
    pub parts_ns: [u64; Part::COUNT],
    /// [`FaultBacking`]; 0 if it is not known.
    pub backing: u32,
    /// Number of the device that it read a swapped page from, plus 1; 0 for none.
    pub swap_device: u32,
    /// Number of the stack of its longest sleep, plus 1; 0 if that was not taken.
    pub stack: u32,
    /// Explicit padding.
    pub reserved: u32,
    /// Who had evicted the page, as [`pack_aggressor`] packs it; 0 if that is not known.
    pub aggressor: u64,
}

const _: () = {
    assert!(size_of::<Lifecycle>() == 16);
    assert!(size_of::<SlowFault>() == 152);
};
