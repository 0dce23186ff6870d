//! overcommit: the latency that a host injects into its VMs, by VM.
//!
//! Data flows one way: `probes` attach the eBPF programs, `sampler` takes what
//! they counted once an interval, `recording` writes it, `export` has one file a
//! format, `commands` one a subcommand.

pub mod kernel_layout;
pub mod probes;
pub mod vm;
