//! How much memory of the kernel the maps take: it cannot be swapped out, on a host that is short
//! of memory.

use crate::kernel::page_size;
use crate::probes::chunks::blocks_at_start;
use crate::probes::fdinfo::field;
use crate::probes::object::{OBJECT, Sizes};
use anyhow::{Context, Result};
use aya_obj::generated::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, bpf_map_type};
use aya_obj::{Map, Object};
use overcommit_ebpf::layout::{BLOCK_CHUNKS, Chunk};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;

/// Bytes of an element of a hash beside its key and value (`struct htab_elem`,
/// kernel/bpf/hashtab.c), and of a bucket.
const ELEMENT: u64 = 48;
const BUCKET: u64 = 16;
/// Bytes of a stack beside its addresses (`struct stack_map_bucket`, kernel/bpf/stackmap.c).
const STACK: u64 = 16;
/// Pages of a ring buffer beside its data (kernel/bpf/ringbuf.c).
const RING_PAGES: u64 = 3;

/// Bytes of all maps of which this process has descriptors, as the kernel accounts for them
/// (`bpf_map_show_fdinfo`, kernel/bpf/syscall.c); computed before 6.4, which left out much.
pub(super) fn of_open_maps(sizes: Sizes) -> u64 {
    let open = fs::read_dir("/proc/self/fdinfo").into_iter().flatten().flatten();
    let told = open.filter_map(|fd| fs::read_to_string(fd.path()).ok());
    let maps = told.filter(|text| text.contains("\nmap_type:"));
    let each: BTreeMap<u64, u64> = maps
        .filter_map(|text| Some((field(&text, "map_id:")?, field(&text, "memlock:")?)))
        .collect();
    // A ring buffer took nothing then (`bpf_map_memory_footprint`).
    if each.values().any(|bytes| *bytes == 0) {
        return of_maps(sizes).unwrap_or(0);
    }
    each.values().sum()
}

/// Bytes that all maps of these sizes take, without the blocks of chunks that are made as VMs need
/// them: about as the kernel accounts for them (`map_mem_usage` of each type, 6.4 and later).
///
/// # Errors
/// The object that the binary carries cannot be read.
fn of_maps(sizes: Sizes) -> Result<u64> {
    let object = Object::parse(OBJECT).context("the eBPF object cannot be read")?;
    let entries = sizes.entries();
    let bytes = object.maps.iter().map(|(name, map)| {
        let own = entries.iter().find(|(of, _)| of == name).map(|(_, entries)| *entries);
        of_map(map, own.unwrap_or(map.max_entries()), sizes.cpus)
    });
    Ok(bytes.sum())
}

/// What recording takes of the kernel's memory, in bytes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct KernelMemory {
    /// When it begins.
    pub start_bytes: u64,
    /// Where every VM has latencies of every kind, without `--slow-faults`.
    pub most_bytes: u64,
}

impl KernelMemory {
    /// Of a recording of so many VMs.
    ///
    /// # Errors
    /// See [`of_maps`].
    pub fn for_vms(sizes: Sizes, vms: usize) -> Result<Self> {
        let maps = of_maps(sizes)?;
        Ok(Self {
            start_bytes: maps + blocks_at_start(vms).min(sizes.blocks().into()) * of_block(),
            most_bytes: maps + u64::from(sizes.blocks()) * of_block(),
        })
    }
}

/// Bytes of a block of chunks.
pub(super) fn of_block() -> u64 {
    u64::from(BLOCK_CHUNKS) * size_of::<Chunk>() as u64 + page_size()
}

fn of_map(map: &Map, entries: u32, cpus: u32) -> u64 {
    let [entries, cpus] = [entries, cpus].map(u64::from);
    let [key, value] =
        [map.key_size(), map.value_size()].map(|size| u64::from(size).next_multiple_of(8));
    let is = |kind: bpf_map_type| map.map_type() == kind as u32;
    if is(bpf_map_type::BPF_MAP_TYPE_HASH) || is(bpf_map_type::BPF_MAP_TYPE_LRU_HASH) {
        let buckets = entries.next_power_of_two() * BUCKET;
        let is_ready = map.map_flags() & BPF_F_NO_PREALLOC == 0;
        // One for each CPU is in hand.
        let in_hand = if is(bpf_map_type::BPF_MAP_TYPE_HASH) { cpus } else { 0 };
        let elements = if is_ready { entries + in_hand } else { 0 };
        buckets + elements * (ELEMENT + key + value)
    } else if is(bpf_map_type::BPF_MAP_TYPE_QUEUE) {
        (entries + 1) * u64::from(map.value_size())
    } else if is(bpf_map_type::BPF_MAP_TYPE_RINGBUF) {
        entries + RING_PAGES * page_size()
    } else if is(bpf_map_type::BPF_MAP_TYPE_STACK_TRACE) {
        entries.next_power_of_two() * 8 + entries * (STACK + value)
    } else if is(bpf_map_type::BPF_MAP_TYPE_PERCPU_ARRAY) {
        entries * value * cpus
    } else if is(bpf_map_type::BPF_MAP_TYPE_ARRAY_OF_MAPS) {
        entries * 8
    } else {
        let bytes = entries * value;
        let is_mapped = map.map_flags() & BPF_F_MMAPABLE != 0;
        if is_mapped { bytes.next_multiple_of(page_size()) + page_size() } else { bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(vms: u32, cpus: u32) -> Sizes {
        Sizes { vms, busy_vms: vms, threads: 16_384, cpus, hooks_calls: true, ..Sizes::TRIAL }
    }

    #[test]
    fn memory_grows_with_vms_and_hardly_with_cpus() {
        let of = |vms, cpus| of_maps(sizes(vms, cpus)).unwrap();
        let (few, many) = (of(1, 2), of(500, 2));
        assert!(few > 1 << 20 && many > few && many < 64 << 20, "{few} and {many}");
        assert!(of(500, 256) - many < 1 << 20);
    }

    #[test]
    fn each_type_is_accounted_for() {
        let map = |kind: bpf_map_type, key, value, flags| {
            Map::new_from_params(kind as u32, key, value, 1000, flags)
        };
        use bpf_map_type as of;
        for (map, bytes) in [
            (map(of::BPF_MAP_TYPE_ARRAY, 4, 12, 0), 16_000),
            (map(of::BPF_MAP_TYPE_ARRAY, 4, 8, BPF_F_MMAPABLE), 8_192 + 4_096),
            (map(of::BPF_MAP_TYPE_HASH, 4, 4, 0), 1024 * 16 + 1002 * 64),
            (map(of::BPF_MAP_TYPE_LRU_HASH, 16, 8, 0), 1024 * 16 + 1000 * 72),
            (map(of::BPF_MAP_TYPE_HASH, 4, 4, BPF_F_NO_PREALLOC), 1024 * 16),
            (map(of::BPF_MAP_TYPE_QUEUE, 0, 4, 0), 4_004),
        ] {
            assert_eq!(of_map(&map, 1000, 2), bytes, "{map:?}");
        }
    }
}
