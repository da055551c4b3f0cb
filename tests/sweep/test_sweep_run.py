"""Identity, resume, interruption and back ends: the same sweep always gives the same answers."""

import numpy as np
import pytest
from sweep_base import BASE, make

import moesim.study.sweep.identity as identity
import moesim.study.sweep.run as running
from moesim.specs.sweep import SweepEngine
from moesim.study.sweep import make_layout, run_sweep
from moesim.study.sweep.store import Store

AXES = [
    {"path": "model.n_routed_experts", "values": [64, 128, 256]},
    {"zip": [{"path": "parallel.dp_size", "values": [16, 8, 4]}, {"path": "parallel.tp_size", "values": [1, 2, 4]}]},
    {"path": "workload.concurrency", "values": [16, 256]},
]  # fmt: skip


def same(a, b):
    assert a.ids == b.ids
    assert set(a.columns) == set(b.columns)
    for name, values in a.columns.items():
        other = b.columns[name]
        if values.dtype == object:
            assert values.tolist() == other.tolist(), name
        else:
            assert np.array_equal(values, other, equal_nan=True), name


@pytest.fixture
def small_tasks(monkeypatch):
    """Tasks of two groups, so that a small sweep has several."""
    monkeypatch.setattr("moesim.study.sweep.tasks.TASK_GROUPS", 1)


def test_each_case_has_its_own_identity_which_only_its_content_moves():
    ids = make_layout(make(AXES)).ids
    assert len(set(ids)) == len(ids) == 18
    reordered = make_layout(make([AXES[2], AXES[0], AXES[1]], title="other", description="words")).ids
    assert set(reordered) == set(ids)
    wider = make_layout(make([*AXES[:2], {"path": "workload.concurrency", "values": [16, 64, 256]}])).ids
    assert set(ids) < set(wider)  # a sweep that grows keeps what it has
    for changed in (
        make(AXES, seed=1), make(AXES, {"workload": {"input_tokens": 1000, "output_tokens": 256}}),
        make(AXES, {"calibration": "none"}),
        make(AXES, constraints=[{"kind": "fixed_active_params"}]), make(AXES, system="MoE", against="dense"),
    ):  # fmt: skip
        assert set(make_layout(changed).ids).isdisjoint(ids)
    assert set(make_layout(make(AXES), engine=SweepEngine.FLOW).ids).isdisjoint(ids)


def test_another_version_or_calibration_invalidates(monkeypatch):
    ids = make_layout(make(AXES)).ids
    monkeypatch.setattr(identity, "__version__", "99.0")
    assert set(make_layout(make(AXES)).ids).isdisjoint(ids)
    monkeypatch.undo()
    monkeypatch.setattr("moesim.study.sweep.layout.calibration_identity", lambda calibration: "refitted")
    assert set(make_layout(make(AXES)).ids).isdisjoint(ids)


def test_answers_are_kept_found_again_and_not_done_twice(tmp_path, monkeypatch):
    first = run_sweep(make(AXES), out_dir=tmp_path)
    parts = sorted((tmp_path / "cases").iterdir())

    def none(tasks, *_):
        assert not tasks, "worked again"
        yield from ()

    monkeypatch.setattr(running, "answers", none)
    same(first, run_sweep(make(AXES), out_dir=tmp_path))
    assert sorted((tmp_path / "cases").iterdir()) == parts


def test_interrupted_sweeps_keep_what_is_done_and_go_on(tmp_path, small_tasks):
    whole = run_sweep(make(AXES))
    seen = []

    def stop(tick):
        seen.append(tick)
        if tick.n_done >= 12:
            raise KeyboardInterrupt

    half = run_sweep(make(AXES), out_dir=tmp_path, progress=stop)
    assert half.interrupted
    assert half.done.sum() == 12
    ticks = []
    rest = run_sweep(make(AXES), out_dir=tmp_path, progress=ticks.append)
    assert not rest.interrupted
    assert ticks[0].n_kept == 12
    assert ticks[-1].n_done == 18
    assert ticks[-1].left_s == 0
    same(whole, rest)


def test_damaged_and_half_written_parts_are_done_again(tmp_path, small_tasks):
    whole = run_sweep(make(AXES), out_dir=tmp_path)
    parts = sorted((tmp_path / "cases").glob("part-*"))
    parts[0].write_bytes(parts[0].read_bytes()[:100])
    (tmp_path / "cases" / ".part-left").write_bytes(b"PAR1")
    assert Store.open(tmp_path).n_unreadable == 1
    same(whole, run_sweep(make(AXES), out_dir=tmp_path))


def test_processes_change_nothing(tmp_path, small_tasks):
    alone = run_sweep(make(AXES))
    same(alone, run_sweep(make(AXES), out_dir=tmp_path, n_jobs=2))


def test_infeasible_cases_are_kept_with_their_reason():
    axes = [
        {"zip": [{"path": "parallel.dp_size", "values": [16, 3, 16, 1]}, {"path": "parallel.ep_size", "values": [16, 3, 5, 1]}]},
        {"path": "workload.concurrency", "values": [16]},
    ]  # fmt: skip
    result = run_sweep(make(axes))
    assert result.columns["outcome"].tolist() == ["ok", "invalid split", "invalid split", "out of memory"]
    assert all(result.columns["reason"][1:])
    assert result.columns["reason"][0] is None
    frame = result.to_frame()
    assert len(frame) == 4
    assert frame["parallel.ep_size"].tolist() == [16, 3, 5, 1]


def test_values_that_contradict_each_other_are_infeasible_not_fatal():
    axes = [{"path": "routing.family", "values": ["uniform", "zipf"]}, {"path": "workload.concurrency", "values": [16]}]
    result = run_sweep(make(axes))
    assert result.columns["outcome"].tolist() == ["ok", "invalid configuration"]
    assert "skew" in result.columns["reason"][1]


def test_ensembles_go_the_slow_way():
    system = {"name": "e", "kind": "ensemble", "model": "llama-3.1-8b", "n_members": 4}
    base = {**BASE, "hardware": "hgx_h100", "systems": [system]}
    result = run_sweep(make([{"path": "workload.concurrency", "values": [16, 64]}], base))
    assert result.ok.all()
