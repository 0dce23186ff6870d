//! Latencies, and the pool of histograms that not every VM needs.

use crate::bucket::BUCKETS;
use crate::layout::{FaultBacking, zero};
use core::sync::atomic::AtomicU64;

/// The latencies of one VM and metric.
///
/// The kernel adds to `sum_ns`, then `max_ns`, then the bucket; the loader takes
/// them in the other direction, so whatever it counts has its sum and maximum
/// already there.
#[repr(C)]
pub struct Histogram {
    /// Sum of the latencies, in nanoseconds.
    pub sum_ns: AtomicU64,
    /// The longest, in nanoseconds.
    pub max_ns: AtomicU64,
    /// How many exceeded [`crate::bucket::MAX_NS`]; they count in the last bucket too.
    pub over_range: AtomicU64,
    /// Keeps the buckets at a multiple of 32 bytes.
    pub reserved: AtomicU64,
    /// Count of each bucket, see [`crate::bucket`].
    pub buckets: [AtomicU64; BUCKETS],
}

impl Histogram {
    /// Empties it.
    pub fn clear(&self) {
        zero(&self.buckets);
        zero(&[&self.sum_ns, &self.max_ns, &self.over_range]);
    }
}

/// `isa` of kvm_exit, as `struct kvm_run` numbers them: KVM_ISA_VMX.
pub const ISA_VMX: u32 = 1;

/// KVM_ISA_SVM.
pub const ISA_SVM: u32 = 2;

/// arm64, which has no number there.
pub const ISA_ARM64: u32 = 3;

/// The reason under which memory exits of devices are filed, of any `isa`.
pub const REASON_MMIO: u32 = 0xff_fffe;

/// One number for an exit's reason and the architecture that it is of. Error exits
/// (`SVM_EXIT_ERR`, the failure bit of VMX) are cut to 24 bits.
pub const fn exit_key(isa: u32, reason: u32) -> u32 {
    isa << 24 | (reason & 0xff_ffff)
}

/// In place of an `isa`: the faults of a [`FaultBacking`].
const ISA_FAULT: u32 = 0x7f;

/// One number for the faults of a place in [`Vm::fault_places`].
pub const fn fault_key(place: u32) -> u32 {
    exit_key(ISA_FAULT, place)
}

/// The kind that a key of the pool is of, and whether of majors; `None` of an exit.
pub fn fault_of_key(key: u32) -> Option<(FaultBacking, bool)> {
    let number = (key & 0xff_ffff) as usize;
    let backing = FaultBacking::ALL.get(number >> 1).filter(|_| key >> 24 == ISA_FAULT)?;
    Some((*backing, number & 1 != 0))
}

/// Histograms that a host has for each slot beside those of [`Metric`]: a VM rarely has
/// more than a dozen reasons of exits and half a dozen kinds of faults, and takes them
/// from one pool.
pub const POOLED_PER_VM: u32 = 24;

const _: () = assert!(size_of::<Histogram>() == 32 + 8 * BUCKETS);
