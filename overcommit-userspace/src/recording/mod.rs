//! A recording: a folder that is complete after every interval.
//!
//! `writer` adds an interval to the logs and then replaces run.json, which says
//! how far they go; `reader` believes run.json and the logs where they agree.

pub mod folder;
#[cfg(test)]
mod golden;
pub mod reader;
pub mod rows;
pub mod run_file;
pub mod span;
pub mod writer;

pub use folder::Folder;
pub use reader::Recording;
pub use run_file::RunFile;
pub use span::Span;
pub use writer::Writer;

use crate::host::{HostSample, VmHostSample};
use crate::sampler::VmSample;
use crate::sampler::evictions::EvictionSample;

/// What the sampler saw between two drains.
#[derive(Debug)]
pub struct Interval {
    /// Counts from 0.
    pub number: u64,
    /// Start, in Unix microseconds: what rows join by. It can step back.
    pub start_us: u64,
    /// Start after the recording's start by the monotonic clock, in nanoseconds.
    pub offset_ns: u64,
    /// Length by the monotonic clock, in nanoseconds.
    pub length_ns: u64,
    /// Whether it is shorter than asked for: the first and the last one are.
    pub partial: bool,
    /// Each VM that was recorded.
    pub vms: Vec<VmSample>,
    /// Who took pages of whom.
    pub evictions: Vec<EvictionSample>,
    /// The host.
    pub host: HostSample,
    /// In the order of `vms`.
    pub vm_hosts: Vec<VmHostSample>,
}
