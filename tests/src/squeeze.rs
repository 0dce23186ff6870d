//! Too little memory for a VM.

use crate::host::{MemoryCgroup, Setting};
use crate::qemu::{Config, Vm};
use crate::record::Recording;
use crate::results::{faults_agree, vm};
use crate::swap::ZramSwap;
use anyhow::Result;
use serde_json::Value;
use std::path::{Path, PathBuf};

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

    /// A VM in it that waits for its start, and its recording in that folder.
    ///
    /// # Errors
    /// QEMU or the recorder does not start.
    pub fn recorded(&self, folder: &Path) -> Result<Recorded> {
        let guest = Vm::start(&Config { stopped: true, ..self.config(NAME) })?;
        let recording = Recording::start(folder, [""; 0])?;
        let before = guest.faults()?;
        Ok(Recorded { guest, recording, before })
    }
}

/// What a VM that is recorded is called.
const NAME: &str = "squeezed";

/// A VM of a [`Squeeze`], recorded from its first fault on.
pub struct Recorded {
    /// The VM.
    pub guest: Vm,
    /// Its recording.
    pub recording: Recording,
    before: [u64; 2],
}

impl Recorded {
    /// Ends the recording: its folder, and what it says of the VM.
    ///
    /// # Errors
    /// It counted other faults than the kernel.
    pub fn end(mut self) -> Result<(PathBuf, Value)> {
        self.guest.stop()?;
        let folder = self.recording.end()?;
        let summary = vm(&folder, NAME)?;
        faults_agree(NAME, &summary, self.before, self.guest.faults()?)?;
        Ok((folder, summary))
    }
}
