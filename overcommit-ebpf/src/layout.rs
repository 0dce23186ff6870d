//! The types that lie in the maps, each defined once for both sides.

use crate::bucket::BUCKETS;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

/// A latency that the kernel side sums into a histogram for each VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Metric {
    /// A fault that the kernel accounts as minor.
    FaultMinor = 0,
    /// A fault that the kernel accounts as major.
    FaultMajor = 1,
}

impl Metric {
    /// Every metric, in the order of the maps.
    pub const ALL: [Self; 2] = [Self::FaultMinor, Self::FaultMajor];
    /// How many there are: histograms a VM.
    pub const COUNT: usize = Self::ALL.len();

    /// The name that all files and views use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FaultMinor => "fault.minor",
            Self::FaultMajor => "fault.major",
        }
    }
}

/// The latencies of one VM and metric.
///
/// The kernel adds to `sum_ns`, then `max_ns`, then the bucket; the loader takes
/// them in the other direction, so whatever it counts has its sum and maximum
/// already there.
#[repr(C)]
pub struct Histogram {
    /// Sum of the latencies, in nanoseconds.
    pub sum_ns: AtomicU64,
    /// The longest, in nanoseconds.
    pub max_ns: AtomicU64,
    /// How many exceeded [`crate::bucket::MAX_NS`]; they count in the last bucket too.
    pub over_range: AtomicU64,
    /// Keeps the buckets at a multiple of 32 bytes.
    pub reserved: AtomicU64,
    /// Count of each bucket, see [`crate::bucket`].
    pub buckets: [AtomicU64; BUCKETS],
}

impl Histogram {
    /// Empties it.
    pub fn clear(&self) {
        zero(&self.buckets);
        zero(&[&self.sum_ns, &self.max_ns, &self.over_range]);
    }
}

/// Stores 0 in each.
fn zero(cells: &[impl core::borrow::Borrow<AtomicU64>]) {
    for cell in cells {
        cell.borrow().store(0, Relaxed);
    }
}

/// What could not be counted for a VM, by cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Loss {
    /// A fault ended whose start was not seen: it began before the probe was
    /// attached, or the start program was skipped.
    EndWithoutStart = 0,
    /// A fault began and never completed: it raised a signal, or its end was
    /// skipped.
    StartWithoutEnd = 1,
    /// The thread exited inside the fault.
    ThreadExit = 2,
    /// No free entry for the thread.
    ThreadsFull = 3,
    /// A slow fault found no room in the ring buffer. It is in the histogram.
    SlowDropped = 4,
    /// The clock of the CPU on which the fault ended was behind that of its start.
    ClockBehind = 5,
}

impl Loss {
    /// Every cause, in the order of [`Vm::lost`].
    pub const ALL: [Self; 6] = [
        Self::EndWithoutStart,
        Self::StartWithoutEnd,
        Self::ThreadExit,
        Self::ThreadsFull,
        Self::SlowDropped,
        Self::ClockBehind,
    ];
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();

    /// The name in run.json.
    pub const fn name(self) -> &'static str {
        match self {
            Self::EndWithoutStart => "end_without_start",
            Self::StartWithoutEnd => "start_without_end",
            Self::ThreadExit => "thread_exit",
            Self::ThreadsFull => "threads_full",
            Self::SlowDropped => "slow_dropped",
            Self::ClockBehind => "clock_behind",
        }
    }
}

/// A VM's slot: who it is for the kernel, and what is known beside the histograms.
#[repr(C)]
pub struct Vm {
    /// Address of its `mm_struct`; 0 in a free slot.
    pub mm: AtomicU64,
    /// `task_struct::start_boottime` of its leader, in nanoseconds.
    pub start_boottime_ns: AtomicU64,
    /// `CLOCK_MONOTONIC` at which its last thread exited (or it executed another
    /// program), in nanoseconds; 0 while it runs.
    pub ended_ns: AtomicU64,
    /// Process id in the initial namespace.
    pub tgid: AtomicU64,
    /// The kernel's own minor and major fault counters when counting began, of a
    /// process with one thread.
    pub faults_before: [AtomicU64; Metric::COUNT],
    /// The same of all threads that have exited: of the VM when it has ended.
    pub faults_at_end: [AtomicU64; Metric::COUNT],
    /// Faults counted that threads of another process took in this memory.
    pub faults_by_others: [AtomicU64; Metric::COUNT],
    /// By [`Loss`].
    pub lost: [AtomicU64; Loss::COUNT],
}

impl Vm {
    /// Makes it a free slot.
    pub fn clear(&self) {
        zero(&[&self.mm, &self.start_boottime_ns, &self.ended_ns, &self.tgid]);
        zero(&self.faults_before);
        zero(&self.faults_at_end);
        zero(&self.faults_by_others);
        zero(&self.lost);
    }
}

/// A thread that has faulted in a VM's memory.
///
/// Only the thread itself writes, from its own faults. `sequence` is odd while
/// `waited_ns` and `since_ns` do not belong together.
#[repr(C)]
pub struct Thread {
    /// Process id (upper half) and thread id in the initial namespace; 0 in a
    /// free entry.
    pub id: AtomicU64,
    /// Slot of the VM in whose memory it last faulted.
    pub vm: AtomicU64,
    /// See the type.
    pub sequence: AtomicU64,
    /// `CLOCK_MONOTONIC` start of the fault that it is in, in nanoseconds; 0 outside.
    pub since_ns: AtomicU64,
    /// Address of that fault.
    pub address: AtomicU64,
    /// Time that it spent in faults that have ended, in nanoseconds.
    pub waited_ns: AtomicU64,
    /// 1 once a fault of the thread began inside `KVM_RUN`: it is a vCPU.
    pub in_kvm_run: AtomicU64,
    /// Explicit padding to the cache line.
    pub reserved: AtomicU64,
}

impl Thread {
    /// Process id in the initial namespace.
    pub fn tgid(&self) -> i32 {
        (self.id.load(Relaxed) >> 32) as i32
    }

    /// Thread id in the initial namespace.
    pub fn tid(&self) -> i32 {
        self.id.load(Relaxed) as i32
    }

    /// Makes it a free entry.
    pub fn clear(&self) {
        zero(&[&self.id, &self.vm, &self.sequence, &self.since_ns]);
        zero(&[&self.address, &self.waited_ns, &self.in_kvm_run]);
    }
}

/// The request of `ioctl` by which a thread runs a vCPU: `_IO(KVMIO, 0x80)`,
/// include/uapi/linux/kvm.h.
pub const KVM_RUN: u64 = 0xae80;

/// A program that runs on every fault of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum HotProgram {
    /// Starts the clock.
    FaultStart = 0,
    /// Ends it for a minor fault.
    FaultMinor = 1,
    /// Ends it for a major fault.
    FaultMajor = 2,
}

impl HotProgram {
    /// Every such program, in the order of [`Cpu::runs`].
    pub const ALL: [Self; 3] = [Self::FaultStart, Self::FaultMinor, Self::FaultMajor];
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();

    /// Its name in the eBPF object.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FaultStart => "fault_start",
            Self::FaultMinor => "fault_minor",
            Self::FaultMajor => "fault_major",
        }
    }
}

/// What is counted for each CPU, a cache line each.
#[repr(C, align(64))]
pub struct Cpu {
    /// Runs of each [`HotProgram`], to be held against its event's own counter.
    pub runs: [AtomicU64; HotProgram::COUNT],
    /// Explicit padding to the cache line.
    pub reserved: [AtomicU64; 5],
}

/// What happened to a VM's process, as one record of the `EVENTS` ring buffer:
/// the three fields in this order, native byte order.
#[repr(C)]
pub struct Lifecycle {
    /// A [`LifecycleKind`].
    pub kind: u32,
    /// Its slot.
    pub vm: u32,
    /// Process id in the initial namespace.
    pub tgid: u32,
    /// Explicit padding.
    pub reserved: u32,
}

/// See [`Lifecycle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum LifecycleKind {
    /// A program was executed that looks like a hypervisor; it has a slot.
    Started = 1,
    /// Its last thread exited, or it executed another program.
    Ended = 2,
    /// It looks like a hypervisor and there was no free slot.
    NoSlot = 3,
}

/// A fault of at least the length asked for, as one record of the `SLOW` ring
/// buffer: the fields in this order, native byte order.
#[repr(C)]
pub struct SlowFault {
    /// `CLOCK_MONOTONIC` at its end, in nanoseconds.
    pub end_ns: u64,
    /// Its latency, in nanoseconds.
    pub latency_ns: u64,
    /// The address that faulted.
    pub address: u64,
    /// The VM's process id.
    pub vm_tgid: u32,
    /// The VM's slot.
    pub vm: u32,
    /// Thread that took it.
    pub tid: u32,
    /// A [`Metric`].
    pub metric: u32,
    /// The thread's name, up to the first NUL.
    pub comm: [u8; 16],
}

/// Offsets into kernel structures, in bytes, from the BTF of the running kernel.
///
/// Read-only for the programs, so the verifier sees constants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct KernelOffsets {
    /// `task_struct::mm`
    pub task_mm: u32,
    /// `task_struct::pid`
    pub task_pid: u32,
    /// `task_struct::tgid`
    pub task_tgid: u32,
    /// `task_struct::start_boottime`
    pub task_start_boottime: u32,
    /// `task_struct::min_flt`
    pub task_min_flt: u32,
    /// `task_struct::maj_flt`
    pub task_maj_flt: u32,
    /// `task_struct::signal`
    pub task_signal: u32,
    /// `signal_struct::live`
    pub signal_live: u32,
    /// `signal_struct::min_flt`
    pub signal_min_flt: u32,
    /// `signal_struct::maj_flt`
    pub signal_maj_flt: u32,
    /// `mm_struct::exe_file`
    pub mm_exe_file: u32,
    /// `file::f_path.dentry`
    pub file_dentry: u32,
    /// `dentry::d_name.name`
    pub dentry_name: u32,
    /// System call number in `pt_regs`: `orig_ax`, or `syscallno` on arm64
    pub regs_syscall: u32,
    /// Second argument of the system call in `pt_regs`: `si`, or `regs[1]`
    pub regs_second_argument: u32,
}

impl KernelOffsets {
    /// The offsets in the order of the fields, as they lie in memory.
    pub const fn words(&self) -> [u32; 15] {
        [
            self.task_mm,
            self.task_pid,
            self.task_tgid,
            self.task_start_boottime,
            self.task_min_flt,
            self.task_maj_flt,
            self.task_signal,
            self.signal_live,
            self.signal_min_flt,
            self.signal_maj_flt,
            self.mm_exe_file,
            self.file_dentry,
            self.dentry_name,
            self.regs_syscall,
            self.regs_second_argument,
        ]
    }
}

const _: () = {
    assert!(size_of::<Histogram>() == 32 + 8 * BUCKETS);
    assert!(size_of::<Vm>() == 128);
    assert!(size_of::<Thread>() == 64);
    assert!(size_of::<Cpu>() == 64);
    assert!(size_of::<Lifecycle>() == 16);
    assert!(size_of::<SlowFault>() == 56);
    assert!(size_of::<KernelOffsets>() == 15 * 4);
};
