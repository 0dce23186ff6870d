//! How swapping went.

use crate::model::state::{State, StateTimes};
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

/// A place that pages are swapped to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwapArea {
    /// The device's or file's name, without its folder.
    pub name: String,
    /// How large it is, in bytes.
    pub size_bytes: u64,
    /// How much of it is in use, in bytes.
    pub used_bytes: u64,
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

impl Rates {
    /// Over all the time; what is not known all the time is not known. `None` of no time.
    pub fn mean<'a>(all: impl Iterator<Item = &'a Self> + Clone) -> Option<Self> {
        let length_ns: u64 = all.clone().map(|rates| rates.length_ns).sum();
        let of = |field: fn(&Self) -> Option<f64>| -> Option<f64> {
            let parts = all.clone().map(|rates| Some(field(rates)? * rates.length_ns as f64));
            Some(parts.sum::<Option<f64>>()? / length_ns as f64)
        };
        (length_ns > 0).then(|| Self {
            length_ns,
            swapped_in: of(|rates| rates.swapped_in),
            swapped_out: of(|rates| rates.swapped_out),
            stall: of(|rates| rates.stall),
            io_wait: of(|rates| rates.io_wait),
            available: of(|rates| rates.available),
        })
    }

    /// Of the time of both.
    fn followed_by(before: Option<Self>, next: Option<Self>) -> Option<Self> {
        Self::mean(before.iter().chain(next.iter()))
    }
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
    /// The worst of the interval.
    pub state: SwapState,
    /// How long it was in which.
    pub times: StateTimes<SwapState>,
    /// Between the looks of this interval, the last one before it included; `None` if it had no
    /// look.
    pub rates: Option<Rates>,
    /// At the last look.
    pub memory: Option<Memory>,
    /// MemAvailable, and what ZFS gives back of its cache, at the look at which that was least, in bytes.
    pub least_available: Option<u64>,
    /// Pages that anybody was given, a second, over the time of the rates.
    pub allocated: Option<f64>,
}

impl HostSwap {
    /// Both as one, `next` being the later.
    pub fn followed_by(self, next: Self) -> Self {
        let pages = |swap: Self| Some(swap.allocated? * swap.rates?.length_ns as f64);
        let rates = Rates::followed_by(self.rates, next.rates);
        let allocated = match (self.rates, next.rates) {
            (Some(_), Some(_)) => {
                let both = pages(self).zip(pages(next)).zip(rates);
                both.map(|((before, next), rates)| (before + next) / rates.length_ns as f64)
            }
            (_, None) => self.allocated,
            (None, _) => next.allocated,
        };
        Self {
            state: self.state.max(next.state),
            times: self.times.plus(next.times),
            rates,
            memory: next.memory.or(self.memory),
            least_available: self.least_available.into_iter().chain(next.least_available).min(),
            allocated,
        }
    }
}

/// The swapping of a VM in an interval.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct VmSwap {
    /// The worst of the interval.
    pub state: SwapState,
    /// How long it was in which.
    pub times: StateTimes<SwapState>,
    /// Between the looks of this interval, the last one before it included; `None` if it had no
    /// look.
    pub rates: Option<Rates>,
    /// What its cgroup may hold, in bytes, as of the last check; `None` without a limit.
    pub limit: Option<u64>,
}

impl VmSwap {
    /// Both as one, `next` being the later.
    pub fn followed_by(self, next: Self) -> Self {
        Self {
            state: self.state.max(next.state),
            times: self.times.plus(next.times),
            rates: Rates::followed_by(self.rates, next.rates),
            limit: next.limit.or(self.limit),
        }
    }
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
