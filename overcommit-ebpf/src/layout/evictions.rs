//! Who takes pages of whom.

use crate::layout::zero;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

/// Who takes pages of whom: finds an entry of the eviction matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct EvictionKey {
    /// Slot of the VM whose cgroup the pages are charged to; [`NOBODY`] for any other.
    pub victim: u32,
    /// An [`AggressorKind`].
    pub kind: u32,
    /// A VM's slot, a process's id; of the kernel's threads their own id, 0 for all its
    /// workers.
    pub by: u32,
    /// Explicit padding.
    pub reserved: u32,
}

/// In [`EvictionKey::victim`]: memory that is no VM's, or of a VM that shares its cgroup.
pub const NOBODY: u32 = u32::MAX;

/// Entries of the eviction matrix that a host has for each busy VM, beside one for each slot. Whoever
/// needs one takes it.
pub const EVICTIONS_PER_VM: u32 = 16;

/// Entries that each slot has of its own, behind those: what was taken of the VM while the others were
/// in use, and what the VM took of [`NOBODY`].
pub const OWN_EVICTIONS: u32 = 2;

/// On whose behalf reclaim runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum AggressorKind {
    /// A VM's thread, or a worker in a fault of its memory.
    Vm = 0,
    /// Another process.
    Process = 1,
    /// A thread of the kernel.
    Kernel = 2,
    /// Anybody, while every entry was in use.
    Others = 3,
}

impl AggressorKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Vm, Self::Process, Self::Kernel, Self::Others];
}

/// Who evicted a page, in a word that is not 0: the kind, and a process's id, or that of a
/// thread of the kernel; 0 for all its workers.
pub const fn pack_aggressor(kind: AggressorKind, id: u32) -> u64 {
    (kind as u64 + 1) << 56 | id as u64
}

/// The kind and the id in such a word; `None` if nobody is in it.
pub fn unpack_aggressor(aggressor: u64) -> Option<(AggressorKind, u32)> {
    let number = (aggressor >> 56).checked_sub(1)?;
    let kind = AggressorKind::ALL.into_iter().find(|kind| *kind as u64 == number)?;
    Some((kind, aggressor as u32))
}

/// A folio that was handed to swap, filed under its swap entry.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Evicted {
    /// `CLOCK_MONOTONIC` of that, in nanoseconds.
    pub at_ns: u64,
    /// See [`pack_aggressor`].
    pub aggressor: u64,
    /// Its pages, which have the entries that follow.
    pub pages: u64,
}

/// Folios that were handed to swap and are not dropped yet.
pub const WRITTEN: u32 = 1 << 16;

/// Threads that drop a folio at the same time.
pub const DROPPING: u32 = 1 << 12;

/// Folios whose aggressors are remembered.
pub const EVICTED: u32 = 1 << 18;

/// One entry of the eviction matrix.
#[repr(C)]
pub struct Eviction {
    /// [`EvictionKey::victim`] (upper half) and [`EvictionKey::kind`].
    pub victim_kind: AtomicU64,
    /// [`EvictionKey::by`] plus 1; 0 in a free entry. Written last.
    pub by: AtomicU64,
    /// Name of the thread that was first, ended by NUL, in memory order.
    pub name: [AtomicU64; 2],
    /// Folios handed to swap.
    pub written_folios: AtomicU64,
    /// Their pages.
    pub written_pages: AtomicU64,
    /// Folios dropped that had not just been written.
    pub dropped_folios: AtomicU64,
    /// Their pages.
    pub dropped_pages: AtomicU64,
}

impl Eviction {
    /// The key by which it is found; `None` of a free entry.
    pub fn key(&self) -> Option<EvictionKey> {
        let by = self.by.load(Relaxed).checked_sub(1)?;
        let victim_kind = self.victim_kind.load(Relaxed);
        let victim = (victim_kind >> 32) as u32;
        Some(EvictionKey { victim, kind: victim_kind as u32, by: by as u32, reserved: 0 })
    }

    /// Makes it a free entry.
    pub fn clear(&self) {
        zero(&[&self.by, &self.victim_kind]);
        zero(&self.name);
        zero(&[&self.written_folios, &self.written_pages]);
        zero(&[&self.dropped_folios, &self.dropped_pages]);
    }
}

const _: () = {
    assert!(size_of::<EvictionKey>() == 16);
    assert!(size_of::<Eviction>() == 64);
};
