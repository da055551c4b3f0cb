"""The Perfetto trace, read back with Perfetto's own protobuf classes."""

from __future__ import annotations

from pathlib import Path

import pytest
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace, TrackEvent

from moesim.report.trace import trace_bytes
from moesim.timeline import Cause, Timeline

from report_sample import sample_timeline  # isort: skip


def parse(data: bytes) -> Trace:
    trace = Trace()
    trace.ParseFromString(data)
    return trace


def tracks(trace: Trace) -> dict[str, list[str]]:
    """Track names by process name."""
    descriptors = [p.track_descriptor for p in trace.packet if p.HasField("track_descriptor")]
    processes = {d.uuid: d.process.process_name for d in descriptors if d.HasField("process")}
    found: dict[str, list[str]] = {name: [] for name in processes.values()}
    for d in descriptors:
        if not d.HasField("process"):
            found[processes[d.parent_uuid]].append(d.name)
    return found


def slices(trace: Trace) -> dict[int, list[tuple[int, int, str]]]:
    """(start, end, name) by track; fails on slices that overlap or do not end."""
    found: dict[int, list[tuple[int, int, str]]] = {}
    running: dict[int, tuple[int, str]] = {}
    for packet in trace.packet:
        if not packet.HasField("track_event"):
            continue
        event = packet.track_event
        if event.type == TrackEvent.TYPE_SLICE_BEGIN:
            assert event.track_uuid not in running, "overlap on a track"
            running[event.track_uuid] = (packet.timestamp, event.name)
        else:
            start, name = running.pop(event.track_uuid)
            rows = found.setdefault(event.track_uuid, [])
            assert start <= packet.timestamp
            assert not rows or rows[-1][1] <= start, "time runs backwards on a track"
            rows.append((start, packet.timestamp, name))
    assert not running
    return found


@pytest.mark.parametrize("n_ranks", [1, 2, 8])
def test_a_track_per_rank_and_lane_and_per_port(n_ranks: int) -> None:
    found = tracks(parse(trace_bytes(sample_timeline(n_ranks))))
    for rank in range(n_ranks):
        assert found[f"rank {rank}"] == ["comm", "compute"]
    assert found["ports"] == [f"port of rank {rank}" for rank in range(n_ranks)]


def test_times_and_names_are_kept() -> None:
    timeline = sample_timeline(2)
    trace = parse(trace_bytes(timeline))
    by_track = slices(trace)
    names = [name for rows in by_track.values() for _, _, name in rows]
    assert set(names) == {"experts", "dispatch", Cause.DATA.value, Cause.BARRIER.value}
    n_transfers = sum(s.lane == "comm" and s.cause is None for s in timeline)
    assert len(names) == len(timeline.spans) + n_transfers
    total_ns = sum(end - start for rows in by_track.values() for start, end, name in rows if name == Cause.DATA.value)
    waited_s = sum(s.duration_s for s in timeline if s.cause is Cause.DATA)
    assert total_ns == pytest.approx(waited_s * 1e9, abs=4)
    assert max(end for rows in by_track.values() for _, end, _ in rows) == round(max(s.end_s for s in timeline) * 1e9)


def test_waits_are_told_from_work_and_layers_are_noted() -> None:
    trace = parse(trace_bytes(sample_timeline(2)))
    begins = [p.track_event for p in trace.packet if p.track_event.type == TrackEvent.TYPE_SLICE_BEGIN]
    causes = {c.value for c in Cause}
    assert all((list(e.categories) == ["wait"]) == (e.name in causes) for e in begins)
    assert {a.int_value for e in begins for a in e.debug_annotations if a.name == "layer"} == {0, 1}


def test_waits_name_their_rank_and_micro_batches_have_tracks_of_their_own() -> None:
    timeline = Timeline(300, ranks=(7, 250))
    for batch in (0, 1):
        at = batch * 2e-6
        timeline.add(7, "compute", "experts", 3, at, at + 2e-6, batch=batch)
        timeline.add(7, "comm", "combine", 3, at + 2e-6, at + 5e-6, batch=batch)
        timeline.add(7, "comm", "wait", 3, at + 5e-6, at + 7e-6, Cause.BARRIER, batch, awaited=250)
    timeline.add(7, "compute", "wait", 3, 1e-6, 2e-6, Cause.ENGINE_BUSY, 1)
    trace = parse(trace_bytes(timeline))
    found = tracks(trace)
    assert found["rank 7"] == ["comm, micro-batch 1", "comm, micro-batch 2", "compute"]
    assert "rank 250" in found
    assert "rank 8" not in found
    begins = [p.track_event for p in trace.packet if p.track_event.type == TrackEvent.TYPE_SLICE_BEGIN]
    named = {(e.name, a.int_value) for e in begins for a in e.debug_annotations if a.name == "waits_for_rank"}
    assert named == {(Cause.BARRIER.value, 250)}


def test_overlapping_spans_get_tracks_of_their_own() -> None:
    timeline = Timeline(1)
    timeline.add(0, "compute", "a", 0, 0.0, 3e-6)
    timeline.add(0, "compute", "b", 0, 1e-6, 2e-6)
    timeline.add(0, "compute", "c", 0, 3e-6, 4e-6)
    trace = parse(trace_bytes(timeline))
    assert tracks(trace)["rank 0"] == ["compute", "compute (2)"]
    assert sorted(name for rows in slices(trace).values() for _, _, name in rows) == ["a", "b", "c"]


def test_same_timeline_same_bytes(report_dir: Path) -> None:
    assert (report_dir / "trace.perfetto-trace").read_bytes() == trace_bytes(sample_timeline(2))


def test_an_empty_timeline_is_a_valid_trace() -> None:
    assert list(tracks(parse(trace_bytes(Timeline(2))))) == ["rank 0", "rank 1", "ports"]
