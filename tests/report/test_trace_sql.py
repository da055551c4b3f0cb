"""The trace under SQL: the checks of docs/results-schema.md for Perfetto's trace processor, over tables filled by its rules.

Perfetto joins each slice with a flow id to the slice before it, in time, with the same id; slices begin in order of time, and
packets of equal time in the order of the file.
"""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

import pytest
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace, TrackEvent
from test_ranks_seen import SCENARIO

from moesim.report.trace import sampled_flows, trace_bytes
from moesim.specs.scenario import Engine
from moesim.study.run import run_scenario

DOCS = Path(__file__).resolve().parents[2] / "docs" / "results-schema.md"
TABLES = """
CREATE TABLE process (upid INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE process_track (id INTEGER PRIMARY KEY, upid INTEGER, name TEXT);
CREATE TABLE slice (id INTEGER PRIMARY KEY, ts INTEGER, dur INTEGER, track_id INTEGER, name TEXT, category TEXT);
CREATE TABLE flow (id INTEGER PRIMARY KEY, slice_out INTEGER, slice_in INTEGER);
"""


def loaded(data: bytes) -> sqlite3.Connection:
    """Slices and flows as Perfetto's trace processor lays them down."""
    trace = Trace()
    trace.ParseFromString(data)
    base = sqlite3.connect(":memory:")
    base.executescript(TABLES)
    for packet in trace.packet:
        if packet.HasField("track_descriptor"):
            d = packet.track_descriptor
            if d.HasField("process"):
                base.execute("INSERT INTO process VALUES (?, ?)", (d.uuid, d.process.process_name))
            upid = d.uuid if d.HasField("process") else d.parent_uuid
            base.execute("INSERT INTO process_track VALUES (?, ?, ?)", (d.uuid, upid, d.name))
    last: dict[int, int] = {}
    running: dict[int, int] = {}
    events = [p for p in trace.packet if p.HasField("track_event")]
    for packet in sorted(events, key=lambda p: p.timestamp):  # stable, as the trace processor's own sort
        event, at = packet.track_event, packet.timestamp
        if event.type == TrackEvent.TYPE_SLICE_END:
            base.execute("UPDATE slice SET dur = ? - ts WHERE id = ?", (at, running.pop(event.track_uuid)))
            continue
        row = (at, -1, event.track_uuid, event.name, event.categories[0])
        new = base.execute(
            "INSERT INTO slice (ts, dur, track_id, name, category) VALUES (?, ?, ?, ?, ?)", row
        ).lastrowid
        assert new is not None
        running[event.track_uuid] = new
        for flow in event.flow_ids:
            if flow in last:
                base.execute("INSERT INTO flow (slice_out, slice_in) VALUES (?, ?)", (last[flow], new))
            last[flow] = new
    assert not running
    return base


def query(name: str) -> str:
    found = re.search(rf"<!-- trace check: {name} -->\n```sql\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.S)
    assert found is not None
    return found[1]


@pytest.fixture(scope="module")
def base() -> sqlite3.Connection:
    run = run_scenario(SCENARIO, engine=Engine.FLOW)
    assert run.timeline is not None
    return loaded(trace_bytes(run.timeline, sampled_flows(run.timeline, run.result.systems[0].paths)))


def test_arrows_join_dispatch_experts_combine_and_unpermute(base: sqlite3.Connection) -> None:
    rows = base.execute(query("arrows")).fetchall()
    assert [(a, b) for a, b, _, _ in rows] == [
        ("dispatch", "experts"),
        ("experts", "combine"),
        ("combine", "unpermute"),
    ]
    assert len({n for *_, n, _ in rows}) == 1
    assert rows[0][2] > 100
    assert all(backwards == 0 for *_, backwards in rows)


def test_no_arrow_changes_rank_between_experts_and_combine(base: sqlite3.Connection) -> None:
    assert base.execute(query("ranks")).fetchone() == (0,)
    across = base.execute(
        query("ranks").replace("'experts' AND i.name = 'combine'", "'dispatch' AND i.name = 'experts'")
    )
    assert across.fetchone()[0] > 0, "the check would see an arrow from rank to rank"


def test_slices_have_lengths_and_categories(base: sqlite3.Connection) -> None:
    assert base.execute("SELECT COUNT(*) FROM slice WHERE dur < 0 OR category NOT IN ('work', 'wait')").fetchone() == (
        0,
    )
