//! What state is the host in?
//!
//! `counters` and `memory_cgroup` read what the kernel counts, `swap_state` decides,
//! `watch` brings both together with what the probes see, once a second. `survey` looks
//! at what takes longer: `balloon`, `memory_use`, `working_set`; `overcommit` adds up, for
//! the nodes of a VM that is bound to some in `numa`.

pub mod balloon;
pub mod counters;
pub mod memory_cgroup;
pub mod memory_use;
pub mod numa;
pub mod overcommit;
pub mod picture;
pub mod survey;
pub mod swap_state;
pub mod watch;
pub mod working_set;

pub use picture::Host;
