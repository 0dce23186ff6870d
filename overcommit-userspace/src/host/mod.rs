//! What state is the host in?
//!
//! `counters` and `memory_cgroup` read what the kernel counts, `swap_state` decides,
//! `watch` brings both together with what the probes see, once a second. `survey` looks
//! at what takes longer: `balloon`, `memory_use`, `working_set`; `overcommit` adds up, for
//! the nodes of a VM that is bound to some in `numa`; `zfs` is a cache that the kernel does not call
//! available. `socket` connects to what a VM listens on,
//! `vm_processes` remembers which processes are VMs. `inventory` is what `check` says of it.

pub mod balloon;
pub mod counters;
pub mod inventory;
pub mod memory_cgroup;
pub mod memory_use;
pub mod numa;
pub mod oom;
pub mod overcommit;
pub mod picture;
pub mod socket;
pub mod survey;
pub mod swap_state;
pub mod vm_processes;
pub mod watch;
mod watched_vm;
pub mod working_set;
mod zfs;

pub use picture::Host;

/// What the probes saw of a VM in an interval for whoever follows the host; not in files.
#[derive(Clone, Copy, Debug, Default)]
pub struct ForHost {
    /// Pages of its memory cgroup that reclaim wrote out, if that is being counted.
    pub swapped_out: u64,
    /// Pages of its guest's memory that it gave back one by one, and those that it took
    /// again, if that is being counted.
    pub discards: [u64; 2],
    /// Whether it runs under KVM without a single exit.
    pub has_no_exits: bool,
}
