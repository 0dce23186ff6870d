//! Where the buckets of histograms lie: in chunks, of which a histogram takes one when its first
//! latency of that doubling comes.

use crate::atomic::{add, get, replace, take_one};
use crate::maps::{self, EVENTS, FREE_CHUNKS, STOCK};
use core::sync::atomic::AtomicU64;
use overcommit_ebpf::bucket::{self, DOUBLING};
use overcommit_ebpf::layout::{CHUNKS, Histogram, Lifecycle, LifecycleKind};

/// The bucket of a latency; `None` if there is no memory for it.
#[inline(always)]
pub(crate) fn bucket(histogram: &Histogram, latency: u64) -> Option<&'static AtomicU64> {
    let index = bucket::index(latency);
    let place = histogram.chunks.get(index / DOUBLING % CHUNKS)?;
    let number = match get(place).checked_sub(1) {
        Some(number) => number as u32,
        None => take(place)?,
    };
    maps::chunk(number)?.buckets.get(index % DOUBLING)
}

/// Takes a free chunk to that place.
#[inline(always)]
fn take(place: &AtomicU64) -> Option<u32> {
    let stock = STOCK.get(0)?;
    // Without a look into the list, whose lock is one for the whole host.
    if get(&stock.free) == 0 {
        return None;
    }
    let number = FREE_CHUNKS.pop().ok()??;
    if take_one(&stock.free) == get(&stock.low) {
        ask_for_more();
    }
    match replace(place, 0, u64::from(number) + 1) {
        Ok(()) => Some(number),
        Err(other) => {
            // Another thread of the VM was faster.
            add(&stock.free, 1);
            let _ = FREE_CHUNKS.push(number, 0);
            (other as u32).checked_sub(1)
        }
    }
}

#[inline(always)]
fn ask_for_more() {
    // With a full buffer the loader is awake.
    if let Some(mut entry) = EVENTS.reserve::<Lifecycle>(0) {
        entry.write(Lifecycle {
            kind: LifecycleKind::FewChunks as u32,
            vm: 0,
            tgid: 0,
            reserved: 0,
        });
        entry.submit(0);
    }
}
