//! The types that lie in the maps, each defined once for both sides.

mod evictions;
mod histogram;
mod kinds;
mod offsets;
mod records;
mod thread;
mod vm;

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;
pub use evictions::*;
pub use histogram::*;
pub use kinds::*;
pub use offsets::*;
pub use records::*;
pub use thread::*;
pub use vm::*;

/// Stores 0 in each.
fn zero(cells: &[impl core::borrow::Borrow<AtomicU64>]) {
    for cell in cells {
        cell.borrow().store(0, Relaxed);
    }
}

/// One word of an array that the loader shares.
#[repr(transparent)]
pub struct Word(pub AtomicU64);

/// What is counted for each CPU, and what was looked up there last: cache lines of its own.
#[repr(C, align(64))]
pub struct Cpu {
    /// Runs of each [`HotProgram`], to be held against its event's own counter.
    pub runs: [AtomicU64; HotProgram::COUNT],
    /// Entry of the thread that was looked up last, which says itself whose it is.
    pub thread: AtomicU64,
    /// Slot of the VM that was looked up last, whose `mm` says whose memory it is.
    pub vm: AtomicU64,
    /// The `mm_struct` that was last seen to be no VM's, and how often VMs had come by then.
    pub other_mm: AtomicU64,
    /// See there.
    pub other_changes: AtomicU64,
    /// Explicit padding to whole cache lines, of which CPUs fetch two at a time.
    pub reserved: [AtomicU64; 6],
}

const _: () = assert!(size_of::<Cpu>() == 128);
