//! What the programs take, made ready before there is a VM: that is tens of thousands of system calls, and
//! waits for grace periods of RCU, beside which the kernel can verify programs.

use crate::probes::chunks::Chunks;
use crate::probes::object::{self, Sizes};
use crate::probes::slots::WANTED_AT_ONCE;
use anyhow::{Context, Result};
use aya::Ebpf;
use aya::maps::{MapData, Queue};

/// A list from which the programs take numbers, and to which they are given back.
pub type FreeList = Queue<MapData, u32>;

/// What is free at the start, and where histograms lie.
pub struct Supplies {
    /// Numbers of what is taken.
    pub free: FreeLists,
    /// Room for buckets.
    pub chunks: Chunks,
}

impl Supplies {
    /// Takes the maps out of the object. There is nothing in them yet.
    ///
    /// # Errors
    /// The object has no such map, or the kernel refuses to map one.
    pub fn open(ebpf: &mut Ebpf, sizes: Sizes) -> Result<Self> {
        let lists = FreeLists {
            vms: open(ebpf, "FREE_VMS")?,
            threads: open(ebpf, "FREE_THREADS")?,
            pooled: open(ebpf, "FREE_POOLED")?,
            evictions: open(ebpf, "FREE_EVICTIONS")?,
        };
        Ok(Self { free: lists, chunks: Chunks::open(ebpf, sizes)? })
    }

    /// Makes all of it ready, for the VMs that run.
    ///
    /// # Errors
    /// The kernel refuses something, or has no memory for it.
    pub fn fill(&mut self, sizes: Sizes) -> Result<()> {
        self.free.fill(sizes)?;
        match (sizes.running as usize).min(WANTED_AT_ONCE) {
            0 => Ok(()),
            new => self.chunks.top_up(0, new),
        }
    }
}

/// The lists that are full at the start: of each slot, thread's entry, place in the pool and entry of the
/// eviction matrix.
pub struct FreeLists {
    /// Of `VMS`.
    pub vms: FreeList,
    /// Of `THREADS`.
    pub threads: FreeList,
    /// Of the pool.
    pub pooled: FreeList,
    /// Of `EVICTIONS`.
    pub evictions: FreeList,
}

impl FreeLists {
    fn fill(&mut self, sizes: Sizes) -> Result<()> {
        let Self { vms, threads, pooled, evictions } = self;
        for (list, entries, what) in [
            (vms, sizes.vms, "slots"),
            (threads, sizes.threads, "threads"),
            (pooled, sizes.pooled(), "histograms"),
            (evictions, sizes.shared_evictions(), "evictions"),
        ] {
            for entry in 0..entries {
                let pushed = list.push(entry, 0);
                pushed.with_context(|| format!("cannot fill the list of free {what}"))?;
            }
        }
        Ok(())
    }
}

/// One of them, by the name of its map.
///
/// # Errors
/// The object has no such map.
pub fn open(ebpf: &mut Ebpf, name: &str) -> Result<FreeList> {
    Ok(Queue::try_from(object::take(ebpf, name)?)?)
}
