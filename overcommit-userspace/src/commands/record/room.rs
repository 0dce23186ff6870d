//! How much of a disk a recording may take: it ends while its summary still has room.

use crate::session::run::Taken;
use anyhow::{Context, Result};
use nix::sys::statvfs::fstatvfs;
use overcommit_recording::model::run::{Run, StoppedBy};
use overcommit_recording::recording::{Folder, Writer};
use std::fs::File;
use std::ops::ControlFlow;

/// Bytes that a summary takes with its page, at the most, and with the distributions of each VM.
const SUMMARY: u64 = 1_500_000;
const SUMMARY_OF_VM: u64 = 100_000;
/// Parts of what there is that are kept for the summary at the most.
const PART: u64 = 4;
const PART_OF_MOST: u64 = 2;

/// What a recording may take.
pub(in crate::commands) struct Room {
    folder: File,
    /// `--max-size`, in bytes.
    most: Option<u64>,
    /// Free on the disk when it began, in bytes.
    free: u64,
}

impl Room {
    /// On the disk of its folder, and no more than that many bytes.
    ///
    /// # Errors
    /// The disk does not say how much of it is free.
    pub(in crate::commands) fn new(folder: &Folder, most: Option<u64>) -> Result<Self> {
        let descriptor = folder.descriptor();
        let descriptor = descriptor.with_context(|| format!("{}", folder.path().display()))?;
        Ok(Self { free: free(&descriptor)?, folder: descriptor, most })
    }

    /// Whether a recording goes on.
    pub(in crate::commands) fn goes_on(&self, writer: &Writer, run: &Run) -> Taken {
        let full = self.end(writer.written(), run.vms.len());
        Ok(full.map_or(ControlFlow::Continue(()), ControlFlow::Break))
    }

    /// Why a recording of so many VMs is to end now that its logs have that many bytes, if so.
    fn end(&self, written: u64, vms: usize) -> Option<StoppedBy> {
        let summary = SUMMARY + SUMMARY_OF_VM * vms as u64;
        let is_full = |most: u64| written >= most - summary.min(most / PART_OF_MOST);
        if self.most.is_some_and(is_full) {
            return Some(StoppedBy::MaxSize);
        }
        // One that does not say it any more is told of by the next write.
        let free = free(&self.folder).unwrap_or(self.free);
        (free < summary.min(self.free / PART)).then_some(StoppedBy::DiskFull)
    }
}

/// What whoever is not root may still write to the disk, in bytes.
fn free(folder: &File) -> Result<u64> {
    let disk = fstatvfs(folder).context("cannot read how much of the disk is free")?;
    Ok(disk.blocks_available().saturating_mul(disk.fragment_size()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_has_room() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::create(&dir.path().join("run"), None).unwrap();
        let room = |most| Room::new(&folder, Some(most)).unwrap();
        let large = room(100_000_000);
        assert_eq!(large.end(98_000_000, 2), None);
        assert_eq!(large.end(98_300_000, 2), Some(StoppedBy::MaxSize));
        // Of a small one no more than half.
        assert_eq!(room(1_000_000).end(499_999, 100), None);
        assert_eq!(room(1_000_000).end(500_000, 100), Some(StoppedBy::MaxSize));
        let nearly = Room { free: u64::MAX, ..Room::new(&folder, None).unwrap() };
        assert_eq!(nearly.end(0, usize::MAX / 1_000_000), Some(StoppedBy::DiskFull));
    }
}
