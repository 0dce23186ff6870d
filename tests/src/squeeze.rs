//! Too little memory for a VM.

use crate::host::{MemoryCgroup, Setting, ZramSwap};
use crate::qemu::Config;
use anyhow::Result;

/// MiB that a squeezed guest walks, and may hold.
const WALK: u64 = 64;
const LIMIT: u64 = 48;

/// A memory cgroup that swaps to compressed memory, page by page.
pub struct Squeeze {
    cgroup: MemoryCgroup,
    _swap: ZramSwap,
    _settings: [Setting; 2],
}

impl Squeeze {
    /// For one VM.
    ///
    /// # Errors
    /// The host has no memory controller or zram, or refuses.
    pub fn new() -> Result<Self> {
        let settings = [Setting::small_pages()?, Setting::no_readahead()?];
        let cgroup = MemoryCgroup::new("lab")?;
        let swap = ZramSwap::new(512)?;
        cgroup.limit(LIMIT)?;
        Ok(Self { cgroup, _swap: swap, _settings: settings })
    }

    /// A VM in it.
    pub fn config<'a>(&'a self, name: &'a str) -> Config<'a> {
        Config { cgroup: Some(&self.cgroup), ..Config::new(name, WALK) }
    }
}
