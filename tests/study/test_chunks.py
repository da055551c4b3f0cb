"""Prompts in very many chunks: the time of a few stands for that of all."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.specs.catalog import load_hardware, load_model
from moesim.specs.parallel import ParallelSpec
from moesim.specs.scenario import Engine
from moesim.study.chunks import MOST_TIMED, time_of_chunks
from moesim.study.instance import PassTime, build_instance
from moesim.study.points import time_pass


@pytest.mark.parametrize("max_pass_tokens", [1, 10, 100])
def test_a_few_chunks_stand_for_all(max_pass_tokens: int) -> None:
    instance = build_instance(load_model("qwen3-30b-a3b"), ParallelSpec(), load_hardware("h100_sxm", 1))
    passes = instance.prefill_passes(255, 1000, max_pass_tokens)
    rng, n_timed = np.random.default_rng(0), [0]

    def time_one(step: object, first: bool) -> PassTime:
        n_timed[0] += 1
        return time_pass(instance, step, Engine.ANALYTIC, rng, is_begun=first)  # type: ignore[arg-type]

    exact, last = time_of_chunks(passes, time_one, most=10**6)
    n_timed[0] = 0
    found, same_last = time_of_chunks(passes, time_one)
    assert n_timed[0] <= MOST_TIMED
    assert found == pytest.approx(exact, rel=1e-3)
    assert same_last.time_s == last.time_s
