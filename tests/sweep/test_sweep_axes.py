import numpy as np
import pytest
from pydantic import ValidationError

from moesim.errors import InputError
from moesim.specs.sweep import AxisSpec
from moesim.study.sweep.axes import expand


def axis(**fields):
    return AxisSpec.model_validate(fields)


def table(*axes):
    return [tuple(c.of(i) for c in expand(axes)) for i in range(len(expand(axes)[0].codes))]


def test_axes_are_crossed_the_first_slowest():
    assert table(axis(path="a", values=[1, 2]), axis(path="b", values=["x", "y"])) == [
        (1, "x"),
        (1, "y"),
        (2, "x"),
        (2, "y"),
    ]


def test_zipped_axes_advance_in_step():
    zipped = axis(zip=[{"path": "a", "values": [1, 2]}, {"path": "b", "values": [3, 3]}])
    assert table(zipped, axis(path="c", values=[7, 8])) == [(1, 3, 7), (1, 3, 8), (2, 3, 7), (2, 3, 8)]


def test_ranges():
    assert table(axis(path="a", range={"start": 1, "stop": 7, "step": 3})) == [(1,), (4,), (7,)]
    assert table(axis(path="a", range={"start": 0.5, "stop": 1.5, "step": 0.5})) == [(0.5,), (1.0,), (1.5,)]
    got = table(axis(path="a", log_range={"start": 1, "stop": 8, "n": 8, "whole": True}))
    assert got == [(1,), (2,), (3,), (4,), (6,), (8,)]


def test_a_sample_fills_its_box_evenly_and_is_the_same_every_time():
    sample = axis(sample={"n": 64, "seed": 3, "over": [
        {"path": "a", "low": 1, "high": 1024, "log": True}, {"path": "b", "low": 1, "high": 4, "whole": True},
        {"path": "c", "values": ["x", "y"]},
    ]})  # fmt: skip
    rows = table(sample)
    assert rows == table(sample)
    a = np.log2([r[0] for r in rows])
    assert np.histogram(a, bins=8, range=(0, 10))[0].tolist() == [8] * 8  # low discrepancy: every eighth is hit equally
    assert sorted({r[1] for r in rows}) == [1, 2, 3, 4]
    assert sum(r[2] == "x" for r in rows) == 32
    other = table(axis(sample={"n": 64, "seed": 4, "over": [{"path": "a", "low": 1, "high": 1024, "log": True}]}))
    assert [r[0] for r in other] != [r[0] for r in rows]


@pytest.mark.parametrize("fields", [
    {"path": "a"}, {"path": "a", "values": []}, {"values": [1]}, {"path": "a", "values": [1], "range": {"start": 1, "stop": 2}},
    {"path": "a", "range": {"start": 3, "stop": 1}}, {"path": "a", "range": {"start": 1, "stop": 2, "step": 0}},
    {"path": "a", "log_range": {"start": 0, "stop": 2, "n": 3}}, {"sample": {"n": 0, "over": [{"path": "a",
    "low": 1, "high": 2}]}},
    {"sample": {"n": 2, "over": [{"path": "a", "low": 2, "high": 1}]}}, {"sample": {"n": 2, "over": [{"path": "a", "low": 2}]}},
    {"zip": [{"path": "a", "values": [1]}, {"zip": [{"path": "b", "values": [1]}, {"path": "c", "values": [1]}]}]},
])  # fmt: skip
def test_axes_that_make_no_sense_are_refused(fields):
    with pytest.raises(ValidationError):
        axis(**fields)


def test_unequal_zips_doubled_paths_and_floods_are_refused():
    with pytest.raises(InputError, match="unequal lengths"):
        expand([axis(zip=[{"path": "a", "values": [1, 2]}, {"path": "b", "values": [1]}])])
    with pytest.raises(InputError, match="same path"):
        expand([axis(path="a", values=[1]), axis(path="a", values=[2])])
    with pytest.raises(InputError, match="too many cases"):
        expand([axis(path=p, range={"start": 1, "stop": 3000}) for p in "ab"])
