//! The types that lie in the maps, each defined once for both sides.

mod cpu;
mod evictions;
mod histogram;
mod kinds;
mod offsets;
mod records;
mod thread;
mod vm;

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;
pub use cpu::*;
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
