//! Where did swapped pages come from?

use crate::sampler::tracked::grown;
use overcommit_ebpf::layout::{self, SWAP_DEVICES_MAX};
use overcommit_recording::model::swapins::Swapins;
use std::collections::BTreeMap;

/// Reads what the counters have grown by.
#[derive(Debug, Default)]
pub struct SwapinReader {
    /// From the swap cache, from zswap, without a fault.
    others: [u64; 3],
    /// By the number of the device.
    from_device: [u64; SWAP_DEVICES_MAX],
}

impl SwapinReader {
    /// Since the last time; `name` knows what the device of a number is called.
    pub fn read(&mut self, shared: &layout::Swapins, name: impl Fn(usize) -> String) -> Swapins {
        let others = [&shared.from_cache, &shared.from_zswap, &shared.without_fault];
        let [from_cache, from_zswap, without_fault] = grown(others, &mut self.others);
        let by_number = grown(shared.from_device.each_ref(), &mut self.from_device);
        let mut from_device = BTreeMap::new();
        for (number, count) in by_number.into_iter().enumerate().filter(|(_, count)| *count > 0) {
            *from_device.entry(name(number)).or_default() += count;
        }
        Swapins { from_cache, from_zswap, from_device, without_fault }
    }
}
