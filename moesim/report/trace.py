"""A timeline as a Perfetto trace: open it at ui.perfetto.dev.

Ranks are processes with one track per lane; ports are one more process with a track per rank's port, on which only transfers
lie. Waits are slices named by their cause. Slices that would overlap on a track move to a second one, since Perfetto nests them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from moesim.timeline import Span, Timeline

if TYPE_CHECKING:
    from perfetto.trace_builder.proto_builder import TraceProtoBuilder

__all__ = ["trace_bytes"]

_SEQUENCE = 1
_PORTS = "ports"
PORT_LANES = ("comm",)


def trace_bytes(timeline: Timeline) -> bytes:
    """The trace in Perfetto's protobuf format; times in whole nanoseconds."""
    from perfetto.trace_builder.proto_builder import TraceProtoBuilder

    builder = TraceProtoBuilder()
    lanes: dict[tuple[int, str], list[Span]] = {}
    for span in timeline:
        lanes.setdefault((span.rank, span.lane), []).append(span)
    uuid = _Uuids()
    for rank in range(timeline.n_ranks):
        process = uuid.next()
        _process(builder, process, rank + 1, f"rank {rank}")
        for lane in sorted(name for r, name in lanes if r == rank):
            _tracks(builder, uuid, process, lane, lanes[rank, lane])
    ports = uuid.next()
    _process(builder, ports, timeline.n_ranks + 1, _PORTS)
    for (rank, lane), spans in sorted(lanes.items()):
        if lane in PORT_LANES:
            _tracks(builder, uuid, ports, f"port of rank {rank}", [s for s in spans if s.cause is None])
    return bytes(builder.serialize())


class _Uuids:
    """Counts up, so that the same timeline gives the same bytes."""

    def __init__(self) -> None:
        self._last = 0

    def next(self) -> int:
        """A fresh track id."""
        self._last += 1
        return self._last


def _process(builder: TraceProtoBuilder, uuid: int, pid: int, name: str) -> None:
    track = builder.add_packet().track_descriptor
    track.uuid = uuid
    track.process.pid = pid
    track.process.process_name = name


def _tracks(builder: TraceProtoBuilder, uuid: _Uuids, parent: int, name: str, spans: Sequence[Span]) -> None:
    for i, row in enumerate(_rows(spans)):
        track = uuid.next()
        descriptor = builder.add_packet().track_descriptor
        descriptor.uuid = track
        descriptor.parent_uuid = parent
        descriptor.name = name if i == 0 else f"{name} ({i + 1})"
        for span in row:
            _slice(builder, track, span)


def _rows(spans: Sequence[Span]) -> list[list[Span]]:
    """Spans over as few rows as keep them apart; one row, even without spans."""
    rows: list[list[Span]] = [[]]
    for span in sorted(spans, key=lambda s: (s.start_s, s.end_s)):
        free = next((row for row in rows if not row or _ns(row[-1].end_s) <= _ns(span.start_s)), None)
        if free is None:
            rows.append([span])
        else:
            free.append(span)
    return rows


def _slice(builder: TraceProtoBuilder, track: int, span: Span) -> None:
    from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import TrackEvent

    begin = _event(builder, track, _ns(span.start_s), TrackEvent.TYPE_SLICE_BEGIN)
    begin.name = span.name if span.cause is None else span.cause.value
    begin.categories.append("work" if span.cause is None else "wait")
    if span.layer >= 0:
        note = begin.debug_annotations.add()
        note.name, note.int_value = "layer", span.layer
    _event(builder, track, _ns(span.end_s), TrackEvent.TYPE_SLICE_END)


def _event(builder: TraceProtoBuilder, track: int, at_ns: int, kind: Any) -> Any:
    packet = builder.add_packet()
    packet.timestamp = at_ns
    packet.trusted_packet_sequence_id = _SEQUENCE
    packet.track_event.track_uuid = track
    packet.track_event.type = kind
    return packet.track_event


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
