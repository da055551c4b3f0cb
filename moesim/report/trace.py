"""A timeline as a Perfetto trace: open it at ui.perfetto.dev.

Ranks are processes with one track per lane; ports are one more process with a track per rank's port, on which only transfers
lie. Waits are slices named by their cause. Slices that would overlap on a track move to a second one, since Perfetto nests them.
Arrows (Perfetto's flows) follow sampled tokens from dispatch to experts to combine and back home.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from moesim.timeline import Span, Timeline

if TYPE_CHECKING:
    from perfetto.trace_builder.proto_builder import TraceProtoBuilder

    from moesim.study.results import PathSample
    from moesim.study.whatif import TokenFlow

__all__ = ["sampled_flows", "trace_bytes"]

#: The slices that an arrow of each stage joins.
_ENDS = {"dispatch": ("dispatch", "experts"), "combine": ("combine", "unpermute")}
Arrows = Mapping[tuple[int, str, int, int], Sequence[int]]

_SEQUENCE = 1
_PORTS = "ports"
PORT_LANES = ("comm",)


def sampled_flows(timeline: Timeline, paths: PathSample | None) -> tuple[TokenFlow, ...]:
    """The hops of the sampled tokens of a result over the spans of its timeline.

    Assumes: an expert is reached on the first of the devices that share it.
    """
    if paths is None or not paths.home_ranks:
        return ()
    from moesim.study.whatif import token_flows

    spread = paths.n_devices_per_expert
    ranks = [[[rank * spread for rank in layer] for layer in token] for token in paths.ranks]
    return token_flows(timeline, paths.home_ranks, paths.layers, ranks)


def trace_bytes(timeline: Timeline, flows: Sequence[TokenFlow] = ()) -> bytes:
    """The trace in Perfetto's protobuf format; times in whole nanoseconds.

    Args:
        timeline: of a recorded simulation.
        flows: hops of sampled tokens; the way of a token to one rank and back in a layer is one flow over four slices.
    """
    from perfetto.trace_builder.proto_builder import TraceProtoBuilder

    builder = TraceProtoBuilder()
    arrows = _arrows(flows)
    lanes: dict[tuple[int, str], list[Span]] = {}
    for span in timeline:
        lanes.setdefault((span.rank, span.lane), []).append(span)
    uuid = _Uuids()
    for rank in range(timeline.n_ranks):
        process = uuid.next()
        _process(builder, process, rank + 1, f"rank {rank}")
        for lane in sorted(name for r, name in lanes if r == rank):
            _tracks(builder, uuid, process, lane, lanes[rank, lane], arrows)
    ports = uuid.next()
    _process(builder, ports, timeline.n_ranks + 1, _PORTS)
    for (rank, lane), spans in sorted(lanes.items()):
        if lane in PORT_LANES:
            _tracks(builder, uuid, ports, f"port of rank {rank}", [s for s in spans if s.cause is None], {})
    return bytes(builder.serialize())


def _arrows(flows: Sequence[TokenFlow]) -> Arrows:
    """Flow ids by rank, span, layer and start of the slices that they pass."""
    ids: dict[tuple[int, int, int], int] = {}
    found: dict[tuple[int, str, int, int], list[int]] = {}
    for flow in flows:
        leaves, arrives = _ENDS[flow.stage]
        expert_rank = flow.to_rank if flow.stage == "dispatch" else flow.from_rank
        flow_id = ids.setdefault((flow.token, flow.layer, expert_rank), len(ids) + 1)
        for rank, name, at in ((flow.from_rank, leaves, flow.from_s), (flow.to_rank, arrives, flow.to_s)):
            found.setdefault((rank, name, flow.layer, _ns(at)), []).append(flow_id)
    return found


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
    builder: TraceProtoBuilder, uuid: _Uuids, parent: int, name: str, spans: Sequence[Span], arrows: Arrows
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


def _slice(builder: TraceProtoBuilder, track: int, span: Span, arrows: Arrows) -> None:
    from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import TrackEvent

    begin = _event(builder, track, _ns(span.start_s), TrackEvent.TYPE_SLICE_BEGIN)
    begin.name = span.name if span.cause is None else span.cause.value
    begin.categories.append("work" if span.cause is None else "wait")
    if span.cause is None:
        begin.flow_ids.extend(arrows.get((span.rank, span.name, span.layer, _ns(span.start_s)), ()))
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
