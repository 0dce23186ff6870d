//! A thread that faults, and what KVM does with it.

#[cfg(doc)]
use crate::layout::pack_aggressor;
use crate::layout::{Part, zero};
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

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
    /// `mm_struct` in which it faults, or did last.
    pub mm: AtomicU64,
    /// Backends on `handle_mm_fault`: `CLOCK_MONOTONIC` at which the call that is to be retried returned, in
    /// nanoseconds.
    pub retried_ns: AtomicU64,
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
    /// Wait for a CPU in that wait, and not part of it, in nanoseconds.
    pub runq_before_ns: AtomicU64,
    /// `CLOCK_MONOTONIC` at which that wait ended, in nanoseconds.
    pub lock_until_ns: AtomicU64,
    /// `CLOCK_MONOTONIC` at which that wait began, in nanoseconds; 0 outside.
    pub lock_since_ns: AtomicU64,
    /// Its `sched_info::run_delay` then, in nanoseconds.
    pub lock_run_delay_ns: AtomicU64,
    /// Address of the `mm_struct` whose lock it waits for.
    pub lock_mm: AtomicU64,
    /// 1 while the thread is counted among those that wait for a VM's lock.
    pub lock_waits: AtomicU64,
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
    /// Who had evicted that page, as [`pack_aggressor`] packs it; 0 if that is not known.
    pub aggressor: AtomicU64,
    /// 1 if anything is in `parts_ns`.
    pub has_parts: AtomicU64,
    /// Time of the fault that it is in by [`Part`], in nanoseconds.
    pub parts_ns: [AtomicU64; Part::COUNT],
    /// Backends on `handle_mm_fault`: [`FaultBacking`] of the fault that it is in; 0 if the
    /// backend does not tell.
    pub backing: AtomicU64,
}

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
        zero(&[&self.parts_open, &self.lock_before_ns, &self.runq_before_ns]);
        zero(&[&self.lock_since_ns, &self.lock_waits, &self.sleeps]);
        zero(&self.window.words());
        zero(&self.window.parts_ns);
    }
}

/// A vCPU out of its guest: from kvm_exit to the next kvm_entry.
///
/// Part of [`Thread`], with the same rules; `stall_ns` and `exit_ns` go by its
/// `sequence`.
#[derive(Default)]
#[repr(C)]
pub struct Window {
    /// `CLOCK_MONOTONIC` at kvm_exit, in nanoseconds; 0 in the guest, and in a window that is
    /// [`PASSED_OVER`].
    pub exit_ns: AtomicU64,
    /// Key of the exit's reason ([`exit_key`]), with [`MEMORY`] and the other marks, and from
    /// [`SLEEPS_AT`] on how often the thread had slept by the exit.
    pub reason: AtomicU64,
    /// `CLOCK_MONOTONIC` at which it left for user space, in nanoseconds; 0 in the
    /// kernel.
    pub user_since_ns: AtomicU64,
    /// Time in user space in this window, in nanoseconds.
    pub user_ns: AtomicU64,
    /// Time in this window for which it was held there, in nanoseconds.
    pub paused_ns: AtomicU64,
    /// [`Thread::waited_ns`] at the exit; with `--exits memory` at the entry before it.
    pub waited_before_ns: AtomicU64,
    /// Time in this window of attempts that came back without waiting for their page, in
    /// nanoseconds.
    pub attempts_ns: AtomicU64,
    /// Asynchronous page faults that are open: those that began since `apf_since_ns`, and, from
    /// [`APF_OLDER_AT`] on, those of the time before.
    pub apf_open: AtomicU64,
    /// `CLOCK_MONOTONIC` from which the younger ones are counted, in nanoseconds.
    pub apf_since_ns: AtomicU64,
    /// Number of the vCPU (lower half), and the place in the pool of its last exit's histogram, whose
    /// owner says whether it is the next one's.
    pub vcpu: AtomicU64,
    /// Address of the `kvm_vcpu` whose number that is, where it is read from there.
    pub vcpu_at: AtomicU64,
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
    /// Time waited for memory: windows of `stall.memory`, halts while an asynchronous page fault
    /// was open, and faults in any other window, in nanoseconds.
    pub stall_ns: AtomicU64,
    /// Of that, in halts.
    pub stall_halted_ns: AtomicU64,
    /// Windows of `stall.memory`.
    pub stalls: AtomicU64,
    /// Those in which more time passed in faults than in the window.
    pub stalls_inverted: AtomicU64,
    /// The thread's `sched_info::run_delay` at its last entry, in nanoseconds.
    pub run_delay_ns: AtomicU64,
    /// The same at the exit.
    pub exit_run_delay_ns: AtomicU64,
    /// Bucket of the last window's length.
    pub bucket: AtomicU64,
    /// 1 if anything is in `parts_ns`.
    pub has_parts: AtomicU64,
    /// Time of those attempts, and of the faults that completed in this window, by [`Part`], in
    /// nanoseconds.
    pub parts_ns: [AtomicU64; Part::COUNT],
}

impl Window {
    fn words(&self) -> [&AtomicU64; 23] {
        [
            &self.exit_ns,
            &self.reason,
            &self.user_since_ns,
            &self.user_ns,
            &self.paused_ns,
            &self.waited_before_ns,
            &self.attempts_ns,
            &self.apf_open,
            &self.apf_since_ns,
            &self.vcpu,
            &self.vcpu_at,
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
            &self.exit_run_delay_ns,
            &self.has_parts,
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

/// In [`Window::reason`]: an asynchronous page fault was reported ready in the window.
pub const READY: u64 = 1 << 37;

/// Bit of [`Window::apf_open`] at which the older ones begin.
pub const APF_OLDER_AT: u32 = 32;

/// In [`Window::reason`]: the guest's tables had an entry for the page, which did not allow what the
/// guest wanted; or it was a guest of the guest that left. That is no wait for memory unless a fault
/// lies in the window.
pub const PROTECTED: u64 = 1 << 38;

/// In [`Window::reason`], alone or with [`PAUSED`]: the thread is in a window of which only the faults
/// in it matter (`--exits memory`); `exit_ns` is 0.
pub const PASSED_OVER: u64 = 1 << 39;

/// In [`Window::reason`]: the lowest bit of `task_struct::nvcsw` at the exit, as far as there is
/// room for it.
pub const SLEEPS_AT: u32 = 48;

/// The request of `ioctl` by which a thread runs a vCPU: `_IO(KVMIO, 0x80)`,
/// include/uapi/linux/kvm.h.
pub const KVM_RUN: u64 = 0xae80;

const _: () = assert!(size_of::<Thread>() == 600);
