//! A fault above `--slow-faults`.

use crate::model::breakdown::Breakdown;
use crate::model::evictions::Aggressor;
use crate::model::metric::MetricName;
use overcommit_ebpf::layout::FaultBacking;

/// A fault that took long, and what is known of it.
#[derive(Clone, Debug, PartialEq)]
pub struct SlowFault {
    /// Whose memory it filled, as an index into [`Run::vms`](crate::model::run::Run::vms).
    pub vm: usize,
    /// Its end, in Unix nanoseconds.
    pub end_ns: u64,
    /// Thread that took it.
    pub tid: u32,
    /// The thread's name, as it may be shown.
    pub thread: String,
    /// `fault.minor` or `fault.major`.
    pub metric: MetricName,
    /// How long it took, in nanoseconds.
    pub latency_ns: u64,
    /// The address that faulted, in the VM's process.
    pub address: u64,
    /// What it took, if that is known.
    pub backing: Option<FaultBacking>,
    /// The device from which it read a swapped page, if it did.
    pub swap_device: Option<String>,
    /// Where in the kernel it slept longest: functions, the outermost first.
    pub stack: Option<String>,
    /// Where in its guest's physical memory the address lies, if that can be told.
    pub guest_address: Option<u64>,
    /// Who had evicted the page that it read back, if that is known.
    pub aggressor: Option<Aggressor>,
    /// What its time went into.
    pub time: Breakdown,
}

impl SlowFault {
    /// Nothing, before a row is read into it.
    pub fn none() -> Self {
        Self {
            vm: 0,
            end_ns: 0,
            tid: 0,
            thread: String::new(),
            metric: MetricName::new(""),
            latency_ns: 0,
            address: 0,
            backing: None,
            swap_device: None,
            stack: None,
            guest_address: None,
            aggressor: None,
            time: Breakdown::default(),
        }
    }
}
