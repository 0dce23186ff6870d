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

const SECOND_NS: u64 = 1_000_000_000;

/// Random figures that are the same each time (splitmix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 to 1, neither of them.
    pub(crate) fn share(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// Of mean 0 and deviation 1 (Box and Muller).
    pub(crate) fn normal(&mut self) -> f64 {
        let (radius, angle) = (self.share(), self.share());
        (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
    }
}

/// Latencies of an interval, in nanoseconds.
pub(crate) fn latencies(values: impl IntoIterator<Item = u64>) -> Latencies {
    let mut latencies = Latencies::empty();
    for value in values {
        latencies.record(value, 1);
        latencies.sum_ns += value;
        latencies.max_ns = latencies.max_ns.max(value);
    }
    latencies
}

/// Writes a recording of that many VMs with an interval a second: `next` gives the latencies
/// of a VM's metric in the next one.
pub(crate) fn write(
    path: &Path,
    vms: usize,
    seconds: u64,
    metrics: &[Metric],
    mut next: impl FnMut(usize, Metric) -> Latencies,
) -> Result<Folder> {
    let start = Clocks { realtime_ns: 1_700_000_000 * SECOND_NS, ..Clocks::default() };
    let mut run = run(start, vms);
    let folder = Folder::create(path, None)?;
    let mut writer = Writer::create(folder.clone(), &run)?;
    for number in 0..seconds {
        let mut metric = |vm, metric: Metric| MetricInterval {
            vm,
            name: metric.into(),
            coverage: Coverage::Full,
            latencies: next(vm, metric),
        };
        let of = |vm| vm_interval(vm, metrics.iter().map(|kind| metric(vm, *kind)).collect());
        let vms = (0..vms).map(of).collect();
        run.recorded.intervals = number + 1;
        writer.write(&run, &interval(number, start, vms))?;
    }
    let end_ns = seconds * SECOND_NS;
    run.clocks.end =
        Some(Clocks { realtime_ns: start.realtime_ns + end_ns, monotonic_ns: end_ns, ..start });
    writer.write_run(&run)?;
    Ok(folder)
}

fn run(start: Clocks, vms: usize) -> Run {
    let vm = |vm: usize| {
        let id = VmId { pid: vm as i32 + 1, start_ticks: 1 };
        let vm = Vm { name: Name::new(format!("vm{vm}")), ..Vm::gone(id) };
        RunVm::found(&vm, &[], &start, [0; 2])
    };
    Run {
        schema: Run::schema(),
        host: "simulated".to_owned(),
        options: Options { interval_ns: SECOND_NS, ..Options::default() },
        clocks: RunClocks { start, steps: Vec::new(), end: None },
        vms: (0..vms).map(vm).collect(),
        ..Run::default()
    }
}

fn vm_interval(vm: usize, metrics: Vec<MetricInterval>) -> VmInterval {
    let faults = metrics.iter().filter(|metric| metric.name == Metric::FaultMajor.into());
    let [mut count, mut waited_ns] = [0; 2];
    for metric in faults {
        count += metric.latencies.count();
        waited_ns += metric.latencies.sum_ns;
    }
    VmInterval {
        vm,
        metrics,
        seen: Seen { counted: count, kernel: count },
        stall: Some(Stall {
            waited_ns,
            runq_ns: 0,
            vcpu_ns: SECOND_NS,
            known_ns: SECOND_NS,
            unknown_vcpu_ns: 0,
            source: StallSource::Faults,
        }),
        ..VmInterval::default()
    }
}

fn interval(number: u64, start: Clocks, vms: Vec<VmInterval>) -> Interval {
    Interval {
        place: Place {
            number,
            start_us: start.realtime_ns / 1_000 + number * 1_000_000,
            offset_ns: number * SECOND_NS,
            length_ns: SECOND_NS,
            partial: false,
            delayed: false,
        },
        vms,
        ..Interval::default()
    }
}
