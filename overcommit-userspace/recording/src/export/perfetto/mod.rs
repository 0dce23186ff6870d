//! A recording as a trace for Perfetto's viewer: for each VM its slow faults, its states and a few
//! figures over time, beside those of the host and the marks.

mod proto;
mod trace;

use crate::export::files::Selection;
use crate::model::interval::{HostInterval, Interval, VmInterval};
use crate::model::run::{Run, RunVm};
use crate::model::slow_fault::SlowFault;
use crate::model::state::State;
use crate::model::totals::per_second;
use crate::recording::span::marks;
use crate::recording::{Folder, Recording, Span};
use anyhow::{Result, ensure};
use overcommit_ebpf::layout::{Metric, Part};
use std::collections::BTreeSet;
use std::path::PathBuf;
use trace::{Note, Trace};

/// The file, within the folder for exports.
const NAME: &str = "overcommit.perfetto-trace";
/// States in which nothing happens have no slice.
const CALM: [&str; 4] = ["unknown", "healthy", "normal", "safe"];

/// A figure over time: its name, its unit, and how an interval of that length has it.
type Counter<T> = (&'static str, &'static str, fn(&Run, &T, u64) -> Option<f64>);

const OF_VM: [Counter<VmInterval>; 6] = [
    ("stall share", "%", |_, vm, _| vm.stall?.share().map(percent)),
    ("CPU wait share", "%", |_, vm, _| vm.stall?.cpu_share(vm.cpu_wait_ns?).map(percent)),
    ("major faults", "/s", |_, vm, length_ns| {
        per_second(vm.latencies(Metric::FaultMajor)?.count(), vm.recorded_of(length_ns))
    }),
    ("swapped in", "bytes/s", |run, vm, _| bytes(run, vm.swap.rates?.swapped_in)),
    ("working set, at most", "bytes", |_, vm, _| Some(vm.working_set?.range.upper as f64)),
    ("resident", "bytes", |_, vm, _| Some(vm.memory?.resident as f64)),
];

const OF_HOST: [Counter<HostInterval>; 3] = [
    ("swapped in", "bytes/s", |run, host, _| bytes(run, host.swap.rates?.swapped_in)),
    ("swapped out", "bytes/s", |run, host, _| bytes(run, host.swap.rates?.swapped_out)),
    ("memory available", "bytes", |_, host, _| Some(host.swap.memory?.available? as f64)),
];

fn percent(share: f64) -> f64 {
    share * 100.0
}

fn bytes(run: &Run, pages: Option<f64>) -> Option<f64> {
    Some(pages? * run.page_size as f64)
}

/// Writes the trace of these VMs below `into`, or below a folder in the recording's own; gives where
/// it is.
///
/// # Errors
/// Metrics are meant or no VM is, a file cannot be read, or the trace not be written.
pub(super) fn write(
    recording: &Recording,
    span: Span,
    selection: &Selection,
    into: Option<&Folder>,
) -> Result<PathBuf> {
    ensure!(selection.metrics.is_empty(), "a trace holds no single metric; leave --metric out");
    let run = &recording.run;
    let is_wanted: Vec<bool> = run.vms.iter().map(|vm| selection.wants_vm(vm)).collect();
    let names = || run.vms.iter().map(|vm| vm.name.as_str()).collect::<Vec<_>>().join(", ");
    ensure!(is_wanted.contains(&true), "no VM matches; the recording has {}", names());
    let mut tracks = Tracks::of(run, &is_wanted);
    recording.each(span, &|name| *name == Metric::FaultMajor.into(), |interval| {
        tracks.add(run, interval);
        Ok(())
    })?;
    ensure!(tracks.until_ns > 0, "no interval lies in that span");
    tracks.end();
    recording.each_slow_fault(|fault| {
        let start_ns = fault.end_ns.saturating_sub(fault.latency_ns);
        if span.holds(start_ns / 1_000, fault.latency_ns) {
            tracks.add_fault(fault);
        }
        Ok(())
    })?;
    let marks = marks(&recording.folder)?.into_iter().filter(|mark| span.holds(mark.at_us, 0));
    for mark in marks {
        tracks.trace.instant(tracks.host, "marks", mark.at_us.saturating_mul(1_000), &mark.text);
    }
    let (folder, name) = match into {
        Some(into) => (into, NAME.to_owned()),
        None => (&recording.folder, format!("{}/{NAME}", super::FOLDER)),
    };
    folder.refresh(&name, &tracks.trace.bytes())?;
    Ok(folder.file(&name))
}

/// The host and each VM.
struct Tracks {
    trace: Trace,
    host: u64,
    /// `None` of VMs that are not wanted.
    vms: Vec<Option<u64>>,
    /// VMs of the last interval.
    present: BTreeSet<usize>,
    /// Where it ended, in Unix nanoseconds.
    until_ns: u64,
    /// Time since the kernel was asked for PSI.
    unasked_ns: u64,
}

impl Tracks {
    fn of(run: &Run, is_wanted: &[bool]) -> Self {
        let mut trace = Trace::new(&run.clocks);
        let host = trace.group(&format!("host {}", run.host));
        let name = |vm: &RunVm| format!("VM {} ({})", vm.name, vm.vm_id);
        let vms = run.vms.iter().zip(is_wanted);
        let vms = vms.map(|(vm, is_wanted)| is_wanted.then(|| trace.group(&name(vm)))).collect();
        Self { trace, host, vms, present: BTreeSet::new(), until_ns: 0, unasked_ns: 0 }
    }

    fn add(&mut self, run: &Run, interval: &Interval) {
        let at_ns = interval.place.start_us.saturating_mul(1_000);
        let length_ns = interval.place.length_ns;
        self.trace.go_on(at_ns, length_ns);
        for (name, unit, get) in OF_HOST {
            let value = get(run, &interval.host, length_ns);
            self.trace.counter(self.host, (name, unit), at_ns, value);
        }
        self.pressure(&interval.host, at_ns, length_ns);
        let overcommit = interval.host.overcommit.map(|sum| sum.state).unwrap_or_default();
        self.state(self.host, "swap state", at_ns, interval.host.swap.state);
        self.state(self.host, "balloon state", at_ns, interval.host.balloon);
        self.state(self.host, "overcommit state", at_ns, overcommit);
        let before = std::mem::take(&mut self.present);
        for vm in &interval.vms {
            let Some(Some(track)) = self.vms.get(vm.vm).copied() else { continue };
            self.present.insert(vm.vm);
            for (name, unit, get) in OF_VM {
                self.trace.counter(track, (name, unit), at_ns, get(run, vm, length_ns));
            }
            self.state(track, "swap state", at_ns, vm.swap.state);
        }
        for gone in before.difference(&self.present) {
            if let Some(Some(track)) = self.vms.get(*gone) {
                self.trace.end_group(*track, at_ns);
            }
        }
        self.until_ns = at_ns.saturating_add(length_ns);
    }

    /// PSI is of the time since the last look, which several intervals may be.
    fn pressure(&mut self, host: &HostInterval, at_ns: u64, length_ns: u64) {
        self.unasked_ns = self.unasked_ns.saturating_add(length_ns);
        let Some(some_ns) = host.pressure.some_ns else { return };
        let share = some_ns as f64 / std::mem::take(&mut self.unasked_ns).max(1) as f64;
        let value = Some(percent(share.min(1.0)));
        self.trace.counter(self.host, ("PSI memory some", "%"), at_ns, value);
    }

    fn state(&mut self, group: u64, name: &'static str, at_ns: u64, state: impl State) {
        let state = Some(state.name()).filter(|state| !CALM.contains(state));
        self.trace.state(group, name, at_ns, state);
    }

    /// The last interval is over.
    fn end(&mut self) {
        self.trace.end_states(self.until_ns);
    }

    /// A fault on the track of its thread, where no two are at a time.
    fn add_fault(&mut self, fault: &SlowFault) {
        let Some(Some(group)) = self.vms.get(fault.vm).copied() else { return };
        let mut notes = vec![("address", Note::Text(format!("{:#x}", fault.address)))];
        notes.extend(fault.backing.map(|backing| ("took", Note::Text(backing.name().to_owned()))));
        let text = |text: &Option<String>| text.clone().map(Note::Text);
        notes.extend(text(&fault.swap_device).map(|device| ("swap device", device)));
        notes.extend(text(&fault.stack).map(|stack| ("longest sleep in", stack)));
        let aggressor = fault.aggressor.as_ref();
        notes.extend(aggressor.map(|by| ("evicted by", Note::Text(by.name.clone()))));
        let parts = Part::ALL.into_iter().filter_map(|part| Some((part, fault.time.of(part)?)));
        notes.extend(parts.map(|(part, ns)| (part.name(), Note::Nanoseconds(ns))));
        let thread = format!("{} {}", fault.thread, fault.tid);
        let start_ns = fault.end_ns.saturating_sub(fault.latency_ns);
        let name = fault.metric.as_str();
        self.trace.slice(group, &thread, [start_ns, fault.end_ns], name, notes);
    }
}
