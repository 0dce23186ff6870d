"""Reads a Perfetto trace with Perfetto's own messages, and prints what is on each track."""

import json
import sys

from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace, TrackEvent

trace = Trace()
with open(sys.argv[1], "rb") as file:
    trace.ParseFromString(file.read())

tracks, open_slices, clocks = {}, {}, []
# In the order of time, as the viewer takes them.
for packet in sorted(trace.packet, key=lambda packet: packet.timestamp):
    assert packet.trusted_packet_sequence_id == 1
    if packet.HasField("clock_snapshot"):
        clocks.append({clock.clock_id: clock.timestamp for clock in packet.clock_snapshot.clocks})
    if packet.HasField("track_descriptor"):
        of = packet.track_descriptor
        parent = tracks[of.parent_uuid]["name"] if of.HasField("parent_uuid") else None
        unit = of.counter.unit_name if of.HasField("counter") else None
        tracks[of.uuid] = {"name": of.name, "parent": parent, "unit": unit, "slices": [],
                           "instants": [], "values": []}
    if packet.HasField("track_event"):
        event = packet.track_event
        track = tracks[event.track_uuid]
        if event.type == TrackEvent.TYPE_SLICE_BEGIN:
            notes = {note.name: note.string_value or note.uint_value
                     for note in event.debug_annotations}
            assert event.track_uuid not in open_slices, "slices overlap"
            open_slices[event.track_uuid] = (packet.timestamp, event.name, notes)
        elif event.type == TrackEvent.TYPE_SLICE_END:
            start, name, notes = open_slices.pop(event.track_uuid)
            assert start <= packet.timestamp
            track["slices"].append({"name": name, "start": start, "end": packet.timestamp,
                                    "notes": notes})
        elif event.type == TrackEvent.TYPE_INSTANT:
            track["instants"].append(event.name)
        elif event.type == TrackEvent.TYPE_COUNTER:
            track["values"].append([packet.timestamp, event.double_counter_value])
assert not open_slices, "a slice has no end"
json.dump({"tracks": list(tracks.values()), "clocks": clocks}, sys.stdout)
