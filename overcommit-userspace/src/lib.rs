//! overcommit: the latency that a host injects into its VMs, by VM.
//!
//! Data flows one way: `probes` attach the eBPF programs, `sampler` takes what
//! they counted once an interval, `recording` writes it, `export` has one file a
//! format, `commands` one a subcommand.

// Output goes through `commands::print` and `say`, which survive a closed pipe.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod commands;
pub mod host;
pub mod kernel;
pub mod probes;
pub mod sampler;
pub mod session;
pub mod terminal;
pub mod vm;
