//! A trace as it grows: tracks are described when something first happens on them.

use super::proto::{
    BOOTTIME, Clock, ClockSnapshot, CounterDescriptor, DebugAnnotation, MONOTONIC, REALTIME,
    Trace as Message, TracePacket, TrackDescriptor, TrackEvent, Type,
};
use crate::model::clock::Clocks;
use crate::model::run::RunClocks;
use prost::Message as _;
use std::collections::BTreeMap;

/// Who writes packets: we alone.
const SEQUENCE: u32 = 1;

/// What is known of a slice beside its name.
pub(super) enum Note {
    Text(String),
    Nanoseconds(u64),
}

/// Packets so far.
pub(super) struct Trace {
    bytes: Vec<u8>,
    /// From when on, by the time of day, the clocks stood to each other as then.
    clocks: Vec<Clocks>,
    last_track: u64,
    /// By group and name, with the value that it has.
    tracks: BTreeMap<(u64, String), (u64, Option<f64>)>,
    /// States that have begun, by track.
    open: BTreeMap<u64, &'static str>,
}

impl Trace {
    pub(super) fn new(clocks: &RunClocks) -> Self {
        let mut trace = Self {
            bytes: Vec::new(),
            clocks: std::iter::once(clocks.start).chain(clocks.steps.iter().copied()).collect(),
            last_track: 0,
            tracks: BTreeMap::new(),
            open: BTreeMap::new(),
        };
        for moment in trace.clocks.clone() {
            trace.snapshot(moment);
        }
        trace
    }

    pub(super) fn bytes(self) -> Vec<u8> {
        self.bytes
    }

    fn add(&mut self, packet: TracePacket) {
        let sequence = Some(SEQUENCE);
        let packet = TracePacket { trusted_packet_sequence_id: sequence, ..packet };
        self.bytes.extend(Message { packet: vec![packet] }.encode_to_vec());
    }

    fn snapshot(&mut self, moment: Clocks) {
        let clock = |(id, ns)| Clock { clock_id: Some(id), timestamp: Some(ns) };
        let all = [
            (REALTIME, moment.realtime_ns),
            (MONOTONIC, moment.monotonic_ns),
            (BOOTTIME, moment.boottime_ns),
        ];
        self.add(TracePacket {
            timestamp: Some(moment.boottime_ns),
            clock_snapshot: Some(ClockSnapshot { clocks: all.map(clock).into() }),
            ..TracePacket::default()
        });
    }

    /// Nanoseconds since boot at that time of day.
    fn boottime_of(&self, unix_ns: u64) -> u64 {
        let before = self.clocks.iter().rev().find(|moment| moment.realtime_ns <= unix_ns);
        let Some(moment) = before.or(self.clocks.first()) else { return unix_ns };
        let since = unix_ns.wrapping_sub(moment.realtime_ns).cast_signed();
        moment.boottime_ns.saturating_add_signed(since)
    }

    fn described(&mut self, parent: Option<u64>, name: &str, unit: Option<&str>) -> u64 {
        self.last_track += 1;
        let counter = unit.map(|unit| CounterDescriptor { unit_name: Some(unit.to_owned()) });
        self.add(TracePacket {
            track_descriptor: Some(TrackDescriptor {
                uuid: Some(self.last_track),
                name: Some(name.to_owned()),
                parent_uuid: parent,
                counter,
            }),
            ..TracePacket::default()
        });
        self.last_track
    }

    /// A track that holds others.
    pub(super) fn group(&mut self, name: &str) -> u64 {
        self.described(None, name, None)
    }

    fn track(&mut self, group: u64, name: &str, unit: Option<&str>) -> u64 {
        let key = (group, name.to_owned());
        if let Some((track, _)) = self.tracks.get(&key) {
            return *track;
        }
        let track = self.described(Some(group), name, unit);
        self.tracks.insert(key, (track, None));
        track
    }

    fn event(&mut self, unix_ns: u64, r#type: Type, event: TrackEvent) {
        self.add(TracePacket {
            timestamp: Some(self.boottime_of(unix_ns)),
            track_event: Some(TrackEvent { r#type: Some(r#type.into()), ..event }),
            ..TracePacket::default()
        });
    }

    /// A figure from that time on; what is not known, or stays as it was, is no event.
    pub(super) fn counter(
        &mut self,
        group: u64,
        (name, unit): (&str, &str),
        unix_ns: u64,
        value: Option<f64>,
    ) {
        let Some(value) = value else { return };
        let track = self.track(group, name, Some(unit));
        if let Some((_, before)) = self.tracks.get_mut(&(group, name.to_owned()))
            && before.replace(value) == Some(value)
        {
            return;
        }
        let (track_uuid, double_counter_value) = (Some(track), Some(value));
        let event = TrackEvent { track_uuid, double_counter_value, ..TrackEvent::default() };
        self.event(unix_ns, Type::Counter, event);
    }

    /// A state from that time on; none ends the one before.
    pub(super) fn state(
        &mut self,
        group: u64,
        name: &str,
        unix_ns: u64,
        state: Option<&'static str>,
    ) {
        let track = match state {
            Some(_) => self.track(group, name, None),
            None => match self.tracks.get(&(group, name.to_owned())) {
                Some((track, _)) => *track,
                None => return,
            },
        };
        if self.open.get(&track).copied() == state {
            return;
        }
        if self.open.remove(&track).is_some() {
            self.end_slice(track, unix_ns);
        }
        if let Some(state) = state {
            self.open.insert(track, state);
            self.begin_slice(track, unix_ns, state, Vec::new());
        }
    }

    /// Ends those that have not ended.
    pub(super) fn end_states(&mut self, unix_ns: u64) {
        for track in std::mem::take(&mut self.open).into_keys() {
            self.end_slice(track, unix_ns);
        }
    }

    fn begin_slice(
        &mut self,
        track: u64,
        unix_ns: u64,
        name: &str,
        debug_annotations: Vec<DebugAnnotation>,
    ) {
        let (track_uuid, name) = (Some(track), Some(name.to_owned()));
        let event = TrackEvent { track_uuid, name, debug_annotations, ..TrackEvent::default() };
        self.event(unix_ns, Type::SliceBegin, event);
    }

    fn end_slice(&mut self, track: u64, unix_ns: u64) {
        let event = TrackEvent { track_uuid: Some(track), ..TrackEvent::default() };
        self.event(unix_ns, Type::SliceEnd, event);
    }

    /// Something that lasted.
    pub(super) fn slice(
        &mut self,
        group: u64,
        track: &str,
        [start_ns, end_ns]: [u64; 2],
        name: &str,
        notes: Vec<(&str, Note)>,
    ) {
        let track = self.track(group, track, None);
        let note = |(name, note): (&str, Note)| {
            let (name, none) = (Some(name.to_owned()), DebugAnnotation::default());
            match note {
                Note::Text(text) => DebugAnnotation { name, string_value: Some(text), ..none },
                Note::Nanoseconds(ns) => DebugAnnotation {
                    name: name.map(|name| name + " ns"),
                    uint_value: Some(ns),
                    ..none
                },
            }
        };
        self.begin_slice(track, start_ns, name, notes.into_iter().map(note).collect());
        self.end_slice(track, end_ns);
    }

    /// Something that happened at one moment.
    pub(super) fn instant(&mut self, group: u64, track: &str, unix_ns: u64, name: &str) {
        let track = self.track(group, track, None);
        let (track_uuid, name) = (Some(track), Some(name.to_owned()));
        let event = TrackEvent { track_uuid, name, ..TrackEvent::default() };
        self.event(unix_ns, Type::Instant, event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packets(trace: Trace) -> Vec<TracePacket> {
        Message::decode(&*trace.bytes()).unwrap().packet
    }

    #[test]
    fn time_is_that_since_boot_also_after_a_step() {
        let moment =
            |realtime_ns, boottime_ns| Clocks { realtime_ns, monotonic_ns: 1, boottime_ns };
        let clocks = RunClocks {
            start: moment(1_000, 10),
            steps: vec![moment(5_000, 110)],
            ..RunClocks::default()
        };
        let trace = Trace::new(&clocks);
        let times = [900, 1_050, 5_100].map(|unix_ns| trace.boottime_of(unix_ns));
        assert_eq!(times, [0, 60, 210]);
        assert_eq!(packets(trace).len(), 2);
    }

    #[test]
    fn states_are_slices_and_figures_are_told_when_they_change() {
        let mut trace = Trace::new(&RunClocks::default());
        let host = trace.group("host");
        for (at_ns, state, value) in [
            (1, None, 5.0),
            (2, Some("pressure"), 5.0),
            (3, Some("pressure"), 6.0),
            (4, Some("thrashing"), 6.0),
            (5, None, 5.0),
            (6, Some("pressure"), 5.0),
        ] {
            trace.state(host, "swap state", at_ns, state);
            trace.counter(host, ("swapped in", "bytes/s"), at_ns, Some(value));
        }
        trace.end_states(7);
        let packets = packets(trace);
        let events = packets.iter().filter_map(|packet| {
            let event = packet.track_event.as_ref()?;
            Some((packet.timestamp?, event.r#type(), event.double_counter_value))
        });
        let (begin, end, counter) = (Type::SliceBegin, Type::SliceEnd, Type::Counter);
        let expected = [
            (1, counter, Some(5.0)),
            (2, begin, None),
            (3, counter, Some(6.0)),
            (4, end, None),
            (4, begin, None),
            (5, end, None),
            (5, counter, Some(5.0)),
            (6, begin, None),
            (7, end, None),
        ];
        assert_eq!(events.collect::<Vec<_>>(), expected);
    }
}
