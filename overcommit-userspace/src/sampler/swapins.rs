//! Where did swapped pages come from?

use crate::model::swapins::SwapinCounts;
use overcommit_ebpf::layout::Swapins;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;

/// Reads what the counters have grown by.
#[derive(Debug, Default)]
pub struct SwapinReader(SwapinCounts);

impl SwapinReader {
    /// Since the last time.
    pub fn read(&mut self, shared: &Swapins) -> SwapinCounts {
        let load = |count: &AtomicU64| count.load(SeqCst);
        let now = SwapinCounts {
            from_cache: load(&shared.from_cache),
            from_zswap: load(&shared.from_zswap),
            from_device: shared.from_device.each_ref().map(load),
            without_fault: load(&shared.without_fault),
        };
        let before = std::mem::replace(&mut self.0, now);
        let mut from_device = now.from_device;
        for (count, before) in from_device.iter_mut().zip(before.from_device) {
            *count -= before;
        }
        SwapinCounts {
            from_cache: now.from_cache - before.from_cache,
            from_zswap: now.from_zswap - before.from_zswap,
            from_device,
            without_fault: now.without_fault - before.without_fault,
        }
    }
}
