"""A run with experts over two nodes: who waits, ports, what-if, ways over nodes, and arrows in the trace."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace, TrackEvent

from moesim.report import load_result, write_report
from moesim.report.figures_ranks import node_paths, port_use, what_if, what_if_table
from moesim.report.figures_waits import wait_map
from moesim.report.trace import sampled_flows, trace_bytes
from moesim.specs.scenario import Engine, ScenarioSpec
from moesim.study.results import RankDetail, RunResult
from moesim.study.run import Run, run_scenario
from moesim.timeline import Cause

N_RANKS, N_LAYERS, TOP_K = 16, 32, 2
SCENARIO = ScenarioSpec.model_validate(
    {
        "title": "experts over two nodes",
        "hardware": "h100_x2_nodes",
        "calibration": "none",
        "systems": [
            {"name": "moe", "kind": "moe", "model": "mixtral-8x7b", "parallel": {"dp_size": 16, "ep_size": 8}, "overlap": True},
            {"name": "dense", "kind": "dense", "model": "llama-2-13b", "parallel": {"tp_size": 8}},
        ],
        "workload": {"input_tokens": 128, "output_tokens": 32, "concurrency": [64]},
        "comparison": {"bases": ["named"], "flips": []},
        "seed": 3,
    }
)  # fmt: skip


@pytest.fixture(scope="module")
def run() -> Run:
    return run_scenario(SCENARIO, engine=Engine.FLOW)


@pytest.fixture(scope="module")
def ranks(run: Run) -> RankDetail:
    found = run.result.systems[0].details[0].ranks
    assert found is not None
    return found


@pytest.fixture(scope="module")
def out_dir(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("seen") / "out"
    write_report(run.result, out, run.timeline, run.prefill_timeline)
    return out


def test_only_the_reference_decode_pass_is_known_by_rank(run: Run) -> None:
    known = [(s.name, d.phase) for s in run.result.systems for d in s.details if d.ranks is not None]
    assert known == [("moe", "decode")]
    assert [(s.name, d.phase) for s in run.result.systems for d in s.details if d.what_if] == known
    closed = run_scenario(SCENARIO, engine=Engine.ANALYTIC)
    assert all(d.ranks is None and not d.what_if for s in closed.result.systems for d in s.details)
    assert closed.prefill_timeline is None
    assert all(s.full_prefill is None for s in closed.result.systems)


def test_prefill_is_seen_with_prompts_on_all_ranks(run: Run, out_dir: Path) -> None:
    full = run.result.systems[0].full_prefill
    assert full is not None
    assert run.result.systems[1].full_prefill is None
    assert full.n_tokens == N_RANKS * (8192 // 128) * 128  # as many prompts as a pass takes, on each rank
    assert full.ranks is not None
    assert full.ranks.n_ranks == N_RANKS
    assert full.what_if[0].time_s == full.time_s
    assert full.exposed_comm_s == full.what_if[0].exposed_comm_s > 0.0
    assert np.array(full.ranks.wait_s).sum(axis=1).mean() == pytest.approx(full.what_if[0].wait_s, rel=2e-3)
    tables = {name: pd.read_csv(out_dir / "tables" / f"{name}.csv") for name in ("passes", "waits", "ports", "what_if")}
    for table in tables.values():
        assert "full prefill" in set(table["phase"])
    assert tables["what_if"].query("phase == 'full prefill'")["time_s"].iloc[0] == pytest.approx(full.time_s)
    html = (out_dir / "report.html").read_text()
    for key in ("waits", "ports", "what-if"):
        assert f'id="figure-{key}-full-prefill"' in html
    trace = Trace()
    trace.ParseFromString((out_dir / "trace-prefill.perfetto-trace").read_bytes())
    longest = max(packet.timestamp for packet in trace.packet if packet.HasField("track_event"))
    assert longest == pytest.approx(full.time_s * 1e9, rel=1e-6)


def test_waits_are_those_of_the_pass(run: Run, ranks: RankDetail) -> None:
    waits = np.array(ranks.wait_s)
    assert waits.shape == (N_RANKS, N_LAYERS)
    gap = run.result.systems[0].details[0].gap
    assert gap is not None
    # own transfers and queues for engines are no waits of engines
    waited = sum(gap.waits_s[cause.value] for cause in Cause if cause.is_wait)
    assert waits.sum(axis=1).mean() == pytest.approx(waited, rel=2e-3)
    for used in (ranks.out_port_frac, ranks.in_port_frac, ranks.engine_frac):
        assert len(used) == N_RANKS
        assert all(0 < f <= 1 for f in used)
    assert all(x == float(f"{x:.4g}") for row in ranks.wait_s for x in row)


def test_the_first_alternative_is_the_pass_itself(run: Run) -> None:
    detail = run.result.systems[0].details[0]
    base, *others = detail.what_if
    assert base.time_s == detail.time_s
    assert {"twice the NIC", "one NVLink domain of 72", "perfect balance", "no overlap"} <= {row.name for row in others}
    for row in others:
        assert row.speedup == pytest.approx(base.time_s / row.time_s)
    times = {row.name: row.time_s for row in others}
    assert times["twice the NIC"] < base.time_s
    assert times["no overlap"] == base.time_s  # this model has no shared experts to run beside an exchange


def test_homes_are_spread_over_the_nodes(run: Run) -> None:
    paths = run.result.systems[0].paths
    assert paths is not None
    assert paths.home_ranks == (0, 4, 8, 12)
    assert paths.n_devices_per_expert == 2  # 8 expert ranks on 16 devices


def test_the_same_seed_gives_the_same_files(run: Run, out_dir: Path, tmp_path: Path) -> None:
    again = run_scenario(SCENARIO, engine=Engine.FLOW)
    write_report(again.result, tmp_path / "again", again.timeline, again.prefill_timeline)
    for path in out_dir.rglob("*.*"):
        assert (tmp_path / "again" / path.relative_to(out_dir)).read_bytes() == path.read_bytes(), path.name
    assert load_result(out_dir) == run.result


def test_the_page_shows_them(run: Run, out_dir: Path) -> None:
    html = (out_dir / "report.html").read_text()
    for key in ("waits", "ports", "what-if", "node-paths"):
        assert f'id="figure-{key}"' in html
        assert (out_dir / "figures" / f"{key}.svg").is_file()
    assert "data:image/png;base64," in (out_dir / "figures" / "waits.svg").read_text()
    waits = pd.read_csv(out_dir / "tables" / "waits.csv")
    waits = waits[waits["phase"] == "decode"]
    assert len(waits) == N_RANKS * N_LAYERS
    assert len(pd.read_csv(out_dir / "tables" / "ports.csv").query("phase == 'decode'")) == N_RANKS
    table = what_if_table(run.result)
    assert table is not None
    assert len(table.rows) == len(pd.read_csv(out_dir / "tables" / "what_if.csv").query("phase == 'decode'"))


def test_changes_have_their_sign(run: Run) -> None:
    table = what_if_table(run.result)
    assert table is not None
    changes = {row[0].text: row[2].text for row in table.rows}
    assert changes["as it is"] == ""
    assert changes["twice the NIC"].startswith("−")
    assert changes["no overlap"] == "no change"
    assert changes["two micro-batches"].startswith("+")  # four tokens a rank: every weight is read twice


def test_nothing_to_show_nothing_shown(run: Run) -> None:
    one_node = run.result.model_copy(update={"scale_up_domain_size": 72})
    assert node_paths(one_node) is None
    assert node_paths(run.result) is not None
    bare = run_scenario(SCENARIO, engine=Engine.ANALYTIC).result
    assert [draw(bare) for draw in (wait_map, port_use, what_if, what_if_table)] == [None] * 4


def test_many_ranks_are_drawn_as_lines(run: Run, ranks: RankDetail) -> None:
    many = ranks.model_copy(update={
        "n_ranks": 16 * 16 * 4 - 3, "n_ranks_per_row": 4, "wait_s": ranks.wait_s * 16,
        **{k: getattr(ranks, k) * 16 for k in ("out_port_frac", "in_port_frac", "engine_frac", "queue_s")},
        **{k: getattr(ranks, k) * 16 for k in ("up_out_frac", "up_in_frac", "nic_out_frac", "nic_in_frac")},
        "idle_s": {cause: seconds * 16 for cause, seconds in ranks.idle_s.items()},
    })  # fmt: skip
    first = run.result.systems[0]
    detail = first.details[0].model_copy(update={"ranks": many})
    result: RunResult = run.result.model_copy(update={"systems": (first.model_copy(update={"details": (detail,)}),)})
    heat, ports = wait_map(result), port_use(result)
    assert heat is not None
    assert ports is not None
    assert "mean of 4 neighbouring ranks" in heat.caption
    assert len(ports.svg) < 60_000


def _begins(trace: Trace) -> list[tuple[int, TrackEvent]]:
    return [(p.timestamp, p.track_event) for p in trace.packet if p.track_event.type == TrackEvent.TYPE_SLICE_BEGIN]


def _ranks_by_track(trace: Trace) -> dict[int, str]:
    descriptors = [p.track_descriptor for p in trace.packet if p.HasField("track_descriptor")]
    names = {d.uuid: d.process.process_name for d in descriptors if d.HasField("process")}
    return {d.uuid: names[d.parent_uuid] for d in descriptors if not d.HasField("process")}


def test_arrows_lead_from_dispatch_to_experts_to_combine_and_home(run: Run, out_dir: Path) -> None:
    trace = Trace()
    trace.ParseFromString((out_dir / "trace.perfetto-trace").read_bytes())
    track_ranks, stops = _ranks_by_track(trace), {}
    for at, event in _begins(trace):
        layer = next((a.int_value for a in event.debug_annotations if a.name == "layer"), None)
        for flow in event.flow_ids:
            stops.setdefault(flow, []).append((at, event.name, track_ranks[event.track_uuid], layer))
    paths = run.result.systems[0].paths
    assert paths is not None
    expected: Counter[tuple[str, str, int]] = Counter()
    for home, token in zip(paths.home_ranks, paths.ranks, strict=True):
        for layer, chosen in zip(paths.layers, token, strict=True):
            expected.update((f"rank {home}", f"rank {2 * rank}", layer) for rank in set(chosen))
    found: Counter[tuple[str, str, int]] = Counter()
    for way in stops.values():
        way.sort()
        assert [name for _, name, _, _ in way] == ["dispatch", "experts", "combine", "unpermute"]
        (home, expert, back_from, back), layers = [rank for _, _, rank, _ in way], {layer for *_, layer in way}
        assert expert == back_from
        assert home == back
        assert len(layers) == 1
        found[home, expert, layers.pop()] += 1
    assert found == expected
    assert len(stops) == sum(expected.values()) > len(paths.layers) * len(paths.home_ranks)


def test_without_flows_no_arrows(run: Run) -> None:
    assert run.timeline is not None
    trace = Trace()
    trace.ParseFromString(trace_bytes(run.timeline, sampled_flows(run.timeline, None)))
    assert not any(event.flow_ids for _, event in _begins(trace))


def test_the_fabric_is_among_the_inputs(run: Run) -> None:
    fabric = [i for i in run.result.inputs if i.what == "rates of expert exchanges"]
    assert len(fabric) == 1
    assert fabric[0].value.startswith("h100_cx7")
    assert fabric[0].origin.value == "fitted"
    assert "aiconfigurator-core" in fabric[0].source
