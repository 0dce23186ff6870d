//! The maps. Sizes marked "loader" are set when the object is loaded.

use crate::atomic::add;
use aya_ebpf::Global;
use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, Queue, RingBuf};
use overcommit_ebpf::layout::{Cpu, Histogram, KernelOffsets, Loss, Metric, Thread, Vm};

/// `mm_struct` address → slot. The filter of every fault on the host.
#[map]
pub(crate) static MMS: HashMap<u64, u32> = HashMap::with_max_entries(1 /* loader */, 0);

/// Process id → slot, for exec and exit.
#[map]
pub(crate) static TGIDS: HashMap<u32, u32> = HashMap::with_max_entries(1 /* loader */, 0);

/// Process ids that the loader wants a slot for.
#[map]
pub(crate) static WANTED: HashMap<u32, u32> = HashMap::with_max_entries(1024, BPF_F_NO_PREALLOC);

/// Slots that no VM has.
#[map]
pub(crate) static FREE_VMS: Queue<u32> = Queue::with_max_entries(1 /* loader */, 0);

/// Slot → VM.
#[map]
pub(crate) static VMS: Array<Vm> = Array::with_max_entries(1 /* loader */, BPF_F_MMAPABLE);

/// Slot × [`Metric::COUNT`] + metric → latencies.
#[map]
pub(crate) static HISTOGRAMS: Array<Histogram> =
    Array::with_max_entries(1 /* loader */, BPF_F_MMAPABLE);

/// Thread id → entry of [`THREADS`].
#[map]
pub(crate) static TIDS: HashMap<u32, u32> = HashMap::with_max_entries(1 /* loader */, 0);

/// Entries of [`THREADS`] that no thread has.
#[map]
pub(crate) static FREE_THREADS: Queue<u32> = Queue::with_max_entries(1 /* loader */, 0);

/// Threads that have faulted in a VM's memory.
#[map]
pub(crate) static THREADS: Array<Thread> =
    Array::with_max_entries(1 /* loader */, BPF_F_MMAPABLE);

/// CPU → its counters.
#[map]
pub(crate) static CPUS: Array<Cpu> = Array::with_max_entries(1 /* loader */, BPF_F_MMAPABLE);

/// VMs that start and end.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 16, 0);

/// Faults of at least [`SLOW_NS`].
#[map]
pub(crate) static SLOW: RingBuf = RingBuf::with_byte_size(4096 /* loader */, 0);

/// Where the running kernel keeps what.
#[unsafe(no_mangle)]
pub(crate) static OFFSETS: Global<KernelOffsets> = Global::new(KernelOffsets {
    task_mm: 0,
    task_pid: 0,
    task_tgid: 0,
    task_start_boottime: 0,
    task_min_flt: 0,
    task_maj_flt: 0,
    task_signal: 0,
    signal_live: 0,
    signal_min_flt: 0,
    signal_maj_flt: 0,
    mm_exe_file: 0,
    file_dentry: 0,
    dentry_name: 0,
    regs_syscall: 0,
    regs_second_argument: 0,
});

/// Latency from which a fault is sent to [`SLOW`], in nanoseconds.
#[unsafe(no_mangle)]
pub(crate) static SLOW_NS: Global<u64> = Global::new(u64::MAX);

/// Number of the system call `ioctl` on this architecture.
#[unsafe(no_mangle)]
pub(crate) static IOCTL: Global<u32> = Global::new(u32::MAX);

/// Whether a newly executed hypervisor gets a slot at once.
#[unsafe(no_mangle)]
pub(crate) static FOLLOW_EXEC: Global<u8> = Global::new(0);

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
