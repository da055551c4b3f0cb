"""A timeline as a Perfetto trace: open it at ui.perfetto.dev.

Ranks are processes with one track per lane; of two micro-batches each has a track for its exchanges and waits. Ports are one more
process with a track per rank's port, on which only transfers lie. Waits are slices named by their cause, with the rank that is
waited for as annotation `waits_for_rank`. Slices that would overlap on a track move to a second one, since Perfetto nests them.
Arrows (Perfetto's flows) follow sampled tokens from dispatch to experts to combine and back home, in their own micro-batch; the
slices that they pass name them (`token`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moesim.timeline import Span, Timeline, TokenFlow

if TYPE_CHECKING:
    from perfetto.trace_builder.proto_builder import TraceProtoBuilder

    from moesim.study.results import PathSample

__all__ = ["sampled_flows", "trace_bytes"]

#: The slices that an arrow of each stage joins.
_ENDS = {"dispatch": ("dispatch", "experts"), "combine": ("combine", "unpermute")}
Slice = tuple[int, str, int, int]

_SEQUENCE = 1
_PORTS = "ports"
PORT_LANES = ("comm",)


def sampled_flows(timeline: Timeline, paths: PathSample | None) -> tuple[TokenFlow, ...]:
    """The hops of the sampled tokens of a result over the spans of its timeline.

    Assumes: an expert is reached on the first of the devices that share it.
    """
    if paths is None or not paths.home_ranks:
        return ()
    if timeline.hops:
        return timeline.hops
    from moesim.study.tokens import token_flows

    spread = paths.n_devices_per_expert
    ranks = [[[rank * spread for rank in layer] for layer in token] for token in paths.ranks]
    return token_flows(timeline, paths.home_ranks, paths.layers, ranks, paths.batches)


def trace_bytes(timeline: Timeline, flows: Sequence[TokenFlow] = ()) -> bytes:
    """The trace in Perfetto's protobuf format; times in whole nanoseconds.

    Args:
        timeline: of a recorded simulation.
        flows: hops of sampled tokens; the way of a token to one rank and back in a layer is one flow over four slices.
    """
    from perfetto.trace_builder.proto_builder import TraceProtoBuilder

    arrows, uuid = _arrows(flows), _Uuids()
    lanes: dict[tuple[int, str], list[Span]] = {}
    has_two = any(span.batch for span in timeline)
    for span in timeline:
        lanes.setdefault((span.rank, _lane(span, has_two)), []).append(span)
    found = []  # a trace is the traces of its processes one after another, which keeps what is built at a time small
    for rank in timeline.recorded:
        builder, process = TraceProtoBuilder(), uuid.next()
        _process(builder, process, rank + 1, f"rank {rank}")
        for lane in sorted(name for r, name in lanes if r == rank):
            _tracks(builder, uuid, process, lane, lanes[rank, lane], arrows)
        found.append(bytes(builder.serialize()))
    builder, ports = TraceProtoBuilder(), uuid.next()
    _process(builder, ports, timeline.n_ranks + 1, _PORTS)
    for rank in timeline.recorded:
        spans = [
            s for (r, _), some in lanes.items() if r == rank for s in some if s.cause is None and s.lane in PORT_LANES
        ]
        if spans:
            _tracks(builder, uuid, ports, f"port of rank {rank}", spans, _Arrows({}, {}))
    return b"".join((*found, bytes(builder.serialize())))


def _lane(span: Span, has_two: bool) -> str:
    """The track of a span: of two micro-batches each has one of its own for whatever it does besides computing."""
    if not has_two or (span.lane == "compute" and span.cause is None):
        return span.lane
    return f"comm, micro-batch {span.batch + 1}"


def _arrows(flows: Sequence[TokenFlow]) -> _Arrows:
    """Flow ids and tokens by rank, span, layer and start of the slices that they pass."""
    ids: dict[tuple[int, int, int], int] = {}
    found = _Arrows({}, {})
    for flow in flows:
        leaves, arrives = _ENDS[flow.stage]
        expert_rank = flow.to_rank if flow.stage == "dispatch" else flow.from_rank
        flow_id = ids.setdefault((flow.token, flow.layer, expert_rank), len(ids) + 1)
        for rank, name, at in ((flow.from_rank, leaves, flow.from_s), (flow.to_rank, arrives, flow.to_s)):
            key = (rank, name, flow.layer, _ns(at))
            found.ids.setdefault(key, []).append(flow_id)
            found.tokens.setdefault(key, set()).add(flow.token + 1)
    return found


@dataclass(frozen=True, slots=True)
class _Arrows:
    """Flow ids and numbers of tokens (from 1) of slices."""

    ids: dict[Slice, list[int]]
    tokens: dict[Slice, set[int]]


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


def _tracks(
    builder: TraceProtoBuilder, uuid: _Uuids, parent: int, name: str, spans: Sequence[Span], arrows: _Arrows
) -> None:
    for i, row in enumerate(_rows(spans)):
        track = uuid.next()
        descriptor = builder.add_packet().track_descriptor
        descriptor.uuid = track
        descriptor.parent_uuid = parent
        descriptor.name = name if i == 0 else f"{name} ({i + 1})"
        for span in row:
            _slice(builder, track, span, arrows)


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


def _slice(builder: TraceProtoBuilder, track: int, span: Span, arrows: _Arrows) -> None:
    from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import TrackEvent

    begin = _event(builder, track, _ns(span.start_s), TrackEvent.TYPE_SLICE_BEGIN)
    begin.name = span.name if span.cause is None else span.cause.value
    begin.categories.append("work" if span.cause is None else "wait")
    if span.cause is None:
        key = (span.rank, span.name, span.layer, _ns(span.start_s))
        begin.flow_ids.extend(arrows.ids.get(key, ()))
        if key in arrows.tokens:
            note = begin.debug_annotations.add()
            note.name, note.string_value = "token", ", ".join(map(str, sorted(arrows.tokens[key])))
    for name, value in (("layer", span.layer), ("waits_for_rank", span.awaited)):
        if value >= 0:
            note = begin.debug_annotations.add()
            note.name, note.int_value = name, value
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
