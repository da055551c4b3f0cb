"""Load statistics: by hand, against scipy, by property; and the examples in the package's docstrings."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import entropy, variation

import moesim.routing
from moesim.routing import (
    coefficient_of_variation,
    contiguous,
    expert_imbalance_ratio,
    gini,
    max_over_mean,
    normalised_entropy,
    rank_imbalance_ratio,
)

LOADS = arrays(np.int64, st.tuples(st.integers(1, 4), st.integers(2, 12)), elements=st.integers(0, 1000))
ALL = (max_over_mean, coefficient_of_variation, normalised_entropy, gini)


@given(LOADS)
def test_against_scipy_and_definitions(counts):
    rows = counts[counts.sum(axis=1) > 0]
    if not len(rows):
        return
    assert coefficient_of_variation(rows) == pytest.approx(variation(rows, axis=1))
    assert normalised_entropy(rows) == pytest.approx(entropy(rows, axis=1) / np.log(rows.shape[1]), abs=1e-12)
    gaps = np.abs(rows[:, :, None] - rows[:, None, :]).mean(axis=(1, 2))
    assert gini(rows) == pytest.approx(gaps / (2 * rows.mean(axis=1)), abs=1e-12)


@given(LOADS, st.integers(0, 1000))
def test_relabelling_experts_changes_nothing(counts, seed):
    shuffled = np.random.default_rng(seed).permuted(counts, axis=1)
    for statistic in ALL:
        assert statistic(shuffled) == pytest.approx(statistic(counts))


def test_imbalance_by_hand():
    counts = np.array([[4, 0, 2, 2], [1, 1, 1, 1], [0, 0, 0, 0]])
    assert expert_imbalance_ratio(counts).tolist() == [2, 1, 1]
    assert rank_imbalance_ratio(counts, contiguous(4, 2)).tolist() == [1, 1, 1]


@pytest.mark.parametrize("module", [m.name for m in pkgutil.iter_modules(moesim.routing.__path__)])
def test_examples_in_docstrings(module):
    loaded = importlib.import_module(f"moesim.routing.{module}")
    assert doctest.testmod(loaded).failed == 0
