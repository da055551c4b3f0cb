"""Recorded traces: round trip, every way a file can be wrong, and replay."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moesim.errors import TraceError
from moesim.routing import build_router, contiguous, path_ranks, ranks_touched, read_trace, token_paths, write_trace
from moesim.routing import given as given_placement
from moesim.specs.base import Origin
from moesim.specs.routing import RoutingSpec

SIZES = (3, 8, 2)


@pytest.fixture
def tokens():
    return build_router(RoutingSpec(family="zipf", skew=0.8), *SIZES).sample_tokens(40, np.random.default_rng(0))


@pytest.fixture
def file(tmp_path, tokens):
    path = tmp_path / "trace.parquet"
    write_trace(path, tokens, 8, "toy", domains=["code"] * 15 + ["chat"] * 25)
    return path


def test_round_trip(file, tokens):
    trace = read_trace(file, *SIZES)
    assert np.array_equal(trace.experts, tokens)
    assert trace.model == "toy"
    assert trace.domains == ("chat", "code")
    assert trace.weights == pytest.approx(0.5)
    assert (trace.token_domain == ([1] * 15 + [0] * 25)).all()
    assert [p.name for p in file.parent.iterdir()] == ["trace.parquet"]


def test_rows_may_stand_in_any_order(file, tokens):
    table = pq.read_table(file)
    order = np.random.default_rng(0).permutation(table.num_rows)
    pq.write_table(table.take(pa.array(order)), file)
    trace = read_trace(file, *SIZES)
    assert np.array_equal(trace.experts, tokens)
    assert (trace.token_domain == ([1] * 15 + [0] * 25)).all()


def test_replay_through_the_spec(file, tokens):
    router = build_router(RoutingSpec(family="trace", trace=str(file)), *SIZES)
    assert router.origin is Origin.MEASURED
    again = router.sample_tokens(40, np.random.default_rng(1))
    start = next(i for i in range(40) if np.array_equal(np.roll(tokens, -i, axis=0), again))
    assert np.array_equal(router.sample_tokens(90, np.random.default_rng(1))[:40], np.roll(tokens, -start, axis=0))
    counts = router.sample_rank_counts([10, 0, 20], np.random.default_rng(1))
    assert counts.sum(axis=2).tolist() == [[20, 0, 40]] * 3
    assert counts[:, 0].sum() == 60
    assert router.sample_counts(40, np.random.default_rng(3)).tolist() == [
        np.bincount(tokens[:, i].ravel().astype(int), minlength=8).tolist() for i in range(3)
    ]
    assert router.inclusion_probability().sum(axis=1) == pytest.approx(2)
    assert router.expected_distinct(1000)[0] == len(np.unique(tokens[:, 0]))
    assert router.sample_tokens(5, np.random.default_rng(0), [2]).shape == (5, 1, 2)
    only = build_router(RoutingSpec(family="trace", trace=str(file), domain="code"), *SIZES)
    assert only.sample_tokens(15, np.random.default_rng(0)).shape == (15, 3, 2)
    assert "15 tokens" in only.source


def change(file, **columns):
    table = pq.read_table(file)
    for name, edit in columns.items():
        at = table.column_names.index(name)
        values = table.column(name).to_pylist()
        edit(values)
        table = table.set_column(at, name, pa.array(values, table.schema.field(name).type))
    pq.write_table(table, file)


def put(index, value):
    def edit(values):
        values[index] = value

    return edit


def drop_column(file):
    pq.write_table(pq.read_table(file).drop_columns(["expert"]), file)


def drop_rows(file):
    pq.write_table(pq.read_table(file).slice(0, 239), file)


def twice(file):
    table = pq.read_table(file)
    pq.write_table(pa.concat_tables([table, table.slice(5, 1)]), file)


def meta(file, **changes):
    table = pq.read_table(file)
    raw = {k.decode(): v.decode() for k, v in table.schema.metadata.items()}
    for key, value in changes.items():
        raw.pop(f"moesim_routing.{key}")
        if value is not None:
            raw[f"moesim_routing.{key}"] = value
    pq.write_table(table.replace_schema_metadata(raw), file)


def retype(file):
    table = pq.read_table(file)
    at = table.column_names.index("expert")
    pq.write_table(table.set_column(at, "expert", table.column("expert").cast(pa.string())), file)


BAD = {
    "expert too high": (lambda f: change(f, expert=put(7, 8)), "expert out of range (got 8"),
    "expert negative": (lambda f: change(f, expert=put(0, -1)), "out of range (got -1"),
    "expert twice": (lambda f: change(f, expert=lambda v: v.__setitem__(0, v[1])), "chosen twice"),
    "null": (lambda f: change(f, expert=put(3, None)), "no value"),
    "layer too high": (lambda f: change(f, layer=put(3, 3)), "layer: row 3: out of range"),
    "choice too high": (lambda f: change(f, choice=put(3, 2)), "choice: row 3: out of range"),
    "weight nan": (lambda f: change(f, weight=put(3, float("nan"))), "weight: must be finite"),
    "no column": (drop_column, "has no column expert"),
    "incomplete": (drop_rows, "0 times"),
    "duplicate row": (twice, "2 times"),
    "no metadata": (lambda f: meta(f, model=None), "metadata lack model"),
    "other version": (lambda f: meta(f, format_version="2"), "another format version"),
    "not a number": (lambda f: meta(f, top_k="two"), "whole number"),
    "other experts": (lambda f: meta(f, n_experts="16"), "another n_experts (got 16"),
    "strings": (retype, "wrong type"),
    "cut off": (lambda f: f.write_bytes(f.read_bytes()[:-40]), "damaged or cut off"),
    "empty file": (lambda f: f.write_bytes(b""), "damaged or cut off"),
    "text": (lambda f: f.write_text("token,layer\n"), "damaged or cut off"),
    "no tokens": (lambda f: pq.write_table(pq.read_table(f).slice(0, 0), f), "holds no tokens"),
    "missing": (lambda f: f.unlink(), "no such trace"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_trace_is_one_clear_line(file, case):
    spoil, text = BAD[case]
    spoil(file)
    with pytest.raises(TraceError) as caught:
        read_trace(file, *SIZES)
    assert text in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_misuse(file, tmp_path):
    with pytest.raises(TraceError, match="directory"):
        read_trace(tmp_path, *SIZES)
    with pytest.raises(TraceError, match="another n_layers"):
        read_trace(file, 4, 8, 2)
    with pytest.raises(TraceError, match="no such domain"):
        read_trace(file, *SIZES).router("math")
    with pytest.raises(TraceError, match="out of range"):
        write_trace(tmp_path / "x", np.full((1, 1, 1), 9), 8, "toy")
    with pytest.raises(TraceError, match="one domain per token"):
        write_trace(tmp_path / "x", np.zeros((1, 1, 1)), 8, "toy", domains=["a", "b"])


def test_paths_by_hand():
    experts = np.array([[[0, 3], [2, 1]], [[0, 1], [0, 3]]])
    paths = token_paths(experts, contiguous(4, 2))
    assert paths[0][0].experts == (0, 3)
    assert paths[0][0].ranks == (0, 1)
    assert paths[0][1].ranks == (1, 0)
    assert ranks_touched(experts, contiguous(4, 2)).tolist() == [[2, 2], [1, 2]]
    assert ranks_touched(experts, contiguous(4, 2), ranks_per_node=2).tolist() == [[1, 1], [1, 1]]
    copies = given_placement(((0, 1, 2), (3, 0, 2)), 4)
    assert path_ranks(experts, copies)[:, 0, 0].tolist() == [0, 1]  # tokens take turns over the copies of expert 0
