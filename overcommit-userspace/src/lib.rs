//! overcommit: the latency that a host injects into its VMs, by VM.
//!
//! Data flows one way: `probes` attach the eBPF programs, `sampler` takes what they counted
//! once per interval, `host` adds the state of the host, `session` hands the intervals on, and
//! `commands` has one file per subcommand. What needs no live host lies below, in
//! `overcommit_recording`.

// Output goes through `terminal::print` and `say`, which survive a closed pipe.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod ab;
pub mod channel;
pub mod commands;
pub mod guest;
pub mod host;
pub mod kernel;
pub mod probes;
pub mod sampler;
pub mod self_test;
pub mod serve;
pub mod session;
pub mod terminal;
pub mod top;
pub mod vm;
