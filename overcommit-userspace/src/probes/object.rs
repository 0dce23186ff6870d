//! Loads the eBPF object that the binary carries.

use crate::kernel::{self, IOCTL};
use crate::probes::kvm::Exits;
use crate::probes::{Kernel, NR_SWAPFILES, SWAP_INFO};
use anyhow::{Result, anyhow};
use aya::maps::{Map, MapError};
use aya::{Ebpf, EbpfError, EbpfLoader, include_bytes_aligned};
use nix::errno::Errno;
use overcommit_ebpf::layout::{
    ATTEMPTS, BLOCK_CHUNKS, DROPPING, EVICTED, EVICTIONS_PER_VM, Metric, OWN_EVICTIONS,
    POOLED_AT_LEAST, POOLED_PER_VM, STACKS, WRITTEN,
};

/// The programs, as `cargo xtask build-ebpf` made them.
pub(super) static OBJECT: &[u8] = include_bytes_aligned!(env!("OVERCOMMIT_EBPF_OBJECT"));

/// Chunks for each VM that may be busy: ten in each of two dozen histograms. Where most VMs of a
/// host have fewer, the others may have more.
const CHUNKS_PER_VM: u32 = 256;
/// Blocks of chunks beyond those.
const SPARE_BLOCKS: u32 = 64;

/// How large the maps are, and what the programs do beside counting.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// VMs at a time.
    pub vms: u32,
    /// Those that are known to be recorded from the start.
    pub running: u32,
    /// Those among them that may be busy: of others little comes.
    pub busy_vms: u32,
    /// Threads of VMs that fault, at a time.
    pub threads: u32,
    /// Numbers that CPUs of the kernel can have.
    pub cpus: u32,
    /// Bytes of the ring buffer of slow faults: a power of two, whole pages.
    pub slow_bytes: u32,
    /// Latency from which a fault is sent one by one, in nanoseconds.
    pub slow_ns: u64,
    /// Whether hypervisors that start get a slot at once.
    pub follow_exec: bool,
    /// Whether the backend hooks the kernel's functions.
    pub hooks_calls: bool,
    /// Whether threads that sleep in faults are seen.
    pub sees_sleeps: bool,
    /// Which exits of guests are seen.
    pub exits: Exits,
    /// Whether the programs log what they decide.
    pub verbose: bool,
}

impl Sizes {
    /// The least, for trying what the kernel allows.
    pub const TRIAL: Self = Self {
        vms: 1,
        running: 0,
        busy_vms: 1,
        threads: 1,
        cpus: 1,
        slow_bytes: 4096,
        slow_ns: u64::MAX,
        follow_exec: false,
        hooks_calls: false,
        sees_sleeps: false,
        exits: Exits::All,
        verbose: false,
    };

    /// Entries of the eviction matrix that whoever needs one takes; those of each slot's own follow.
    pub const fn shared_evictions(self) -> u32 {
        self.busy_vms * EVICTIONS_PER_VM + self.vms
    }

    /// All of them.
    pub const fn evictions(self) -> u32 {
        self.shared_evictions() + self.vms * OWN_EVICTIONS
    }

    /// Histograms that not every VM needs.
    pub const fn pooled(self) -> u32 {
        self.busy_vms * POOLED_PER_VM + self.vms * POOLED_AT_LEAST
    }

    /// Where they begin among all histograms.
    pub const fn pool_at(self) -> u32 {
        self.vms * Metric::COUNT as u32
    }

    /// Stacks of those who sleep in slow faults.
    const fn stacks(self) -> u32 {
        if self.slow_ns == u64::MAX { 1 } else { STACKS }
    }

    /// Folios whose aggressors are remembered, for slow faults: where functions tell of
    /// swap-ins.
    const fn evicted(self) -> u32 {
        if self.stacks() > 1 && self.hooks_calls { EVICTED } else { 1 }
    }

    /// Entries of a map that only programs on the kernel's functions fill.
    const fn by_functions(self, entries: u32) -> u32 {
        if self.hooks_calls { entries } else { 1 }
    }

    /// All histograms.
    pub const fn histograms(self) -> u32 {
        self.pool_at() + self.pooled()
    }

    /// Entries of each map whose size is not in the object.
    pub const fn entries(self) -> [(&'static str, u32); 24] {
        [
            ("MMS", self.vms),
            ("TGIDS", self.vms),
            ("CGROUPS", self.vms),
            ("EVICTION_INDEX", self.shared_evictions()),
            ("EVICTIONS", self.evictions()),
            ("FREE_EVICTIONS", self.shared_evictions()),
            ("FREE_VMS", self.vms),
            ("VMS", self.vms),
            ("WRITTEN", self.by_functions(WRITTEN)),
            ("DROPPING", self.by_functions(DROPPING)),
            ("ATTEMPTS", self.by_functions(ATTEMPTS)),
            ("HISTOGRAMS", self.histograms()),
            ("BLOCKS", self.blocks()),
            ("FREE_CHUNKS", self.blocks() * BLOCK_CHUNKS),
            ("POOLED", self.pooled()),
            ("POOL_OWNERS", self.pooled()),
            ("FREE_POOLED", self.pooled()),
            ("TIDS", self.threads),
            ("FREE_THREADS", self.threads),
            ("THREADS", self.threads),
            ("CPUS", self.cpus),
            ("SLOW", self.slow_bytes),
            ("STACKS", self.stacks()),
            ("EVICTED", self.evicted()),
        ]
    }

    /// Blocks of chunks that there can be: a quarter of a MiB for a busy VM.
    pub const fn blocks(self) -> u32 {
        (self.busy_vms * CHUNKS_PER_VM).div_ceil(BLOCK_CHUNKS) + SPARE_BLOCKS
    }
}

/// Creates the maps and readies the programs for loading.
///
/// # Errors
/// The kernel lacks a field, or refuses a map.
pub fn load(kernel: &Kernel, sizes: Sizes) -> Result<Ebpf> {
    let Kernel { layout, symbols, .. } = kernel;
    let address = |name| symbols.address(name).unwrap_or(0);
    let (nr_swapfiles, swap_info) = (address(NR_SWAPFILES), address(SWAP_INFO));
    let zswap_loaded = layout.zswap_loaded;
    let swap_entry = layout.swap_entry.pack();
    let offsets = layout.offsets()?.words();
    let folio_offsets = layout.folio_offsets().unwrap_or_default().words();
    let log_level: u8 = if sizes.verbose { u8::MAX } else { 0 };
    let page_size = kernel::page_size();
    let follow_exec = u8::from(sizes.follow_exec);
    let mut loader = EbpfLoader::new();
    for (map, entries) in sizes.entries() {
        loader.map_max_entries(map, entries);
    }
    loader
        .override_global("OFFSETS", &offsets[..], true)
        .override_global("FOLIO_OFFSETS", &folio_offsets[..], true)
        .override_global("IOCTL", &IOCTL, true)
        .override_global("STORES_IN_ORDER", &u8::from(cfg!(target_arch = "x86_64")), true)
        .override_global("SLOW_NS", &sizes.slow_ns, true)
        .override_global("HOST_PAGE", &page_size, true)
        .override_global("FOLLOW_EXEC", &follow_exec, true)
        .override_global("NR_SWAPFILES_AT", &nr_swapfiles, true)
        .override_global("SWAP_INFO_AT", &swap_info, true)
        .override_global("SWAP_ENTRY", &swap_entry, true)
        .override_global("ZSWAP_LOADED", &zswap_loaded, true)
        .override_global("SEES_DROPS", &u8::from(sizes.hooks_calls), true)
        .override_global("BEGINS_AT_CALL", &u8::from(sizes.hooks_calls), true)
        .override_global("ONLY_MEMORY_EXITS", &u8::from(sizes.exits == Exits::Memory), true)
        .override_global("TAKES_AGGRESSORS", &u8::from(sizes.evicted() > 1), true)
        .override_global("TAKES_STACKS", &u8::from(sizes.stacks() > 1), true)
        .override_global("EVICTIONS_AT", &sizes.shared_evictions(), true)
        .override_global("POOL_AT", &sizes.pool_at(), true)
        .override_global("AYA_LOG_LEVEL", &log_level, false)
        .load(OBJECT)
        .map_err(refused)
}

/// Takes a map out of the object.
///
/// # Errors
/// It has none of that name.
pub fn take(ebpf: &mut Ebpf, name: &str) -> Result<Map> {
    ebpf.take_map(name).ok_or_else(|| anyhow!("the eBPF object has no map {name}"))
}

/// The deepest stack that the kernel takes, and the depth of `STACKS`, which it refuses if
/// that is deeper (`stack_map_alloc`, kernel/bpf/stackmap.c).
const STACK_DEPTH: (&str, u32) = ("/proc/sys/kernel/perf_event_max_stack", 127);

/// MiB that a recording of few VMs takes at the most, which is when it begins.
const NEEDED: u32 = 64;

/// What the kernel refuses, why, and what to set where that is known.
pub(super) fn refused(error: EbpfError) -> anyhow::Error {
    let EbpfError::MapError(MapError::CreateError { name, io_error }) = error else {
        return anyhow::Error::new(error).context("the kernel refuses the eBPF programs");
    };
    if io_error.raw_os_error() == Some(Errno::ENOMEM as i32) {
        return anyhow!(
            "no memory for the eBPF map {name}: overcommit takes {NEEDED} MiB, and more where many VMs \
             run; raise the limit of the memory cgroup that it runs in, if it has one"
        );
    }
    let (setting, depth) = STACK_DEPTH;
    let deepest = std::fs::read_to_string(setting).ok().and_then(|text| text.trim().parse().ok());
    let why = match deepest.filter(|deepest: &u32| name == "STACKS" && *deepest < depth) {
        Some(deepest) => format!(": {setting} is {deepest}, and has to be {depth} or more"),
        None => String::new(),
    };
    anyhow::Error::new(io_error).context(format!("the kernel refuses the eBPF map {name}{why}"))
}
