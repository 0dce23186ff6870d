//! Where did swapped pages come from?

use overcommit_ebpf::layout::{SWAP_DEVICES_MAX, Swapins};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;

/// Swap-ins by where the page came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SwapinCounts {
    /// Already in the swap cache.
    pub from_cache: u64,
    /// Out of zswap.
    pub from_zswap: u64,
    /// Read from a device, by its number.
    pub from_device: [u64; SWAP_DEVICES_MAX],
    /// By khugepaged, which nobody waits for: in no other count.
    pub without_fault: u64,
}

impl SwapinCounts {
    /// Read from any device.
    pub fn from_devices(&self) -> u64 {
        self.from_device.iter().sum()
    }
}

/// The same over a recording, devices by their names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwapinTotals {
    /// See [`SwapinCounts::from_cache`].
    pub from_cache: u64,
    /// See [`SwapinCounts::from_zswap`].
    pub from_zswap: u64,
    /// By the name of the disk.
    pub from_device: BTreeMap<String, u64>,
    /// See [`SwapinCounts::without_fault`].
    pub without_fault: u64,
}

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
