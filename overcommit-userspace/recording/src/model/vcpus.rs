//! Where a vCPU's time out of its guest went.

use serde::{Deserialize, Serialize};

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
    /// Waited for memory, in nanoseconds: in exits for memory, in halts that wait for a page
    /// (`stall_halted_ns`), and in faults of any other exit.
    pub stall_ns: u64,
    /// Halted while an asynchronous page fault was open, in nanoseconds.
    pub stall_halted_ns: u64,
    /// Windows of `stall.memory`.
    pub stalls: u64,
    /// Those that were shorter than the faults within.
    pub stalls_inverted: u64,
}
