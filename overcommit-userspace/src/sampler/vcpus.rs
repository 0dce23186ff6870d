//! Where did each vCPU's time out of its guest go?

use overcommit_ebpf::layout::{Thread, Window};
use overcommit_recording::model::vcpus::VcpuTime;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering::SeqCst;

fn read(window: &Window) -> VcpuTime {
    VcpuTime {
        vcpu: window.vcpu.load(SeqCst) & 0xffff_ffff,
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
fn since(now: VcpuTime, before: VcpuTime) -> VcpuTime {
    VcpuTime {
        vcpu: now.vcpu,
        exits: now.exits.saturating_sub(before.exits),
        kernel_ns: now.kernel_ns.saturating_sub(before.kernel_ns),
        user_ns: now.user_ns.saturating_sub(before.user_ns),
        paused_ns: now.paused_ns.saturating_sub(before.paused_ns),
        idle_ns: now.idle_ns.saturating_sub(before.idle_ns),
        stall_ns: now.stall_ns.saturating_sub(before.stall_ns),
        stall_halted_ns: now.stall_halted_ns.saturating_sub(before.stall_halted_ns),
        stalls: now.stalls.saturating_sub(before.stalls),
        stalls_inverted: now.stalls_inverted.saturating_sub(before.stalls_inverted),
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
        let time = read(&thread.window);
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
            since(*time, self.before.get(tid).copied().unwrap_or_default())
        };
        let mut totals: Vec<VcpuTime> = self.now.iter().map(since).collect();
        totals.sort_by_key(|time| time.vcpu);
        totals
    }
}
