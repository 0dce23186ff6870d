//! A VM's first seconds: restores of snapshots and boots are judged by what they wait for then.

use overcommit_ebpf::layout::{FaultBacking, NEVER_RAN, PHASES_NS};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Its faults within one of the times after its first vCPU ran.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StartPhase {
    /// That time.
    pub within_s: f64,
    /// Its faults, by what they took.
    pub faults: BTreeMap<String, StartFaults>,
}

/// Faults of a kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartFaults {
    /// How many.
    pub count: u64,
    /// Their time, in nanoseconds.
    pub sum_ns: u64,
}

/// What is counted in each phase, by the number of a [`FaultBacking`]: how many faults, and their time.
pub type Counted = [[[u64; 2]; FaultBacking::COUNT + 1]; PHASES_NS.len()];

impl StartPhase {
    /// The phases, each with those before it; `None` of a VM that was not there from its start on, or
    /// has not run yet. `first_run_ns` as in [`Vm`](overcommit_ebpf::layout::Vm::first_run_ns).
    pub fn all(first_run_ns: u64, counted: &Counted) -> Option<Vec<Self>> {
        if first_run_ns <= NEVER_RAN {
            return None;
        }
        let mut sums = BTreeMap::<String, StartFaults>::new();
        let phases = PHASES_NS.iter().zip(counted).map(|(length, by)| {
            for backing in FaultBacking::ALL {
                let [count, sum_ns] = by[backing as usize];
                if count > 0 {
                    let sum = sums.entry(backing.name().to_owned()).or_default();
                    sum.count += count;
                    sum.sum_ns += sum_ns;
                }
            }
            Self { within_s: *length as f64 / 1e9, faults: sums.clone() }
        });
        Some(phases.collect())
    }

    /// All of its faults.
    pub fn total(&self) -> StartFaults {
        let add = |sum: StartFaults, of: &StartFaults| StartFaults {
            count: sum.count.saturating_add(of.count),
            sum_ns: sum.sum_ns.saturating_add(of.sum_ns),
        };
        self.faults.values().fold(StartFaults::default(), add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_holds_those_before_it() {
        let mut counted = Counted::default();
        assert_eq!(StartPhase::all(0, &counted), None, "it was not there from its start on");
        assert_eq!(StartPhase::all(NEVER_RAN, &counted), None, "it has not run");
        for (phase, count) in [(0, 5), (2, 7)] {
            counted[phase][FaultBacking::Userfault as usize] = [count, count * 1_000];
        }
        let phases = StartPhase::all(4711, &counted).unwrap();
        let of: Vec<_> = phases.iter().map(|phase| (phase.within_s, phase.total().count)).collect();
        assert_eq!(of, [(0.1, 5), (1.0, 5), (10.0, 12)]);
        assert_eq!(phases[2].faults["userfault"], StartFaults { count: 12, sum_ns: 12_000 });
    }
}
