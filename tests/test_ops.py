"""Work adds and scales, and operators know their lane."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.analytic import barrier_groups
from moesim.ops import (
    COLLECTIVES,
    EXCHANGES,
    CollectiveShape,
    GemmShape,
    Lane,
    Op,
    OpKind,
    Segment,
    Work,
    maximum,
    minimum,
)


def _op(name: str, kind: OpKind) -> Op:
    shape = GemmShape(1.0, 1.0, 1.0) if kind is OpKind.GEMM else CollectiveShape(2, 1.0)
    return Op(name, kind, Work(), shape)


def test_work_adds_each_part_to_its_own() -> None:
    # primes, so that no dropped or swapped term goes unseen
    total = Work(2.0, 3.0, 5.0) + Work(7.0, 11.0, 13.0)
    assert (total.flops, total.read_bytes, total.write_bytes) == (9.0, 14.0, 18.0)
    assert total.moved_bytes == 32.0


def test_work_scales_every_part() -> None:
    scaled = Work(3.0, 5.0, 7.0) * 11.0
    assert (scaled.flops, scaled.read_bytes, scaled.write_bytes) == (33.0, 55.0, 77.0)
    assert scaled == Work(3.0, 5.0, 7.0) * 4.0 + Work(3.0, 5.0, 7.0) * 7.0


def test_work_of_arrays_broadcasts() -> None:
    total = Work(np.array([1.0, 2.0]), 3.0) + Work(5.0, np.array([7.0, 11.0]))
    np.testing.assert_array_equal(total.flops, [6.0, 7.0])
    np.testing.assert_array_equal(total.moved_bytes, [10.0, 14.0])


def test_every_kind_has_a_lane() -> None:
    comm = {kind for kind in OpKind if _op("x", kind).lane is Lane.COMM}
    assert comm == COLLECTIVES | EXCHANGES
    assert OpKind.GROUPED_GEMM not in comm


def test_barrier_groups_end_with_communication() -> None:
    kinds = [
        OpKind.GEMM,
        OpKind.GEMM,
        OpKind.DISPATCH,
        OpKind.GROUPED_GEMM,
        OpKind.COMBINE,
        OpKind.ALL_REDUCE,
        OpKind.GEMM,
    ]
    ops = [_op(str(i), kind) for i, kind in enumerate(kinds)]
    names = [[op.name for op in group] for group in barrier_groups(ops, n_ranks=2)]
    assert names == [["0", "1", "2"], ["3", "4"], ["5"], ["6"]]
    # alone, nobody is waited for
    assert [len(group) for group in barrier_groups(ops, n_ranks=1)] == [7]
    assert barrier_groups([], n_ranks=2) == []


def test_segments_repeat_once_per_layer() -> None:
    op = _op("x", OpKind.GEMM)
    assert Segment("head", (op,)).n_repeat == 1
    assert Segment("layers", (op,), (0, 2, 4)).n_repeat == 3
    assert not Segment("dense", (op,)).is_moe


@pytest.mark.parametrize(("a", "b"), [(2.0, 3.0), (3.0, 2.0), (np.array([1.0, 5.0]), 3.0)])
def test_larger_and_smaller(a: object, b: object) -> None:
    np.testing.assert_array_equal(maximum(a, b), np.maximum(a, b))  # type: ignore[arg-type]
    np.testing.assert_array_equal(minimum(a, b), np.minimum(a, b))  # type: ignore[arg-type]
    if isinstance(a, float):
        assert isinstance(maximum(a, b), float)
