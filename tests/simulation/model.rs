//! Made-up recordings.

use anyhow::Result;
use overcommit_ebpf::layout::Metric;
use overcommit_recording::model::clock::Clocks;
use overcommit_recording::model::coverage::{Coverage, Seen};
use overcommit_recording::model::interval::{
    Interval, MetricInterval, Place, Stall, StallSource, VmInterval,
};
use overcommit_recording::model::latencies::Latencies;
use overcommit_recording::model::name::Name;
use overcommit_recording::model::run::{Options, Run, RunClocks, RunVm};
use overcommit_recording::model::vm::{Vm, VmId};
use overcommit_recording::recording::{Folder, Writer};
use std::path::Path;

/// How a load changes by itself.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Load {
    /// Its level follows the last second's with a factor of 0.8.
    Drifting,
    /// It is slow for 15 s on average, then fast for as long.
    Bursts,
}

/// Seconds of an interval.
const INTERVAL: u64 = 1;
const SECOND_NS: u64 = 1_000_000_000;

/// Random figures that are the same each time (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 to 1, neither of them.
    fn share(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// Of mean 0 and deviation 1 (Box and Muller).
    fn normal(&mut self) -> f64 {
        let (radius, angle) = (self.share(), self.share());
        (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
    }
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
    let start = Clocks { realtime_ns: 1_700_000_000 * SECOND_NS, ..Clocks::default() };
    let mut run = run(start);
    let folder = Folder::create(path, None)?;
    let mut writer = Writer::create(folder.clone(), &run)?;
    for number in 0..seconds / INTERVAL {
        let mut latencies = Latencies::empty();
        for _ in 0..INTERVAL {
            let level = level.next(&mut random);
            for _ in 0..40 + random.next() % 21 {
                let latency = 100_000.0 * factor * (level + random.normal()).exp();
                latencies.histogram.saturating_record(latency as u64);
                latencies.sum_ns += latency as u64;
                latencies.max_ns = latencies.max_ns.max(latency as u64);
            }
        }
        run.recorded.intervals = number + 1;
        writer.write(&run, &interval(number, start, latencies))?;
    }
    let end_ns = seconds * SECOND_NS;
    run.clocks.end =
        Some(Clocks { realtime_ns: start.realtime_ns + end_ns, monotonic_ns: end_ns, ..start });
    writer.write_run(&run)?;
    Ok(folder)
}

fn run(start: Clocks) -> Run {
    let vm = Vm { name: Name::new("vm"), ..Vm::gone(VmId { pid: 1, start_ticks: 1 }) };
    Run {
        schema: Run::schema(),
        host: "simulated".to_owned(),
        options: Options { interval_ns: INTERVAL * SECOND_NS, ..Options::default() },
        clocks: RunClocks { start, steps: Vec::new(), end: None },
        vms: vec![RunVm::found(&vm, &[], &start, [0; 2])],
        ..Run::default()
    }
}

fn interval(number: u64, start: Clocks, latencies: Latencies) -> Interval {
    let length_ns = INTERVAL * SECOND_NS;
    let count = latencies.count();
    let stall =
        Stall { waited_ns: latencies.sum_ns, vcpu_ns: length_ns, source: StallSource::Faults };
    let metric = |metric: Metric, latencies| MetricInterval {
        vm: 0,
        name: metric.into(),
        coverage: Coverage::Full,
        latencies,
    };
    let vm = VmInterval {
        metrics: vec![
            metric(Metric::FaultMinor, Latencies::empty()),
            metric(Metric::FaultMajor, latencies),
        ],
        seen: Seen { counted: count, kernel: count },
        stall: Some(stall),
        ..VmInterval::default()
    };
    Interval {
        place: Place {
            number,
            start_us: start.realtime_ns / 1_000 + number * INTERVAL * 1_000_000,
            offset_ns: number * length_ns,
            length_ns,
            partial: false,
        },
        vms: vec![vm],
        ..Interval::default()
    }
}
