//! Where the buckets of histograms lie: in chunks, of which a histogram takes one when its first
//! latency of that doubling comes.

use crate::atomic::{add, get, replace, take_one};
use crate::maps::{self, FREE_CHUNKS, STOCK};
use crate::vms::announce;
use core::sync::atomic::AtomicU64;
use overcommit_ebpf::bucket::DOUBLING;
use overcommit_ebpf::layout::{CHUNKS, Histogram, LifecycleKind, Vm};

/// A bucket of a VM's histogram, by its number; `None` if there is no memory for it.
#[inline(always)]
pub(crate) fn bucket(vm: &Vm, histogram: &Histogram, index: usize) -> Option<&'static AtomicU64> {
    let place = histogram.chunks.get(index / DOUBLING % CHUNKS)?;
    let number = match get(place).checked_sub(1) {
        Some(number) => number as u32,
        None => take(vm, place)?,
    };
    maps::chunk(number)?.buckets.get(index % DOUBLING)
}

/// Takes a free chunk to that place.
#[inline(always)]
fn take(vm: &Vm, place: &AtomicU64) -> Option<u32> {
    let stock = STOCK.get(0)?;
    // Without a look into the list, whose lock is one for the whole host.
    if get(&stock.free) == 0 || get(&vm.chunks) >= get(&stock.most) {
        return None;
    }
    let number = FREE_CHUNKS.pop().ok()??;
    if take_one(&stock.free) == get(&stock.low) {
        announce(LifecycleKind::FewChunks, 0, 0, 0);
    }
    match replace(place, 0, u64::from(number) + 1) {
        Ok(()) => {
            add(&vm.chunks, 1);
            Some(number)
        }
        Err(other) => {
            // Another thread of the VM was faster.
            add(&stock.free, 1);
            if FREE_CHUNKS.push(number, 0).is_err() {
                take_one(&stock.free);
            }
            other.checked_sub(1).map(|number| number as u32)
        }
    }
}
