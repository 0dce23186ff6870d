//! Latencies, and the pool of histograms that not every VM needs.

use crate::bucket::{BUCKETS, DOUBLING};
use crate::layout::{FaultBacking, zero};
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

/// The latencies of one VM and metric.
///
/// The kernel adds to `sum_ns`, then `max_ns`, then the bucket; the loader takes
/// them in the other direction, so whatever it counts has its sum and maximum
/// already there. The buckets lie in chunks, of which a program takes one for the first
/// latency of a doubling: those of a kind rarely fill more than a third.
#[repr(C)]
pub struct Histogram {
    /// Sum of the latencies, in nanoseconds.
    pub sum_ns: AtomicU64,
    /// The longest, in nanoseconds.
    pub max_ns: AtomicU64,
    /// How many exceeded [`crate::bucket::MAX_NS`]; they count in the last bucket too.
    pub over_range: AtomicU64,
    /// Numbers of its chunks, plus 1, in the order of the buckets; 0 where no latency was.
    pub chunks: [AtomicU64; CHUNKS],
}

/// Places for the chunks of a histogram: a power of two, so that the verifier sees what a mask
/// leaves. The last stays free.
pub const CHUNKS: usize = (BUCKETS / DOUBLING).next_power_of_two();

/// The buckets of one doubling of the latency, see [`crate::bucket`]; of the first chunk those
/// below.
#[repr(C)]
pub struct Chunk {
    /// Count of each.
    pub buckets: [AtomicU64; DOUBLING],
}

/// Chunks that the loader makes at a time: a MiB.
pub const BLOCK_CHUNKS: u32 = 1024;

/// Chunks that no histogram has. The loader makes more when it is told that they run low.
#[repr(C)]
pub struct Stock {
    /// How many.
    pub free: AtomicU64,
    /// How many are few.
    pub low: AtomicU64,
    /// How many one VM may have.
    pub most: AtomicU64,
}

impl Histogram {
    /// Its chunks, with their places among [`CHUNKS`].
    pub fn chunks(&self) -> impl Iterator<Item = (usize, u32)> {
        let numbers = self.chunks.iter().map(|number| number.load(Relaxed).checked_sub(1));
        numbers.enumerate().filter_map(|(place, number)| Some((place, number? as u32)))
    }

    /// Empties it, but for what is in its chunks.
    pub fn clear(&self) {
        zero(&[&self.sum_ns, &self.max_ns, &self.over_range]);
    }
}

impl Chunk {
    /// Empties it.
    pub fn clear(&self) {
        zero(&self.buckets);
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

/// Histograms that a host has for each busy VM beside those of [`Metric`](crate::layout::Metric):
/// one rarely has more than a dozen reasons of exits and half a dozen kinds of faults, and takes
/// them from one pool.
pub const POOLED_PER_VM: u32 = 24;

/// The same for each slot: a process that is a VM by its name alone rarely takes more.
pub const POOLED_AT_LEAST: u32 = 8;

const _: () = {
    assert!(size_of::<Histogram>() == 24 + 8 * CHUNKS);
    assert!(size_of::<Chunk>() * BLOCK_CHUNKS as usize == 1 << 20);
};
