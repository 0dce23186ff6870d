//! A fault above `--slow-faults`.

use crate::model::evictions::Aggressor;
use overcommit_ebpf::layout::{self, Metric};

/// A slow fault, with what the programs only number.
pub struct SlowFault {
    /// As the programs sent it.
    pub fault: layout::SlowFault,
    /// Minor or major.
    pub metric: Metric,
    /// The device from which it read a swapped page, if it did.
    pub device: Option<String>,
    /// Where in its guest's physical memory the address lies, if that can be told.
    pub guest_address: Option<u64>,
    /// Where in the kernel it slept longest: functions, the outermost first.
    pub stack: Option<String>,
    /// Who had evicted the page that it read back, if that is known.
    pub aggressor: Option<Aggressor>,
}
