//! Loads that change by themselves.

use crate::model::{Random, latencies, write};
use anyhow::Result;
use overcommit_ebpf::layout::Metric;
use overcommit_recording::model::latencies::Latencies;
use overcommit_recording::recording::Folder;
use std::path::Path;

/// How a load changes by itself.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Load {
    /// Its level follows the last second's with a factor of 0.8.
    Drifting,
    /// It is slow for 15 s on average, then fast for as long.
    Bursts,
}

/// The level of a load, second by second, as the logarithm of a factor.
struct Level {
    load: Load,
    now: f64,
}

impl Level {
    fn next(&mut self, random: &mut Random) -> f64 {
        self.now = match self.load {
            Load::Drifting => 0.8 * self.now + 0.6 * 0.5 * random.normal(),
            Load::Bursts => {
                let is_slow = self.now > 0.0;
                let changes = random.share() < 1.0 / 15.0;
                if is_slow == changes { 0.0 } else { 4f64.ln() }
            }
        };
        self.now
    }
}

/// Writes a recording of one VM: the latency of its major faults, times a factor.
pub(crate) fn recording(
    path: &Path,
    load: Load,
    seconds: u64,
    seed: u64,
    factor: f64,
) -> Result<Folder> {
    let mut random = Random(seed);
    // What comes before is forgotten.
    let mut level = Level { load, now: 0.0 };
    for _ in 0..100 {
        level.next(&mut random);
    }
    write(path, 1, seconds, &[Metric::FaultMinor, Metric::FaultMajor], |_, metric| {
        if metric == Metric::FaultMinor {
            return Latencies::empty();
        }
        let level = level.next(&mut random);
        let count = 40 + random.next() % 21;
        latencies((0..count).map(|_| (100_000.0 * factor * (level + random.normal()).exp()) as u64))
    })
}
