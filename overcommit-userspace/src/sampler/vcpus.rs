//! Where did each vCPU's time out of its guest go?

use overcommit_ebpf::layout::{Thread, Window};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering::SeqCst;

/// Totals of one vCPU out of its guest, from kvm_exit to kvm_entry. Halts of an idle
/// guest are in `idle_ns` alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuTime {
    /// Number of the vCPU.
    pub vcpu: u64,
    /// Exits whose window has ended.
    pub exits: u64,
    /// In the kernel, in nanoseconds.
    pub kernel_ns: u64,
    /// In user space: the hypervisor's devices, in nanoseconds.
    pub user_ns: u64,
    /// Held in user space: paused, or called away, in nanoseconds.
    pub paused_ns: u64,
    /// Halted, in nanoseconds.
    pub idle_ns: u64,
    /// Waited for memory, in nanoseconds: part of `kernel_ns`, and `stall_halted_ns`.
    pub stall_ns: u64,
    /// Halted while an asynchronous page fault was open, in nanoseconds.
    pub stall_halted_ns: u64,
    /// Windows of `stall.memory`.
    pub stalls: u64,
    /// Those that were shorter than the faults within.
    pub stalls_inverted: u64,
}

impl VcpuTime {
    fn read(window: &Window) -> Self {
        Self {
            vcpu: window.vcpu.load(SeqCst),
            exits: window.exits.load(SeqCst),
            kernel_ns: window.kernel_total_ns.load(SeqCst),
            user_ns: window.user_total_ns.load(SeqCst),
            paused_ns: window.paused_total_ns.load(SeqCst),
            idle_ns: window.idle_total_ns.load(SeqCst),
            stall_ns: window.stall_ns.load(SeqCst),
            stall_halted_ns: window.stall_halted_ns.load(SeqCst),
            stalls: window.stalls.load(SeqCst),
            stalls_inverted: window.stalls_inverted.load(SeqCst),
        }
    }

    /// A thread whose id is used again has less than the one before it.
    fn since(self, before: Self) -> Self {
        Self {
            vcpu: self.vcpu,
            exits: self.exits.saturating_sub(before.exits),
            kernel_ns: self.kernel_ns.saturating_sub(before.kernel_ns),
            user_ns: self.user_ns.saturating_sub(before.user_ns),
            paused_ns: self.paused_ns.saturating_sub(before.paused_ns),
            idle_ns: self.idle_ns.saturating_sub(before.idle_ns),
            stall_ns: self.stall_ns.saturating_sub(before.stall_ns),
            stall_halted_ns: self.stall_halted_ns.saturating_sub(before.stall_halted_ns),
            stalls: self.stalls.saturating_sub(before.stalls),
            stalls_inverted: self.stalls_inverted.saturating_sub(before.stalls_inverted),
        }
    }
}

/// The vCPUs of one VM since its recording began.
#[derive(Debug, Default)]
pub struct VcpuTimes {
    before: BTreeMap<i32, VcpuTime>,
    now: BTreeMap<i32, VcpuTime>,
}

impl VcpuTimes {
    /// Reads the thread's windows, if it has any.
    pub fn see(&mut self, thread: &Thread) {
        let time = VcpuTime::read(&thread.window);
        if time.exits > 0 {
            self.now.insert(thread.tid(), time);
        }
    }

    /// Begins anew.
    pub fn restart(&mut self) {
        self.before.clone_from(&self.now);
    }

    /// Whether no vCPU was ever seen to leave its guest.
    pub fn is_empty(&self) -> bool {
        self.now.is_empty()
    }

    /// Of each vCPU, by number.
    pub fn totals(&self) -> Vec<VcpuTime> {
        let since = |(tid, time): (&i32, &VcpuTime)| {
            time.since(self.before.get(tid).copied().unwrap_or_default())
        };
        let mut totals: Vec<VcpuTime> = self.now.iter().map(since).collect();
        totals.sort_by_key(|time| time.vcpu);
        totals
    }
}
