//! Too little memory for a VM.

use crate::host::{MemoryCgroup, Setting};
use crate::qemu::Config;
use crate::swap::ZramSwap;
use anyhow::Result;

/// MiB that a squeezed guest walks, and may hold.
const WALK: u64 = 64;
const LIMIT: u64 = 48;

/// A memory cgroup that swaps to compressed memory, page by page.
pub struct Squeeze {
    /// Where the limit is.
    pub cgroup: MemoryCgroup,
    swap: ZramSwap,
    _settings: [Setting; 2],
}

impl Squeeze {
    /// For one small VM.
    ///
    /// # Errors
    /// As [`Self::to`].
    pub fn new() -> Result<Self> {
        Self::to(LIMIT)
    }

    /// To that many MiB.
    ///
    /// # Errors
    /// The host has no memory controller or zram, or refuses.
    pub fn to(mebibytes: u64) -> Result<Self> {
        let settings = [Setting::small_pages()?, Setting::no_readahead()?];
        let cgroup = MemoryCgroup::new("squeeze")?;
        let swap = ZramSwap::new(1024)?;
        cgroup.limit(mebibytes)?;
        Ok(Self { cgroup, swap, _settings: settings })
    }

    /// Has all that is swapped brought back.
    ///
    /// # Errors
    /// There is no room for it.
    pub fn swap_off(&self) -> Result<()> {
        self.swap.off()
    }

    /// A VM in it.
    pub fn config<'a>(&'a self, name: &'a str) -> Config<'a> {
        Config { cgroup: Some(&self.cgroup), ..Config::new(name, WALK) }
    }
}
