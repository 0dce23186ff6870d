//! The maps. Sizes marked "loader" are set when the object is loaded.

use crate::atomic::add;
use crate::free::LISTS;
use aya_ebpf::Global;
use aya_ebpf::bindings::bpf_map_type::BPF_MAP_TYPE_ARRAY;
use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::btf_maps::ArrayOfMaps;
use aya_ebpf::helpers::generated::bpf_map_lookup_elem;
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{Array, HashMap, LruHashMap, Queue, RingBuf, StackTrace};
use core::ptr;
use overcommit_ebpf::layout::{
    BLOCK_CHUNKS, Chunk, Cpu, Evicted, Eviction, EvictionKey, FolioOffsets, Histogram,
    KernelOffsets, KvmFields, Loss, Metric, SWAP_DEVICES_MAX, Stock, SwapDevice, Thread, Vm, Word,
};

/// `mm_struct` address → slot. The filter of every fault on the host, where the CPU does not know
/// it.
#[map]
pub(crate) static MMS: HashMap<u64, u32> = HashMap::with_max_entries(1 /* loader */, 0);

/// Counts VMs that come, each after it is in [`MMS`]; one entry.
#[map]
pub(crate) static MMS_CHANGES: Array<Word> = Array::with_max_entries(1, 0);

/// Threads that wait for a VM's `mmap_lock`, as the tracepoints of locks have it; one entry.
#[map]
pub(crate) static LOCK_WAITS: Array<Word> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Process id → slot, for exec and exit.
#[map]
pub(crate) static TGIDS: HashMap<u32, u32> = HashMap::with_max_entries(1 /* loader */, 0);

/// Id of a memory cgroup → slot of the VM that it is of.
#[map]
pub(crate) static CGROUPS: HashMap<u64, u32> = HashMap::with_max_entries(1 /* loader */, 0);

/// Who takes pages of whom → entry of [`EVICTIONS`].
#[map]
pub(crate) static EVICTION_INDEX: HashMap<EvictionKey, u32> =
    HashMap::with_max_entries(1 /* loader */, 0);

/// The eviction matrix.
#[map]
pub(crate) static EVICTIONS: Array<Eviction> =
    Array::with_max_entries(1 /* loader */, BPF_F_MMAPABLE);

/// Entries of [`EVICTIONS`] that are free.
#[map]
pub(crate) static FREE_EVICTIONS: Queue<u32> = Queue::with_max_entries(1 /* loader */, 0);

/// Address of a folio that was handed to swap, until it is dropped. What is never
/// dropped makes way for what comes.
#[map]
pub(crate) static WRITTEN: LruHashMap<u64, u8> =
    LruHashMap::with_max_entries(1 /* loader */, 0);

/// Thread id → the folio that it is about to drop: its address, then its entry of
/// [`EVICTIONS`] (upper half) and its pages, then its swap entry if it has one.
#[map]
pub(crate) static DROPPING: LruHashMap<u32, [u64; 3]> =
    LruHashMap::with_max_entries(1 /* loader */, 0);

/// Swap entry → the folio that got it last, and its pages the entries that follow. What
/// was evicted longest ago makes way for what comes.
#[map]
pub(crate) static EVICTED: LruHashMap<u64, Evicted> =
    LruHashMap::with_max_entries(1 /* loader */, 0);

/// Process ids that the loader wants a slot for.
#[map]
pub(crate) static WANTED: HashMap<u32, u32> = HashMap::with_max_entries(1024, BPF_F_NO_PREALLOC);

/// Slots that no VM has.
#[map]
pub(crate) static FREE_VMS: Queue<u32> = Queue::with_max_entries(1 /* loader */, 0);

/// Slot → VM.
#[map]
pub(crate) static VMS: Array<Vm> = Array::with_max_entries(1 /* loader */, BPF_F_MMAPABLE);

/// Slot × [`Metric::COUNT`] + metric → latencies; behind them the pool.
#[map]
pub(crate) static HISTOGRAMS: Array<Histogram> =
    Array::with_max_entries(1 /* loader */, BPF_F_MMAPABLE);

/// What a block is, spelled for the loader, which reads it off the type: an array of chunks. The types
/// of its key and value are left out. Blocks that are made later have none, and on Linux 6.1 all have
/// to agree in that (`bpf_map_meta_equal`, kernel/bpf/map_in_map.c, by `timer_off`).
#[repr(C)]
pub(crate) struct Block {
    r#type: *const [i32; BPF_MAP_TYPE_ARRAY as usize],
    key_size: *const [i32; size_of::<u32>()],
    value_size: *const [i32; size_of::<Chunk>()],
    max_entries: *const [i32; BLOCK_CHUNKS as usize],
    map_flags: *const [i32; BPF_F_MMAPABLE as usize],
}

/// Number of a chunk / [`BLOCK_CHUNKS`] → the block that it is in, once the loader has made it.
#[btf_map]
pub(crate) static BLOCKS: ArrayOfMaps<Block, 1 /* loader */> = ArrayOfMaps::new();

/// Chunks that no histogram has.
#[map]
pub(crate) static FREE_CHUNKS: Queue<u32> = Queue::with_max_entries(1 /* loader */, 0);

/// How many those are; one entry.
#[map]
pub(crate) static STOCK: Array<Stock> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Slot (upper half) and [`exit_key`](overcommit_ebpf::layout::exit_key) or
/// [`fault_key`](overcommit_ebpf::layout::fault_key) → its place in the pool.
#[map]
pub(crate) static POOLED: HashMap<u64, u32> = HashMap::with_max_entries(1 /* loader */, 0);

/// Place in the pool → key in [`POOLED`] plus 1; 0 for one that no VM has.
#[map]
pub(crate) static POOL_OWNERS: Array<Word> =
    Array::with_max_entries(1 /* loader */, BPF_F_MMAPABLE);

/// Places in the pool that no VM has.
#[map]
pub(crate) static FREE_POOLED: Queue<u32> = Queue::with_max_entries(1 /* loader */, 0);

/// Thread id (upper half) and token → `CLOCK_MONOTONIC` at which the asynchronous
/// page fault began. What is never reported ready makes way for what comes.
#[map]
pub(crate) static APFS: LruHashMap<u64, u64> = LruHashMap::with_max_entries(16_384, 0);

/// Address of an `mm_struct` and number of a page in it → how a call that did not wait began to
/// read that page. What nobody waits for makes way for what comes.
#[map]
pub(crate) static ATTEMPTS: LruHashMap<[u64; 2], u64> =
    LruHashMap::with_max_entries(1 /* loader */, 0);

/// Swap devices by number.
#[map]
pub(crate) static SWAP_DEVICES: Array<SwapDevice> =
    Array::with_max_entries(SWAP_DEVICES_MAX as u32, BPF_F_MMAPABLE);

/// Where KVM's records keep their fields; one entry.
#[map]
pub(crate) static KVM_FIELDS: Array<KvmFields> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Thread id → entry of [`THREADS`].
#[map]
pub(crate) static TIDS: HashMap<u32, u32> = HashMap::with_max_entries(1 /* loader */, 0);

/// Entries of [`THREADS`] that no thread has.
#[map]
pub(crate) static FREE_THREADS: Queue<u32> = Queue::with_max_entries(1 /* loader */, 0);

/// [`FreeList`](crate::free::FreeList) → `CLOCK_MONOTONIC` until which it is not looked at, because it
/// was empty.
#[map]
pub(crate) static EMPTY_UNTIL: Array<Word> = Array::with_max_entries(LISTS, 0);

/// Threads that have faulted in a VM's memory.
#[map]
pub(crate) static THREADS: Array<Thread> =
    Array::with_max_entries(1 /* loader */, BPF_F_MMAPABLE);

/// CPU → its counters, and what it looked up last.
#[map]
pub(crate) static CPUS: Array<Cpu> = Array::with_max_entries(1 /* loader */, BPF_F_MMAPABLE);

/// VMs that start and end, and chunks that run low.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 16, 0);

/// Faults of at least [`SLOW_NS`].
#[map]
pub(crate) static SLOW: RingBuf = RingBuf::with_byte_size(4096 /* loader */, 0);

/// Where threads slept in faults.
#[map]
pub(crate) static STACKS: StackTrace = StackTrace::with_max_entries(1 /* loader */, 0);

/// Where the running kernel keeps what.
#[unsafe(no_mangle)]
pub(crate) static OFFSETS: Global<KernelOffsets> = Global::new(KernelOffsets::NONE);

/// Where it keeps what of a folio.
#[unsafe(no_mangle)]
pub(crate) static FOLIO_OFFSETS: Global<FolioOffsets> = Global::new(FolioOffsets::NONE);

/// Latency from which a fault is sent to [`SLOW`], in nanoseconds.
#[unsafe(no_mangle)]
pub(crate) static SLOW_NS: Global<u64> = Global::new(u64::MAX);

/// Bytes of a page of the host.
#[unsafe(no_mangle)]
pub(crate) static HOST_PAGE: Global<u64> = Global::new(0);

/// Whether the stacks of those who sleep in faults are taken.
#[unsafe(no_mangle)]
pub(crate) static TAKES_STACKS: Global<u8> = Global::new(0);

/// Whether it is remembered who evicted what.
#[unsafe(no_mangle)]
pub(crate) static TAKES_AGGRESSORS: Global<u8> = Global::new(0);

/// Whether the backend begins a fault where `handle_mm_fault` is called, so that the wait
/// for the lock before it is to be added.
#[unsafe(no_mangle)]
pub(crate) static BEGINS_AT_CALL: Global<u8> = Global::new(0);

/// Whether of exits that are not for memory only the faults in them matter.
#[unsafe(no_mangle)]
pub(crate) static ONLY_MEMORY_EXITS: Global<u8> = Global::new(0);

/// Whether every CPU sees the writes of another in their order, as on x86-64.
#[unsafe(no_mangle)]
pub(crate) static STORES_IN_ORDER: Global<u8> = Global::new(0);

/// Number of the system call `ioctl` on this architecture.
#[unsafe(no_mangle)]
pub(crate) static IOCTL: Global<u32> = Global::new(u32::MAX);

/// Address of `nr_swapfiles` (mm/swapfile.c); 0 if it is not known.
#[unsafe(no_mangle)]
pub(crate) static NR_SWAPFILES_AT: Global<u64> = Global::new(0);

/// Address of `swap_info` (mm/swapfile.c); 0 if it is not known.
#[unsafe(no_mangle)]
pub(crate) static SWAP_INFO_AT: Global<u64> = Global::new(0);

/// How page tables keep an entry of a swapped page, see
/// [`SwapEntry`](overcommit_ebpf::layout::SwapEntry).
#[unsafe(no_mangle)]
pub(crate) static SWAP_ENTRY: Global<u32> = Global::new(0);

/// What zswap's load function returns when it had the page.
#[unsafe(no_mangle)]
pub(crate) static ZSWAP_LOADED: Global<u8> = Global::new(0);

/// Whether dropped folios are counted, so that written ones are to be remembered.
#[unsafe(no_mangle)]
pub(crate) static SEES_DROPS: Global<u8> = Global::new(0);

/// Where the entries of each slot's own begin in [`EVICTIONS`].
#[unsafe(no_mangle)]
pub(crate) static EVICTIONS_AT: Global<u32> = Global::new(0);

/// Where the pool begins in [`HISTOGRAMS`].
#[unsafe(no_mangle)]
pub(crate) static POOL_AT: Global<u32> = Global::new(0);

/// Whether a newly executed hypervisor gets a slot at once.
#[unsafe(no_mangle)]
pub(crate) static FOLLOW_EXEC: Global<u8> = Global::new(0);

/// One of [`OFFSETS`], by its field: to load all of them would take an instruction for each.
macro_rules! offset {
    ($field:ident) => {{
        let place = core::mem::offset_of!(overcommit_ebpf::layout::KernelOffsets, $field);
        $crate::maps::word(&$crate::maps::OFFSETS, place)
    }};
}
pub(crate) use offset;

/// The same of [`FOLIO_OFFSETS`].
macro_rules! folio_offset {
    ($field:ident) => {{
        let place = core::mem::offset_of!(overcommit_ebpf::layout::FolioOffsets, $field);
        $crate::maps::word(&$crate::maps::FOLIO_OFFSETS, place)
    }};
}
pub(crate) use folio_offset;

/// The word at that place of a global, in bytes.
#[inline(always)]
pub(crate) fn word<T>(global: &Global<T>, place: usize) -> u32 {
    // Known to the compiler, of which nothing is left.
    if place + size_of::<u32>() > size_of::<T>() {
        return 0;
    }
    // SAFETY: it lies within the value, which is all that a `Global` is.
    unsafe { ptr::from_ref(global).cast::<u8>().add(place).cast::<u32>().read_volatile() }
}

/// The chunk of that number.
#[inline(always)]
pub(crate) fn chunk(number: u32) -> Option<&'static Chunk> {
    let block = BLOCKS.get(number / BLOCK_CHUNKS)?;
    let key = number % BLOCK_CHUNKS;
    // SAFETY: the helper takes what the lookup in a map of maps gives for a map, and gives an
    // element, which stays for the life of the map.
    unsafe {
        let chunk =
            bpf_map_lookup_elem(ptr::from_ref(block).cast_mut().cast(), ptr::from_ref(&key).cast());
        chunk.cast::<Chunk>().as_ref()
    }
}

/// Counts what could not be measured.
#[inline(always)]
pub(crate) fn lose(vm: &Vm, loss: Loss) {
    add(&vm.lost[loss as usize], 1);
}

/// The histogram of a VM and metric.
#[inline(always)]
pub(crate) fn histogram(slot: u32, metric: Metric) -> Option<&'static Histogram> {
    HISTOGRAMS.get(slot * Metric::COUNT as u32 + metric as u32)
}
