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
    /// Moments after which the clocks stood to each other as then.
    clocks: Vec<Clocks>,
    times: Times,
    last_track: u64,
    /// By group and name.
    tracks: BTreeMap<(u64, String), u64>,
    /// What each track that holds a figure has now.
    values: BTreeMap<u64, f64>,
    /// States that have begun, by track.
    open: BTreeMap<u64, &'static str>,
    /// Where the last slice of each track that holds slices of time ended.
    ends: BTreeMap<u64, u64>,
}

/// Which time since boot a time of day is. The time of day can be set back, and is then there twice.
#[derive(Default)]
struct Times {
    /// From when to when, in Unix nanoseconds, and the time since boot when it began.
    pieces: Vec<[u64; 3]>,
    /// The piece of the last one that was asked for, and that.
    last: (usize, u64),
}

/// Back by more than that, it was set back.
const BACK_NS: u64 = 1_000_000_000;

impl Times {
    /// Asked in the order of time, or nearly so.
    fn of(&mut self, unix_ns: u64) -> Option<u64> {
        let (mut from, before_ns) = self.last;
        if unix_ns.saturating_add(BACK_NS) < before_ns {
            from += 1;
        }
        let holds = |piece: &[u64; 3]| (piece[0]..=piece[1]).contains(&unix_ns);
        let next = self.pieces.iter().skip(from).position(holds).map(|place| from + place);
        let place = next.or_else(|| self.pieces.iter().position(holds));
        // A little before the first interval, or after the last.
        let place = place.unwrap_or(from.min(self.pieces.len().checked_sub(1)?));
        self.last = (place, unix_ns);
        let [start_ns, _, boottime_ns] = *self.pieces.get(place)?;
        Some(boottime_ns.saturating_add_signed(unix_ns.wrapping_sub(start_ns).cast_signed()))
    }

    /// Asks from the first on again.
    fn rewind(&mut self) {
        self.last = (0, 0);
    }
}

impl Trace {
    pub(super) fn new(clocks: &RunClocks) -> Self {
        let mut trace = Self {
            bytes: Vec::new(),
            clocks: std::iter::once(clocks.start).chain(clocks.steps.iter().copied()).collect(),
            last_track: 0,
            tracks: BTreeMap::new(),
            values: BTreeMap::new(),
            open: BTreeMap::new(),
            times: Times::default(),
            ends: BTreeMap::new(),
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
    fn boottime_of(&mut self, unix_ns: u64) -> u64 {
        self.times.of(unix_ns).unwrap_or(unix_ns)
    }

    /// An interval follows, that begins then and has that length.
    pub(super) fn go_on(&mut self, unix_ns: u64, length_ns: u64) {
        let is_next = |last: &[u64; 3]| unix_ns.abs_diff(last[1]) < BACK_NS;
        let end_ns = unix_ns.saturating_add(length_ns);
        match self.times.pieces.last_mut().filter(|last| is_next(last)) {
            Some(last) => last[1] = end_ns,
            None => {
                let Some(moment) = self.moment_before(unix_ns) else { return };
                let since = unix_ns.wrapping_sub(moment.realtime_ns).cast_signed();
                let boottime_ns = moment.boottime_ns.saturating_add_signed(since);
                self.times.pieces.push([unix_ns, end_ns, boottime_ns]);
            }
        }
    }

    /// The moment after which a piece began, of those that no piece is of yet.
    fn moment_before(&self, unix_ns: u64) -> Option<Clocks> {
        let done = self.times.pieces.len().min(self.clocks.len().saturating_sub(1));
        let later = self.clocks.get(done..)?;
        let holds = |(place, moment): &(usize, &Clocks)| {
            let length_ns = later
                .get(place + 1)
                .map_or(u64::MAX, |next| next.boottime_ns.saturating_sub(moment.boottime_ns));
            let since_ns = unix_ns.saturating_add(BACK_NS).checked_sub(moment.realtime_ns);
            since_ns.is_some_and(|since_ns| since_ns <= length_ns.saturating_add(2 * BACK_NS))
        };
        let held = later.iter().enumerate().find(holds).map(|(_, moment)| moment);
        held.or(later.first()).copied()
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
        if let Some(track) = self.tracks.get(&key) {
            return *track;
        }
        let track = self.described(Some(group), name, unit);
        self.tracks.insert(key, track);
        track
    }

    fn event(&mut self, unix_ns: u64, r#type: Type, event: TrackEvent) {
        let timestamp = Some(self.boottime_of(unix_ns));
        self.add(TracePacket {
            timestamp,
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
        if self.values.insert(track, value) != Some(value) {
            self.count(track, unix_ns, value);
        }
    }

    fn count(&mut self, track: u64, unix_ns: u64, value: f64) {
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
                Some(track) => *track,
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

    /// Ends those that have not ended. What follows may begin from the start again.
    pub(super) fn end_states(&mut self, unix_ns: u64) {
        for track in std::mem::take(&mut self.open).into_keys() {
            self.end_slice(track, unix_ns);
        }
        self.times.rewind();
    }

    /// Whom a group is of is gone: a figure would stay as it was for good.
    pub(super) fn end_group(&mut self, group: u64, unix_ns: u64) {
        let tracks = self.tracks.range((group, String::new())..(group + 1, String::new()));
        for track in tracks.map(|(_, track)| *track).collect::<Vec<_>>() {
            if self.open.remove(&track).is_some() {
                self.end_slice(track, unix_ns);
            }
            if let Some(value) = self.values.get_mut(&track) {
                *value = 0.0;
                self.count(track, unix_ns, 0.0);
            }
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

    /// Something that lasted; on one track one after the other, however exact the clocks were.
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
        let last = self.ends.get(&track).copied().unwrap_or(0);
        let late_ns = last.saturating_sub(start_ns);
        // Set back by more than that, it is another time.
        let late_ns = if late_ns < BACK_NS { late_ns } else { 0 };
        let [start_ns, end_ns] = [start_ns, end_ns].map(|ns| ns.saturating_add(late_ns));
        self.ends.insert(track, end_ns);
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

    fn second(number: u64) -> u64 {
        number * 1_000_000_000
    }

    /// Clocks with these steps, each at a Unix time and a time since boot, and intervals of a second
    /// after each.
    fn stepped<const N: usize>(moments: [(u64, u64); N], seconds: u64) -> Trace {
        let mut moments = moments.map(|(unix_s, boot_s)| Clocks {
            realtime_ns: second(unix_s),
            monotonic_ns: 1,
            boottime_ns: second(boot_s),
        });
        let [start, steps @ ..] = moments.as_mut_slice() else { unreachable!("there is a start") };
        let clocks = RunClocks { start: *start, steps: steps.to_vec(), ..RunClocks::default() };
        let mut trace = Trace::new(&clocks);
        for moment in moments {
            for number in 0..seconds {
                trace.go_on(moment.realtime_ns + second(number), second(1));
            }
        }
        trace
    }

    #[test]
    fn time_is_that_since_boot_also_after_steps() {
        // On by an hour after 10 s, back by two after 20.
        let mut trace = stepped([(10_000, 100), (13_610, 110), (6_420, 120)], 10);
        let mut of = |unix_s| trace.boottime_of(second(unix_s)) / second(1);
        assert_eq!([10_000, 10_005, 13_612, 6_425].map(&mut of), [100, 105, 112, 125]);
        assert_eq!(packets(trace).len(), 3);
    }

    #[test]
    fn an_hour_that_is_there_twice_is_told_apart_by_its_order() {
        let mut trace = stepped([(10_000, 100), (10_000, 110)], 10);
        let mut of = |unix_s| trace.boottime_of(second(unix_s)) / second(1);
        assert_eq!([10_001, 10_008, 10_002, 10_009].map(&mut of), [101, 108, 112, 119]);
    }

    #[test]
    fn who_is_gone_has_no_state_and_no_figures() {
        let mut trace = Trace::new(&RunClocks::default());
        let [vm, other] = ["vm", "other"].map(|name| trace.group(name));
        for group in [vm, other] {
            trace.state(group, "swap state", 1, Some("thrashing"));
            trace.counter(group, ("resident", "bytes"), 1, Some(5.0));
        }
        trace.end_group(vm, 2);
        // Back as it was, which is another figure than none.
        trace.counter(vm, ("resident", "bytes"), 3, Some(5.0));
        let packets = packets(trace);
        assert!(packets.iter().any(|packet| packet.timestamp == Some(3)));
        let at_the_end = packets.iter().filter(|packet| packet.timestamp == Some(2));
        let events: Vec<_> = at_the_end
            .filter_map(|packet| packet.track_event.as_ref())
            .map(|event| (event.r#type(), event.double_counter_value))
            .collect();
        assert_eq!(events, [(Type::Counter, Some(0.0)), (Type::SliceEnd, None)]);
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
