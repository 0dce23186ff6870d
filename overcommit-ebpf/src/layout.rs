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
    /// A fault's wait for a page that was swapped out.
    Swapin = 2,
    /// From an exit for memory to the next entry of that vCPU.
    StallMemory = 3,
    /// From a halt to the next entry, unless it waits for memory.
    Idle = 4,
    /// An asynchronous page fault: not present → ready.
    Apf = 5,
    /// Direct or memory cgroup reclaim, run by a thread of the VM or for its memory.
    Reclaim = 6,
    /// A vCPU that could run waits for a CPU.
    Runq = 7,
    /// A thread is held back because its memory cgroup holds more than its `memory.high`.
    MemoryHigh = 8,
}

impl Metric {
    /// Every metric, in the order of the maps.
    pub const ALL: [Self; 9] = [
        Self::FaultMinor,
        Self::FaultMajor,
        Self::Swapin,
        Self::StallMemory,
        Self::Idle,
        Self::Apf,
        Self::Reclaim,
        Self::Runq,
        Self::MemoryHigh,
    ];
    /// The kernel's two kinds of fault.
    pub const FAULTS: [Self; 2] = [Self::FaultMinor, Self::FaultMajor];
    /// How many there are: histograms that every VM has.
    pub const COUNT: usize = Self::ALL.len();

    /// The name that all files and views use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FaultMinor => "fault.minor",
            Self::FaultMajor => "fault.major",
            Self::Swapin => "swapin",
            Self::StallMemory => "stall.memory",
            Self::Idle => "idle",
            Self::Apf => "apf",
            Self::Reclaim => "reclaim",
            Self::Runq => "runq",
            Self::MemoryHigh => "memory.high",
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
    /// A fault was to be retried and the thread never came back: a signal.
    Abandoned = 6,
    /// A fault ended in an error (SIGBUS, out of memory), which the kernel does not
    /// account either.
    Failed = 7,
    /// A kvm_exit came in an open window: its kvm_entry was skipped.
    ExitWithoutEntry = 8,
    /// A kvm_entry came without a kvm_exit before it.
    EntryWithoutExit = 9,
    /// An exit, while every histogram of the pool was taken.
    ExitsFull = 10,
    /// An asynchronous page fault was never reported ready.
    ApfUnfinished = 11,
    /// One was reported ready whose beginning was not seen.
    ApfWithoutStart = 12,
    /// A page was taken away, and every entry of the eviction matrix was in use.
    EvictionsFull = 13,
    /// A fault, while every histogram of the pool was taken: it is in `fault.*` and in no `backing.*`.
    BackingFull = 14,
    /// A slow fault came after [`SLOW_PER_SECOND`] others of the VM in its second. It is in
    /// the histogram.
    SlowLimited = 15,
}

impl Loss {
    /// Every cause, in the order of [`Vm::lost`].
    pub const ALL: [Self; 16] = [
        Self::EndWithoutStart,
        Self::StartWithoutEnd,
        Self::ThreadExit,
        Self::ThreadsFull,
        Self::SlowDropped,
        Self::ClockBehind,
        Self::Abandoned,
        Self::Failed,
        Self::ExitWithoutEntry,
        Self::EntryWithoutExit,
        Self::ExitsFull,
        Self::ApfUnfinished,
        Self::ApfWithoutStart,
        Self::EvictionsFull,
        Self::BackingFull,
        Self::SlowLimited,
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
            Self::Abandoned => "abandoned",
            Self::Failed => "failed",
            Self::ExitWithoutEntry => "exit_without_entry",
            Self::EntryWithoutExit => "entry_without_exit",
            Self::ExitsFull => "exits_full",
            Self::ApfUnfinished => "apf_unfinished",
            Self::ApfWithoutStart => "apf_without_start",
            Self::EvictionsFull => "evictions_full",
            Self::BackingFull => "backing_full",
            Self::SlowLimited => "slow_limited",
        }
    }
}

/// What the time of a fault went into. The parts do not overlap; what is in none of them
/// is the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Part {
    /// The thread took pages away from somebody, to have one.
    Reclaim = 0,
    /// It brought a page that was swapped out.
    Swapin = 1,
    /// It moved pages together, to have a large one.
    Compaction = 2,
    /// It waited for the lock of the VM's address space, `mmap_lock`.
    Lock = 3,
    /// It waited for another process to bring the page.
    Userfault = 4,
    /// It waited for a CPU.
    Runq = 5,
    /// It slept until a device had read, outside of a swap-in.
    Io = 6,
    /// It slept for something else.
    Sleep = 7,
    /// It slept in a swap-in until the device had read.
    SwapinIo = 8,
}

impl Part {
    /// Every part, in the order of [`Vm::parts_ns`].
    pub const ALL: [Self; 9] = [
        Self::Reclaim,
        Self::Swapin,
        Self::Compaction,
        Self::Lock,
        Self::Userfault,
        Self::Runq,
        Self::Io,
        Self::Sleep,
        Self::SwapinIo,
    ];
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();

    /// The name in all files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reclaim => "reclaim",
            Self::Swapin => "swapin",
            Self::Compaction => "compaction",
            Self::Lock => "lock",
            Self::Userfault => "userfault",
            Self::Runq => "runq",
            Self::Io => "io",
            Self::Sleep => "sleep",
            Self::SwapinIo => "swapin_io",
        }
    }
}

/// What a fault took: of a VM, each fault counts for one. A later one replaces an earlier
/// one that a fault goes through on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum FaultBacking {
    /// A new page, of zeros or part of a huge one.
    Anon = 1,
    /// A page of a file.
    File = 2,
    /// A page of shared memory that is in no file of a disk.
    Shmem = 3,
    /// A page of the pool of huge pages.
    Hugetlb = 4,
    /// A copy of its own of a page that others see too: of a file, of KSM.
    Cow = 5,
    /// A page that the kernel had marked to see which node uses it.
    Numa = 6,
    /// A page that was swapped out.
    Swap = 7,
    /// A page that another process brings: a migration by postcopy, a snapshot pager.
    Userfault = 8,
}

impl FaultBacking {
    /// Every kind, in the order of their numbers, which begin with 1.
    pub const ALL: [Self; 8] = [
        Self::Anon,
        Self::File,
        Self::Shmem,
        Self::Hugetlb,
        Self::Cow,
        Self::Numa,
        Self::Swap,
        Self::Userfault,
    ];
    /// Histograms that a VM may have for its faults: two of each kind.
    pub const HISTOGRAMS: usize = Self::ALL.len() * Metric::FAULTS.len();

    /// The name in all files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Anon => "anon",
            Self::File => "file",
            Self::Shmem => "shmem",
            Self::Hugetlb => "hugetlb",
            Self::Cow => "cow",
            Self::Numa => "numa",
            Self::Swap => "swap",
            Self::Userfault => "userfault",
        }
    }
}

/// Who ran a fault, while it filled the VM's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Taker {
    /// A thread that runs a vCPU.
    Vcpu = 0,
    /// Another thread of the VM.
    VmThread = 1,
    /// A kernel worker or another process.
    Outside = 2,
}

impl Taker {
    /// Every taker, in the order of [`Vm::taken_by`].
    pub const ALL: [Self; 3] = [Self::Vcpu, Self::VmThread, Self::Outside];
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();

    /// The name in all files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vcpu => "vcpu",
            Self::VmThread => "vm_thread",
            Self::Outside => "outside",
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
    pub faults_before: [AtomicU64; Metric::FAULTS.len()],
    /// The same of all threads that have exited: of the VM when it has ended.
    pub faults_at_end: [AtomicU64; Metric::FAULTS.len()],
    /// Faults counted, by [`Taker`].
    pub taken_by: [AtomicU64; Taker::COUNT],
    /// Attempts that ended in a retry which the thread did not wait for: KVM's, when
    /// it leaves the fault to a worker (`FAULT_FLAG_RETRY_NOWAIT`).
    pub not_waited: AtomicU64,
    /// By [`Loss`].
    pub lost: [AtomicU64; Loss::COUNT],
    /// Where swapped pages came from.
    pub swapin: Swapins,
    /// Pages of its cgroup that were handed to swap.
    pub swapped_out: AtomicU64,
    /// Where its guest's memory begins, in its address space, and ends; set by the
    /// loader.
    pub memory_start: AtomicU64,
    /// See [`Self::memory_start`].
    pub memory_end: AtomicU64,
    /// Pages of it that were given back one by one, as a balloon does.
    pub given_back: AtomicU64,
    /// Pages of it that were taken again likewise.
    pub taken_again: AtomicU64,
    /// Time of the faults that have completed, by [`Part`], in nanoseconds.
    pub parts_ns: [AtomicU64; Part::COUNT],
    /// The second of `CLOCK_MONOTONIC` in which its last slow fault ended.
    pub slow_second: AtomicU64,
    /// Slow faults in it.
    pub slow_in_second: AtomicU64,
    /// Places in the pool, plus 1, of the histograms of its faults: of minor ones and major
    /// ones of each [`FaultBacking`]; 0 while there was none.
    pub fault_places: [AtomicU64; FaultBacking::HISTOGRAMS],
}

/// Numbers that swap devices can have: `MAX_SWAPFILES` is less on every kernel.
pub const SWAP_DEVICES_MAX: usize = 32;

/// Where the pages of `swapin` came from, each counted in one place.
#[repr(C)]
pub struct Swapins {
    /// They were in the swap cache, or on their way: another thread had read them.
    pub from_cache: AtomicU64,
    /// Out of zswap.
    pub from_zswap: AtomicU64,
    /// Pages that `do_swap_page` was called for outside a fault, by khugepaged: not in
    /// `swapin`.
    pub without_fault: AtomicU64,
    /// Read from a device, by its number.
    pub from_device: [AtomicU64; SWAP_DEVICES_MAX],
}

/// A swap device by its number.
#[repr(C)]
pub struct SwapDevice {
    /// The name of its disk, ended by NUL, in words of eight bytes in memory order;
    /// the first is 0 while it is not known.
    pub name: [AtomicU64; 4],
}

impl Vm {
    /// Makes it a free slot.
    pub fn clear(&self) {
        zero(&[&self.mm, &self.start_boottime_ns, &self.ended_ns, &self.tgid]);
        zero(&self.faults_before);
        zero(&self.faults_at_end);
        zero(&self.taken_by);
        zero(&[&self.not_waited, &self.swapped_out]);
        zero(&[&self.memory_start, &self.memory_end, &self.given_back, &self.taken_again]);
        zero(&self.lost);
        zero(&self.parts_ns);
        zero(&self.fault_places);
        zero(&[&self.slow_second, &self.slow_in_second]);
        let swapin = &self.swapin;
        zero(&[&swapin.from_cache, &swapin.from_zswap, &swapin.without_fault]);
        zero(&swapin.from_device);
    }
}

/// A thread that has faulted in a VM's memory.
///
/// Only the thread itself writes, from its own faults. `sequence` is odd while
/// `waited_ns` and `since_ns` do not belong together.
#[derive(Default)]
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
    /// 1 once the thread was seen inside `KVM_RUN`, or the loader knows it by name.
    pub is_vcpu: AtomicU64,
    /// Backends on `handle_mm_fault`: flags of the call that it is in or was in
    /// last, with [`IN_CALL`] and [`TO_BE_RETRIED`].
    pub call: AtomicU64,
    /// The same: `mm_struct` of that call.
    pub mm: AtomicU64,
    /// The same: the wait for a swapped page in that fault, see `swapin` among the
    /// programs; 0 outside.
    pub swapin: AtomicU64,
    /// `CLOCK_MONOTONIC` at which it began, in nanoseconds.
    pub swapin_since_ns: AtomicU64,
    /// `CLOCK_MONOTONIC` at which it was last seen to end, in nanoseconds.
    pub swapin_until_ns: AtomicU64,
    /// What KVM does with it, if it runs a vCPU.
    pub window: Window,
    /// `CLOCK_MONOTONIC` at which it began to reclaim, in nanoseconds; 0 outside.
    pub reclaim_since_ns: AtomicU64,
    /// Parts that are open in the fault that it is in, a byte each, the innermost in the
    /// lowest: [`Part`] plus 1.
    pub parts_open: AtomicU64,
    /// `CLOCK_MONOTONIC` of the last turn, at which a part began or ended, in nanoseconds.
    pub turned_ns: AtomicU64,
    /// Its `sched_info::run_delay` then, in nanoseconds.
    pub run_delay_ns: AtomicU64,
    /// Wait for the lock of the VM's address space before the next fault, in nanoseconds.
    pub lock_before_ns: AtomicU64,
    /// `CLOCK_MONOTONIC` at which that wait began, in nanoseconds; 0 outside.
    pub lock_since_ns: AtomicU64,
    /// 1 while it sleeps in a fault, if that is being seen.
    pub sleeps: AtomicU64,
    /// Where in the kernel it fell asleep last: number of the stack plus 1; 0 if that was
    /// not taken.
    pub stack: AtomicU64,
    /// `CLOCK_MONOTONIC` at which it began to be held back at `memory.high`, in nanoseconds; 0
    /// outside.
    pub high_since_ns: AtomicU64,
    /// Its longest sleep in the fault that it is in, in nanoseconds.
    pub longest_sleep_ns: AtomicU64,
    /// [`Self::stack`] of that.
    pub longest_stack: AtomicU64,
    /// Number of the device that it read a swapped page from in the fault that it is in,
    /// plus 1; 0 for none.
    pub swap_device: AtomicU64,
    /// 1 if anything is in `parts_ns`.
    pub has_parts: AtomicU64,
    /// Time of the fault that it is in by [`Part`], in nanoseconds.
    pub parts_ns: [AtomicU64; Part::COUNT],
    /// Backends on `handle_mm_fault`: [`FaultBacking`] of the fault that it is in; 0 if the
    /// backend does not tell.
    pub backing: AtomicU64,
    /// Explicit padding to the cache line.
    pub reserved: [AtomicU64; 2],
}

/// A vCPU out of its guest: from kvm_exit to the next kvm_entry.
///
/// Part of [`Thread`], with the same rules; `stall_ns` and `exit_ns` go by its
/// `sequence`.
#[derive(Default)]
#[repr(C)]
pub struct Window {
    /// `CLOCK_MONOTONIC` at kvm_exit, in nanoseconds; 0 in the guest.
    pub exit_ns: AtomicU64,
    /// Key of the exit's reason ([`exit_key`]), with [`MEMORY`] and the other marks.
    pub reason: AtomicU64,
    /// `CLOCK_MONOTONIC` at which it left for user space, in nanoseconds; 0 in the
    /// kernel.
    pub user_since_ns: AtomicU64,
    /// Time in user space in this window, in nanoseconds.
    pub user_ns: AtomicU64,
    /// Time in this window for which it was held there, in nanoseconds.
    pub paused_ns: AtomicU64,
    /// [`Thread::waited_ns`] at the exit.
    pub waited_before_ns: AtomicU64,
    /// Asynchronous page faults that are open.
    pub apf_open: AtomicU64,
    /// `CLOCK_MONOTONIC` of the youngest, in nanoseconds.
    pub apf_since_ns: AtomicU64,
    /// Number of the vCPU.
    pub vcpu: AtomicU64,
    /// Windows that have ended.
    pub exits: AtomicU64,
    /// Their time in the kernel, halts left out, in nanoseconds.
    pub kernel_total_ns: AtomicU64,
    /// Their time in user space, in nanoseconds.
    pub user_total_ns: AtomicU64,
    /// Their time paused, in nanoseconds.
    pub paused_total_ns: AtomicU64,
    /// Their time halted with no memory waited for, in nanoseconds.
    pub idle_total_ns: AtomicU64,
    /// Time waited for memory: windows of `stall.memory`, and halts while an
    /// asynchronous page fault was open, in nanoseconds.
    pub stall_ns: AtomicU64,
    /// Of that, in halts.
    pub stall_halted_ns: AtomicU64,
    /// Windows of `stall.memory`.
    pub stalls: AtomicU64,
    /// Those in which more time passed in faults than in the window.
    pub stalls_inverted: AtomicU64,
    /// The thread's `sched_info::run_delay` at its last entry, in nanoseconds.
    pub run_delay_ns: AtomicU64,
}

impl Window {
    fn words(&self) -> [&AtomicU64; 19] {
        [
            &self.exit_ns,
            &self.reason,
            &self.user_since_ns,
            &self.user_ns,
            &self.paused_ns,
            &self.waited_before_ns,
            &self.apf_open,
            &self.apf_since_ns,
            &self.vcpu,
            &self.exits,
            &self.kernel_total_ns,
            &self.user_total_ns,
            &self.paused_total_ns,
            &self.idle_total_ns,
            &self.stall_ns,
            &self.stall_halted_ns,
            &self.stalls,
            &self.stalls_inverted,
            &self.run_delay_ns,
        ]
    }
}

/// In [`Window::reason`]: the exit is for memory.
pub const MEMORY: u64 = 1 << 32;
/// In [`Window::reason`]: a device's memory was meant, so it is no stall.
pub const MMIO: u64 = 1 << 33;
/// In [`Window::reason`]: the guest halted.
pub const HALT: u64 = 1 << 34;
/// In [`Window::reason`]: the time in user space is a pause.
pub const PAUSED: u64 = 1 << 35;
/// In [`Window::reason`]: an asynchronous page fault was open at the halt.
pub const APF: u64 = 1 << 36;

/// `isa` of kvm_exit, as `struct kvm_run` numbers them: KVM_ISA_VMX.
pub const ISA_VMX: u32 = 1;
/// KVM_ISA_SVM.
pub const ISA_SVM: u32 = 2;
/// arm64, which has no number there.
pub const ISA_ARM64: u32 = 3;
/// The reason under which memory exits of devices are filed, of any `isa`.
pub const REASON_MMIO: u32 = 0xff_fffe;

/// One number for an exit's reason and the architecture that it is of. Error exits
/// (`SVM_EXIT_ERR`, the failure bit of VMX) are cut to 24 bits.
pub const fn exit_key(isa: u32, reason: u32) -> u32 {
    isa << 24 | (reason & 0xff_ffff)
}

/// In place of an `isa`: the faults of a [`FaultBacking`].
const ISA_FAULT: u32 = 0x7f;

/// One number for the faults of a place in [`Vm::fault_places`].
pub const fn fault_key(place: u32) -> u32 {
    exit_key(ISA_FAULT, place)
}

/// The kind that a key of the pool is of, and whether of majors; `None` of an exit.
pub fn fault_of_key(key: u32) -> Option<(FaultBacking, bool)> {
    let number = (key & 0xff_ffff) as usize;
    let backing = FaultBacking::ALL.get(number >> 1).filter(|_| key >> 24 == ISA_FAULT)?;
    Some((*backing, number & 1 != 0))
}

/// Histograms that a host has for each slot beside those of [`Metric`]: a VM rarely has
/// more than a dozen reasons of exits and half a dozen kinds of faults, and takes them
/// from one pool.
pub const POOLED_PER_VM: u32 = 24;

/// Where the records of KVM's tracepoints keep their fields, in bytes from the start
/// of the record. The loader writes them when it has found the tracepoints.
#[repr(C)]
pub struct KvmFields {
    /// kvm_exit: `exit_reason`, of four bytes.
    pub exit_reason: AtomicU64,
    /// kvm_exit: `isa`; [`ABSENT`] on arm64.
    pub exit_isa: AtomicU64,
    /// kvm_exit: `info1`; [`ABSENT`] on arm64.
    pub exit_info1: AtomicU64,
    /// kvm_exit: `vcpu_id`; [`ABSENT`] on arm64.
    pub exit_vcpu: AtomicU64,
    /// kvm_userspace_exit: `reason`.
    pub userspace_reason: AtomicU64,
    /// kvm_userspace_exit: `errno`.
    pub userspace_errno: AtomicU64,
    /// kvm_async_pf_not_present and …_ready: `token`.
    pub apf_token: AtomicU64,
    /// Explicit padding to the cache line.
    pub reserved: AtomicU64,
}

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

/// Entries of the eviction matrix that a host has for each slot.
pub const EVICTIONS_PER_VM: u32 = 16;

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
}

impl AggressorKind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Vm, Self::Process, Self::Kernel];
}

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

/// One word of an array that the loader shares.
#[repr(transparent)]
pub struct Word(pub AtomicU64);

/// In [`KvmFields`]: the record has no such field.
pub const ABSENT: u64 = u64::MAX;

/// In [`Thread::call`]: the call has not returned.
pub const IN_CALL: u64 = 1 << 32;
/// In [`Thread::call`]: it returned `VM_FAULT_RETRY`, and the thread is to call again.
pub const TO_BE_RETRIED: u64 = 1 << 33;

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
        zero(&[&self.address, &self.waited_ns, &self.is_vcpu]);
        zero(&[&self.call, &self.mm, &self.swapin, &self.reclaim_since_ns, &self.backing]);
        zero(&[&self.high_since_ns]);
        zero(&[&self.parts_open, &self.lock_before_ns, &self.lock_since_ns, &self.sleeps]);
        zero(&self.window.words());
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
    /// At the entry of `handle_mm_fault`.
    CallEntry = 3,
    /// At its return.
    CallReturn = 4,
}

impl HotProgram {
    /// Every such program, in the order of [`Cpu::runs`].
    pub const ALL: [Self; 5] =
        [Self::FaultStart, Self::FaultMinor, Self::FaultMajor, Self::CallEntry, Self::CallReturn];
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();

    /// Its name in the eBPF object.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FaultStart => "fault_start",
            Self::FaultMinor => "fault_minor",
            Self::FaultMajor => "fault_major",
            Self::CallEntry => "call_entry",
            Self::CallReturn => "call_return",
        }
    }
}

/// What is counted for each CPU, a cache line each.
#[repr(C, align(64))]
pub struct Cpu {
    /// Runs of each [`HotProgram`], to be held against its event's own counter.
    pub runs: [AtomicU64; HotProgram::COUNT],
    /// Explicit padding to the cache line.
    pub reserved: [AtomicU64; 2],
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

/// Slow faults of a VM that are sent one by one in a second, unless every fault is.
pub const SLOW_PER_SECOND: u64 = 1_000;

/// Stacks that are kept, and addresses in one at most.
pub const STACKS: u32 = 1024;
/// See [`STACKS`].
pub const STACK_DEPTH: usize = 127;

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
    /// What its time went into, by [`Part`], in nanoseconds.
    pub parts_ns: [u64; Part::COUNT],
    /// [`FaultBacking`]; 0 if it is not known.
    pub backing: u32,
    /// Number of the device that it read a swapped page from, plus 1; 0 for none.
    pub swap_device: u32,
    /// Number of the stack of its longest sleep, plus 1; 0 if that was not taken.
    pub stack: u32,
    /// Explicit padding.
    pub reserved: u32,
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
    /// `task_struct::sched_info.run_delay`; 0 if this kernel does not keep it
    pub task_run_delay: u32,
    /// Byte of `task_struct::in_iowait`
    pub task_in_iowait: u32,
    /// Its bit there
    pub in_iowait_bit: u32,
    /// `task_struct::memcg_nr_pages_over_high`; 0 if this kernel does not keep it
    pub task_over_high: u32,
    /// `mm_struct::mmap_lock`
    pub mm_mmap_lock: u32,
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
    /// `vm_area_struct::vm_mm`
    pub vma_mm: u32,
    /// `vm_area_struct::vm_flags`
    pub vma_flags: u32,
    /// `vm_area_struct::vm_file`
    pub vma_file: u32,
    /// `file::f_mapping`
    pub file_mapping: u32,
    /// `address_space::host`
    pub mapping_host: u32,
    /// `inode::i_sb`
    pub inode_sb: u32,
    /// `super_block::s_magic`
    pub sb_magic: u32,
    /// `vm_fault::vma`
    pub fault_vma: u32,
    /// `vm_fault::orig_pte`
    pub fault_orig_pte: u32,
    /// `swap_info_struct::bdev`
    pub swap_info_bdev: u32,
    /// `block_device::bd_disk`
    pub bdev_disk: u32,
    /// `gendisk::disk_name`
    pub disk_name: u32,
}

impl KernelOffsets {
    /// The offsets in the order of the fields, as they lie in memory.
    pub const fn words(&self) -> [u32; 32] {
        [
            self.task_mm,
            self.task_pid,
            self.task_tgid,
            self.task_start_boottime,
            self.task_min_flt,
            self.task_maj_flt,
            self.task_run_delay,
            self.task_in_iowait,
            self.in_iowait_bit,
            self.task_over_high,
            self.mm_mmap_lock,
            self.task_signal,
            self.signal_live,
            self.signal_min_flt,
            self.signal_maj_flt,
            self.mm_exe_file,
            self.file_dentry,
            self.dentry_name,
            self.regs_syscall,
            self.regs_second_argument,
            self.vma_mm,
            self.vma_flags,
            self.vma_file,
            self.file_mapping,
            self.mapping_host,
            self.inode_sb,
            self.sb_magic,
            self.fault_vma,
            self.fault_orig_pte,
            self.swap_info_bdev,
            self.bdev_disk,
            self.disk_name,
        ]
    }
}

/// Offsets by which the cgroup of a folio and its size are found, as [`KernelOffsets`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FolioOffsets {
    /// `folio::memcg_data`
    pub memcg_data: u32,
    /// `obj_cgroup::memcg`
    pub objcg_memcg: u32,
    /// `mem_cgroup::css.cgroup`
    pub memcg_cgroup: u32,
    /// `cgroup::kn`
    pub cgroup_kn: u32,
    /// `kernfs_node::id`
    pub kn_id: u32,
    /// `folio::flags`
    pub flags: u32,
    /// The bit of a folio of several pages in it, `PG_head`
    pub head_bit: u32,
    /// `folio::_nr_pages`
    pub pages: u32,
}

impl FolioOffsets {
    /// The offsets in the order of the fields, as they lie in memory.
    pub const fn words(&self) -> [u32; 8] {
        [
            self.memcg_data,
            self.objcg_memcg,
            self.memcg_cgroup,
            self.cgroup_kn,
            self.kn_id,
            self.flags,
            self.head_bit,
            self.pages,
        ]
    }
}

const _: () = {
    assert!(size_of::<Histogram>() == 32 + 8 * BUCKETS);
    assert!(size_of::<Vm>() == 760);
    assert!(size_of::<Thread>() == 448);
    assert!(size_of::<KvmFields>() == 64);
    assert!(size_of::<Cpu>() == 64);
    assert!(size_of::<EvictionKey>() == 16);
    assert!(size_of::<Eviction>() == 64);
    assert!(size_of::<Lifecycle>() == 16);
    assert!(size_of::<SlowFault>() == 144);
    assert!(size_of::<KernelOffsets>() == 32 * 4);
    assert!(size_of::<FolioOffsets>() == 8 * 4);
};
