//! Where swapped pages came from.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Swap-ins by where the page came from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Swapins {
    /// Already in the swap cache.
    pub from_cache: u64,
    /// Out of zswap.
    pub from_zswap: u64,
    /// Read from a device, by the name of the disk.
    pub from_device: BTreeMap<String, u64>,
    /// By khugepaged, which nobody waits for: in no other count.
    pub without_fault: u64,
}

impl Swapins {
    /// Read from any device.
    pub fn from_devices(&self) -> u64 {
        self.from_device.values().sum()
    }

    /// Adds others.
    pub fn add(&mut self, other: &Self) {
        self.from_cache += other.from_cache;
        self.from_zswap += other.from_zswap;
        self.without_fault += other.without_fault;
        for (name, count) in &other.from_device {
            *self.from_device.entry(name.clone()).or_default() += count;
        }
    }
}
