//! What a recording took of its host.

use serde::{Deserialize, Serialize};

/// What recording took so far. Durations in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// For how long it has recorded.
    pub length_ns: u64,
    /// CPU time of overcommit's own process.
    pub cpu_ns: u64,
    /// Bytes of that process in RAM, at the most, without what it shares with the kernel.
    pub resident_peak_bytes: u64,
    /// Bytes of kernel memory of its eBPF maps and programs; their machine code and the events that
    /// run them are not in it.
    pub kernel_bytes: u64,
    /// CPU time of its eBPF programs while the kernel timed them, without the way into them; `None`
    /// where it never did.
    pub programs_ns: Option<u64>,
    /// For how long it timed them.
    pub programs_timed_ns: u64,
    /// Why they were not timed, if so.
    pub programs_untimed: Option<String>,
}

impl Cost {
    /// CPUs that overcommit's own process took, on average.
    pub fn process_cpus(&self) -> f64 {
        self.cpu_ns as f64 / self.length_ns.max(1) as f64
    }

    /// CPUs that its programs took, on average; `None` where they were not timed.
    pub fn programs_cpus(&self) -> Option<f64> {
        let timed = (self.programs_timed_ns > 0).then_some(self.programs_timed_ns as f64)?;
        Some(self.programs_ns? as f64 / timed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_the_time_that_was_measured() {
        let cost = Cost {
            length_ns: 10_000,
            cpu_ns: 100,
            programs_ns: Some(5),
            programs_timed_ns: 500,
            ..Cost::default()
        };
        assert_eq!((cost.process_cpus(), cost.programs_cpus()), (0.01, Some(0.01)));
        assert_eq!(Cost { programs_timed_ns: 0, ..cost.clone() }.programs_cpus(), None);
        assert_eq!(Cost { programs_ns: None, ..cost }.programs_cpus(), None);
        assert_eq!(Cost::default().process_cpus(), 0.0);
    }
}
