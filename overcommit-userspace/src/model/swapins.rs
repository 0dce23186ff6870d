//! Where swapped pages came from.

use overcommit_ebpf::layout::SWAP_DEVICES_MAX;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

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
