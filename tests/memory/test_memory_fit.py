"""Does it fit, and if not: demand, bound, gap, and remedies that do what they say."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from moesim.memory import MemoryReport, Outcome, Serving, check_memory, rank_memory, with_weight_dtype
from moesim.specs.catalog import load_model
from moesim.specs.dtypes import Dtype
from moesim.specs.model import ModelSpec
from moesim.specs.parallel import ParallelSpec

ONE = ParallelSpec()


def _split(label: str, base: ParallelSpec) -> ParallelSpec:
    sizes = {m[1].lower() + "_size": int(m[2]) for m in re.finditer(r"(TP|CP|DP|EP|PP)(\d+)", label)}
    reset = dict.fromkeys(("tp_size", "dp_size", "cp_size", "pp_size", "ep_size"), 1)
    return base.model_copy(update=reset | sizes)


def _applied(remedy: str, model: ModelSpec, parallel: ParallelSpec, serving: Serving, capacity: float) -> MemoryReport:
    """What a user gets who does what the sentence says."""
    if found := re.fullmatch(r"batch (\d+) instead of [\d.e+]+", remedy):
        serving = replace(serving, batch=float(found[1]))
    elif found := re.fullmatch(r"context (\d+) instead of [\d.e+]+", remedy):
        serving = replace(serving, context=float(found[1]))
    elif found := re.fullmatch(r"(\d+) devices \((.+)\) instead of \d+", remedy):
        parallel = _split(found[2], parallel)
        assert parallel.n_ranks == int(found[1])
        parallel.check(model)
    elif found := re.fullmatch(r"weights in (\w+)", remedy):
        model = with_weight_dtype(model, Dtype(found[1]))
    else:
        raise AssertionError(f"a remedy nobody can follow: {remedy}")
    return check_memory(model, parallel, serving, capacity, explain=False)


def test_what_fits_says_how_much_more_would() -> None:
    # llama-3.1-8b in bf16 on 80 GB: 16.06 GB of weights
    report = check_memory(load_model("llama-3.1-8b"), ONE, Serving(8, 4096), 80e9)
    assert report.outcome is Outcome.OK
    assert report.gap_bytes == 0
    assert report.remedies == ()
    assert report.memory.weights.total == pytest.approx(16.06e9, rel=1e-3)
    assert report.kv_bytes_per_token == 131_072
    free = 80e9 - report.memory.without_kv
    assert report.max_sequences == int(free // (131_072 * 4096))
    assert report.kv_capacity_tokens == report.max_sequences * 4096


def test_what_does_not_fit_says_by_how_much() -> None:
    report = check_memory(load_model("llama-3.1-70b"), ONE, Serving(8, 4096), 80e9)
    assert report.outcome is Outcome.OUT_OF_MEMORY
    assert report.gap_bytes == pytest.approx(report.memory.total - 80e9)
    assert "141" in report.sentence or f"{report.memory.total / 1e9:.1f} GB per rank" in report.sentence
    assert f"{report.gap_bytes / 1e9:.1f} GB short" in report.sentence
    assert report.remedies
    assert report.remedies[0] in report.sentence


def test_the_largest_batch_fits_and_one_more_does_not() -> None:
    model, serving = load_model("llama-3.1-8b"), Serving(1, 8192)
    n = check_memory(model, ONE, serving, 80e9).max_sequences
    assert rank_memory(model, ONE, replace(serving, batch=n - 1), 80e9).total <= 80e9
    assert rank_memory(model, ONE, replace(serving, batch=n + 1), 80e9).total > 80e9


CASES = st.tuples(
    st.sampled_from(["llama-3.1-8b", "llama-3.1-70b", "mixtral-8x7b", "gpt-oss-120b", "deepseek-v3", "qwen3-30b-a3b"]),
    st.sampled_from([1, 2, 4, 8]),  # TP
    st.sampled_from([1, 2, 4]),  # DP
    st.booleans(),  # expert parallel
    st.integers(1, 600),
    st.integers(64, 65_536),
    st.sampled_from([24e9, 80e9, 141e9]),
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(CASES)
def test_every_remedy_makes_it_fit(case: tuple[str, int, int, bool, int, int, float]) -> None:
    name, tp, dp, ep, batch, context, capacity = case
    model = load_model(name)
    parallel = ParallelSpec(tp_size=tp, dp_size=dp, ep_size=tp * dp if ep and model.is_moe else 1)
    try:
        parallel.check(model)
    except Exception:
        assume(False)
    serving = Serving(float(batch), float(context))
    report = check_memory(model, parallel, serving, capacity)
    assert (report.outcome is Outcome.OK) == (report.memory.total <= capacity) == (report.gap_bytes == 0)
    if report.outcome is Outcome.OK:
        assert report.max_sequences >= 1
    for remedy in report.remedies:
        after = _applied(remedy, model, parallel, serving, capacity)
        assert after.outcome is Outcome.OK, f"{remedy}: {after.sentence}"


def test_remedies_shorten_and_never_lengthen() -> None:
    report = check_memory(load_model("llama-3.1-8b"), ONE, Serving(200, 16_384), 80e9)
    batch = next(r for r in report.remedies if r.startswith("batch"))
    context = next(r for r in report.remedies if r.startswith("context"))
    assert int(batch.split()[1]) < 200
    assert int(context.split()[1]) < 16_384


def test_weights_alone_too_large_leave_no_batch_or_context() -> None:
    report = check_memory(load_model("llama-3.1-405b"), ONE, Serving(1, 1024), 80e9)
    assert not any(r.startswith(("batch", "context")) for r in report.remedies)
    assert any("devices" in r for r in report.remedies)
    assert report.max_sequences == 0


def test_narrower_weights_keep_embeddings_and_router() -> None:
    model = load_model("mixtral-8x7b")
    narrow = with_weight_dtype(model, Dtype.INT4)
    assert narrow.storage.routed_experts.dtype is Dtype.INT4
    assert narrow.storage.embedding == model.storage.embedding
    assert narrow.storage.router == model.storage.router
    assert narrow.n_params == model.n_params
