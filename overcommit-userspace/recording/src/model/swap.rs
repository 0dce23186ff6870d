//! How swapping went.

use crate::model::state::State;
use serde::{Deserialize, Serialize};

/// How much swapping hurts.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum SwapState {
    /// Not looked at for long enough, or something that it takes cannot be read here.
    #[default]
    Unknown,
    /// Nobody waits for swap.
    Healthy,
    /// Pages are read back, or somebody waits for memory.
    Pressure,
    /// Pages are read back while others are pushed out, and the wait for them is a good
    /// part of the time.
    Thrashing,
}

impl State for SwapState {
    const ALL: &'static [Self] = &[Self::Unknown, Self::Healthy, Self::Pressure, Self::Thrashing];

    fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Healthy => "healthy",
            Self::Pressure => "pressure",
            Self::Thrashing => "thrashing",
        }
    }
}

/// What was seen over a second or so. `None` where it cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Over how long, in nanoseconds.
    pub length_ns: u64,
    /// Pages swapped in, a second.
    pub swapped_in: Option<f64>,
    /// Pages swapped out, a second.
    pub swapped_out: Option<f64>,
    /// Part of the time for which somebody waited for memory.
    pub stall: Option<f64>,
    /// Part of the CPU time in which nobody ran and somebody waited for I/O.
    pub io_wait: Option<f64>,
    /// Part of the host's memory that is available.
    pub available: Option<f64>,
}

/// What /proc/meminfo says, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// MemTotal
    pub total: u64,
    /// MemAvailable
    pub available: Option<u64>,
    /// SwapTotal
    pub swap_total: u64,
    /// SwapFree
    pub swap_free: u64,
}

/// The swapping of the host in an interval.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct HostSwap {
    /// As of the last look.
    pub state: SwapState,
    /// Since the look before; `None` if this interval had no look.
    pub rates: Option<Rates>,
    /// At the look.
    pub memory: Option<Memory>,
    /// Pages that anybody was given since the look before, a second.
    pub allocated: Option<f64>,
}

/// The swapping of a VM in an interval.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct VmSwap {
    /// As of the last look.
    pub state: SwapState,
    /// Since the look before; `None` if this interval had no look.
    pub rates: Option<Rates>,
    /// What its cgroup may hold, in bytes, as of the last check; `None` without a limit.
    pub limit: Option<u64>,
}

/// Where the rates of a VM come from, by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwapSources {
    /// What is counted as swapped in.
    pub swapped_in: Option<SwappedIn>,
    /// What is counted as swapped out; nothing of a VM that shares its cgroup.
    pub swapped_out: Option<SwappedOut>,
}

/// See [`SwapSources`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SwappedIn {
    /// pswpin, zswpin and swpin_zero of its cgroup's memory.stat.
    #[serde(rename = "memory.stat pswpin")]
    Cgroup,
    /// pgmajfault of its cgroup: faults, of which each brings a page or more.
    #[serde(rename = "memory.stat pgmajfault")]
    CgroupMajors,
    /// The same with workingset_refault_file: its memory is a file's.
    #[serde(rename = "memory.stat pgmajfault + workingset_refault_file")]
    CgroupFiles,
    /// The metric.
    #[serde(rename = "swapin")]
    Swapins,
    /// The metric.
    #[serde(rename = "fault.major")]
    Majors,
    /// What a later version knows.
    #[serde(other)]
    Other,
}

/// See [`SwapSources`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SwappedOut {
    /// pswpout, zswpout and swpout_zero of its cgroup's memory.stat.
    #[serde(rename = "memory.stat pswpout")]
    Cgroup,
    /// Folios of its cgroup that reclaim writes out.
    #[serde(rename = "mm_vmscan_write_folio")]
    Tracepoint,
    /// What a later version knows.
    #[serde(other)]
    Other,
}
