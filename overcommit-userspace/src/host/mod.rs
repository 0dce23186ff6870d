//! What state is the host in?
//!
//! `counters` and `memory_cgroup` read what the kernel counts, `swap_state` decides,
//! `watch` brings both together with what the probes see, once a second.

pub mod counters;
pub mod memory_cgroup;
pub mod swap_state;
pub mod watch;

pub use swap_state::SwapState;
pub use watch::{HostSample, VmHostSample, Watch};
