//! The maps that lie in both address spaces: a drain costs no system call, and
//! none that would make the kernel skip a program meanwhile.

use anyhow::{Context, Result, bail};
use aya::Ebpf;
use aya::maps::{Map, MapData};
use memmap2::{MmapOptions, MmapRaw};
use overcommit_ebpf::layout::{
    Chunk, Cpu, Eviction, Histogram, KvmFields, Stock, SwapDevice, Thread, Vm, Word,
};
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// Types of which an array map may be shared.
///
/// # Safety
/// The type consists of atomics alone and any bit pattern is valid.
pub unsafe trait Shared {}
// SAFETY: atomics alone, see `overcommit_ebpf::layout`.
unsafe impl Shared for Histogram {}
// SAFETY: as above.
unsafe impl Shared for Vm {}
// SAFETY: as above.
unsafe impl Shared for Thread {}
// SAFETY: as above.
unsafe impl Shared for Cpu {}
// SAFETY: as above.
unsafe impl Shared for KvmFields {}
// SAFETY: as above.
unsafe impl Shared for SwapDevice {}
// SAFETY: as above.
unsafe impl Shared for Word {}
// SAFETY: as above.
unsafe impl Shared for Eviction {}
// SAFETY: as above.
unsafe impl Shared for Chunk {}
// SAFETY: as above.
unsafe impl Shared for Stock {}

static MAPPED: AtomicU64 = AtomicU64::new(0);

/// Bytes of array maps in this process's memory: all of them are there from the start
/// (`array_map_mmap`, kernel/bpf/arraymap.c), and are the kernel's.
pub fn mapped() -> u64 {
    MAPPED.load(Relaxed)
}

/// An array map in this process's memory.
pub struct SharedArray<T> {
    memory: MmapRaw,
    len: usize,
    elements: PhantomData<T>,
}

impl<T: Shared> SharedArray<T> {
    /// Maps the array map of that name.
    ///
    /// # Errors
    /// The object has no such map, or the kernel refuses to map it.
    pub fn open(ebpf: &mut Ebpf, name: &str, len: u32) -> Result<Self> {
        let Some(Map::Array(map)) = ebpf.take_map(name) else {
            bail!("the eBPF object has no array {name}");
        };
        Self::map(&map, len as usize).with_context(|| format!("cannot map the eBPF array {name}"))
    }

    /// Maps an array map of so many elements.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn map(map: &MapData, len: usize) -> Result<Self> {
        let fd = map.fd().as_fd().as_raw_fd();
        let memory = MmapOptions::new().len(len * size_of::<T>()).map_raw(fd)?;
        MAPPED.fetch_add((len * size_of::<T>()) as u64, Relaxed);
        Ok(Self { memory, len, elements: PhantomData })
    }

    /// How many elements there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// One element.
    pub fn get(&self, index: usize) -> Option<&T> {
        if index >= self.len {
            return None;
        }
        // SAFETY: the mapping holds `len` elements and lives as long as self;
        // `Shared` makes every bit pattern valid and every access atomic.
        Some(unsafe { &*self.memory.as_ptr().cast::<T>().add(index) })
    }

    /// All elements.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        (0..self.len).filter_map(|index| self.get(index))
    }
}
