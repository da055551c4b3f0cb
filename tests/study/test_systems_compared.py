"""Systems on one footing: ensembles, weight traffic, twins, quality rules, crossings and verdicts."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from moesim.errors import InputError
from moesim.lowering import Pass
from moesim.memory import rank_weights
from moesim.ops import Phase
from moesim.specs.catalog import load_hardware, load_model
from moesim.specs.model import ModelSpec, MoeFfn
from moesim.specs.parallel import ParallelSpec
from moesim.specs.scenario import Basis, Engine, QualityRule
from moesim.specs.workload import WorkloadSpec
from moesim.study.flips import crossings
from moesim.study.instance import build_instance
from moesim.study.points import System, measure_point
from moesim.study.quality import dense_equivalent_params, geometric_mean_params, scaling_law_params
from moesim.study.results import Point
from moesim.study.twins import WIDTH_STEP, dense_twin
from moesim.study.uncertainty import Spread, quotient, verdict

WORK = WorkloadSpec(input_tokens=512, output_tokens=128)
HGX = load_hardware("hgx_h100")


def _system(name: str, parallel: ParallelSpec, n_members: int = 1, skew: float = 0.0) -> System:
    instance = build_instance(load_model(name), parallel, HGX)
    shares = 1 / np.arange(1, n_members + 1) ** skew
    return System(name, instance, 8 // parallel.n_ranks, n_members, tuple(shares / shares.sum()))


def _point(system: System, concurrency: int) -> Point:
    return measure_point(system, HGX, WORK, concurrency, Engine.ANALYTIC, np.random.default_rng(0))


# ---------------------------------------------------------------- one point


@pytest.mark.parametrize("concurrency", [1, 16])
def test_prefills_of_others_come_between_the_tokens(concurrency: int) -> None:
    # 16 prompts of 512 fill a pass of 8192 tokens; each request sees 15 others prefill once in its 128 output tokens
    system = _system("llama-2-7b", ParallelSpec(tp_size=8))
    point, instance = _point(system, concurrency), system.instance
    step_s = instance.analytic(instance.decode_pass(concurrency, 512 + 64)).time_s
    prompt_s = instance.analytic(Pass(Phase.PREFILL, 16.0, 512.0, 0.0)).time_s / 16
    assert point.decode_step_s == pytest.approx(step_s, rel=1e-12)
    assert point.tpot_s == pytest.approx(step_s + (concurrency - 1) * prompt_s / 128, rel=1e-12)
    assert point.output_tokens_per_s == pytest.approx(concurrency / (step_s + concurrency * prompt_s / 128), rel=1e-12)
    assert point.ttft_s == pytest.approx(instance.analytic(Pass(Phase.PREFILL, 1.0, 512.0, 0.0)).time_s, rel=1e-12)
    assert point.output_tokens_per_s_per_device == pytest.approx(point.output_tokens_per_s / 8)


# ---------------------------------------------------------------- ensembles


@pytest.mark.parametrize("parallel", [ParallelSpec(tp_size=8), ParallelSpec(tp_size=2)], ids=lambda p: p.label)
def test_one_request_in_an_ensemble_takes_what_one_member_takes(parallel: ParallelSpec) -> None:
    alone, ensemble = _system("llama-2-7b", parallel), _system("llama-2-7b", parallel, n_members=4)
    assert _point(ensemble, 1).decode_step_s == pytest.approx(_point(alone, 1).decode_step_s, rel=1e-12)
    assert _point(ensemble, 1).ttft_s == pytest.approx(_point(alone, 1).ttft_s, rel=1e-12)
    assert _point(ensemble, 1).weight_bytes_read_per_step == pytest.approx(_point(alone, 1).weight_bytes_read_per_step)


def test_a_busy_ensemble_reads_every_members_weights() -> None:
    alone, ensemble = _system("llama-2-7b", ParallelSpec(tp_size=8)), _system("llama-2-7b", ParallelSpec(tp_size=8), 8)
    one, many = _point(alone, 256), _point(ensemble, 256)
    assert many.weight_bytes_read_per_step == pytest.approx(8 * one.weight_bytes_read_per_step, rel=1e-3)
    # eight passes of an eighth of the requests each, one after another
    eighth = _point(alone, 32).decode_step_s
    assert many.decode_step_s == pytest.approx(8 * eighth, rel=0.02)
    assert many.output_tokens_per_s < one.output_tokens_per_s


def test_an_ensembles_memory_holds_all_members() -> None:
    # 13.5 GB each: 4 fit on one of 80 GB, 8 do not
    single = ParallelSpec()
    weights = rank_weights(load_model("llama-2-7b"), single, range(32), first=True, last=True).total
    assert weights == pytest.approx(13.5e9, rel=0.01)
    four, forty_eight = _system("llama-2-7b", single, 32), _system("llama-2-7b", single, 48)
    assert (four.members_per_slot, forty_eight.members_per_slot) == (4, 6)
    assert _point(four, 8).outcome == "ok"
    failed = _point(forty_eight, 8)
    assert failed.outcome == "out of memory"
    assert failed.tpot_s is None
    assert "6 whole models per slot" in str(failed.reason)


@pytest.mark.parametrize(("n_members", "n_ranks"), [(1, 1), (2, 1), (3, 2), (8, 1), (16, 8), (5, 8)])
def test_all_requests_have_a_host(n_members: int, n_ranks: int) -> None:
    system = _system("llama-2-7b", ParallelSpec(tp_size=n_ranks), n_members, skew=1.0)
    hosted = system.hosted()
    assert len(hosted) == 8 // n_ranks
    assert sum(map(sum, hosted)) == pytest.approx(1.0)
    assert max(map(len, hosted)) <= system.members_per_slot


def test_popular_members_make_the_slowest_slot() -> None:
    even, skewed = (_system("llama-2-7b", ParallelSpec(), 8, skew=s) for s in (0.0, 1.5))
    assert _point(skewed, 64).decode_step_s > _point(even, 64).decode_step_s


# ---------------------------------------------------------------- weights read per step


def test_a_moe_reads_between_its_active_and_its_total_weights() -> None:
    model = load_model("mixtral-8x7b")
    system = _system("mixtral-8x7b", ParallelSpec(tp_size=8))
    embedding = model.embedding_params * 2
    router_copies = 7 * 32 * 8 * 4096 * 2  # the router is on each of 8 ranks, as norms are
    active, total = model.n_active_params * 2 - embedding, model.n_params * 2 - embedding
    read = [_point(system, n).weight_bytes_read_per_step for n in (1, 2, 4, 16, 256)]
    assert read[0] == pytest.approx(active + router_copies, rel=1e-3)
    assert all(a < b for a, b in pairwise(read))
    assert read[-1] == pytest.approx(total + router_copies, rel=1e-3)
    # 4 requests hit 8 (1 - (6/8)^4) = 5.47 of 8 experts
    expert = 3 * 4096 * 14336 * 2 * 32
    assert read[2] == pytest.approx(total - (8 - 8 * (1 - 0.75**4)) * expert + router_copies, rel=1e-3)


@pytest.mark.parametrize("name", ["llama-2-7b", "qwen3-0.6b"])
def test_a_dense_model_reads_all_of_its_weights(name: str) -> None:
    model = load_model(name)
    for n in (1, 64):
        read = _point(_system(name, ParallelSpec()), n).weight_bytes_read_per_step
        # a lookup reads next to nothing of an embedding, unless it is the head as well
        lookup = 0 if model.tie_word_embeddings else model.embedding_params * 2
        assert read == pytest.approx(model.n_params * 2 - lookup, rel=1e-3)


# ---------------------------------------------------------------- twins and quality


@pytest.mark.parametrize("name", ["mixtral-8x7b", "deepseek-v3", "gpt-oss-120b", "qwen3-30b-a3b"])
@pytest.mark.parametrize("rule", list(QualityRule))
@pytest.mark.parametrize("basis", [b for b in Basis if b is not Basis.NAMED])
def test_twins_have_what_their_basis_says(name: str, basis: Basis, rule: QualityRule) -> None:
    model = load_model(name)
    ffn = model.moe_ffn
    assert ffn is not None
    try:
        twin = dense_twin(model, basis, rule)
    except InputError:
        pytest.skip("the skeleton is larger than the target")
    step = (3 if ffn.gated else 2) * model.hidden_size * WIDTH_STEP * len(model.moe_layers) / 2
    assert not twin.is_moe
    assert (twin.hidden_size, len(twin.layers), twin.vocab_size) == (
        model.hidden_size,
        len(model.layers),
        model.vocab_size,
    )
    assert [layer.attention for layer in twin.layers] == [layer.attention for layer in model.layers]
    if basis is Basis.EQUAL_MEMORY:
        slack = step * twin.storage.attention.bytes_per_element
        # biases and routers are kept in 16 bits on either side: a hundredth of the whole at most
        assert _bytes(twin) == pytest.approx(_bytes(model), abs=slack + 0.01 * _bytes(model))
        return
    target = {
        Basis.EQUAL_ACTIVE: float(model.n_active_params),
        Basis.EQUAL_TOTAL: float(model.n_params),
        Basis.EQUAL_QUALITY: dense_equivalent_params(model, rule),
    }[basis]
    assert twin.n_params == pytest.approx(target, abs=step + 1)


def _bytes(model: ModelSpec) -> float:
    return rank_weights(model, ParallelSpec(), range(len(model.layers)), first=True, last=True).total


def test_a_dense_model_has_no_twin() -> None:
    with pytest.raises(InputError, match="needs a model with experts"):
        dense_twin(load_model("llama-2-7b"), Basis.EQUAL_TOTAL, QualityRule.GEOMETRIC_MEAN)


def test_geometric_mean_by_hand() -> None:
    model = load_model("mixtral-8x7b")
    # sqrt(12.9 x 46.7) = 24.5
    assert geometric_mean_params(model) == pytest.approx(24.5e9, rel=0.005)


def test_scaling_law_by_hand() -> None:
    # Clark et al. 2022, table 3, S-BASE: a -0.082, b -0.108, c 0.009, E_start 1.847, E_max 314.478. Mixtral: N = 12.88e9, E = 4.
    # E' = 1 / (1/(E - 1 + 1/(1/1.847 - 1/314.478)) + 1/314.478)
    start = 1 / (1 / 1.847 - 1 / 314.478)
    assert start == pytest.approx(1.8579, abs=1e-4)
    four, one = (1 / (1 / (e - 1 + start) + 1 / 314.478) for e in (4, 1))
    assert (four, one) == (pytest.approx(4.7836, abs=1e-3), pytest.approx(1.847, abs=1e-9))
    n = math.log10(load_model("mixtral-8x7b").n_active_params)
    loss = -0.082 * n - 0.108 * math.log10(four) + 0.009 * n * math.log10(four)
    dense = 10 ** ((loss + 0.108 * math.log10(one)) / (-0.082 + 0.009 * math.log10(one)))
    got = scaling_law_params(load_model("mixtral-8x7b"))
    assert got == pytest.approx(dense, rel=1e-9)
    # and as a number, so that a slip in both would show: the law has little left for routing at this size
    assert got == pytest.approx(15.7e9, rel=0.01)


@pytest.mark.parametrize("name", ["mixtral-8x7b", "deepseek-v3", "olmoe-1b-7b"])
def test_quality_lies_between_active_and_total(name: str) -> None:
    model = load_model(name)
    for rule in QualityRule:
        assert model.n_active_params < dense_equivalent_params(model, rule) < model.n_params
    assert scaling_law_params(load_model("llama-2-7b")) == load_model("llama-2-7b").n_params


# ---------------------------------------------------------------- crossings and verdicts


@pytest.mark.parametrize(
    ("x", "ratio", "found"),
    [
        ([1, 2, 4], [2.0, 2.0, 3.0], []),
        ([1, 4], [0.5, 2.0], [2.0]),
        ([1, 4, 16], [0.5, 2.0, 0.5], [2.0, 8.0]),
        ([1, 16], [0.5, 8.0], [2.0]),  # a quarter of the way in logarithms
        ([1, 2, 4], [0.5, 1.0, 2.0], [2.0]),  # exactly 1, once
        ([1, 2, 4], [0.5, 1.0, 0.5], []),  # touches and turns back
        ([1, 2, 4], [1.0, 2.0, 4.0], []),  # starts even
        ([1, 2, 4], [None, 0.5, 2.0], [math.sqrt(8)]),
        ([1, 2, 4], [0.5, None, 2.0], [2.0]),  # somewhere where one of the two does not run
        ([], [], []),
    ],
)
def test_crossings(x: list[float], ratio: list[float | None], found: list[float]) -> None:
    assert crossings(x, ratio) == pytest.approx(found)


def sentence(a: str, b: str, ratio: float | None, error_a: float | None, error_b: float | None) -> str:
    """The verdict on two systems whose errors have these half-widths, as fractions."""
    if error_a is None or error_b is None:
        return verdict(a, b, ratio, None)
    sides = [Spread(math.log1p(e), math.log1p(e)) for e in (error_b, error_a)]
    return verdict(a, b, ratio, quotient(*sides))


def test_verdicts_without_an_interval() -> None:
    assert sentence("moe", "dense", 2.0, None, None).startswith("moe is cheaper than dense, 2.00x")
    assert sentence("moe", "dense", 0.5, None, 0.1).startswith("dense is cheaper than moe, 2.00x")
    assert sentence("moe", "dense", 1.04, None, None).startswith("too close to call")
    assert "assumption only" in sentence("moe", "dense", 2.0, None, None)
    assert sentence("moe", "dense", None, None, None) == "cannot be compared"


def test_verdicts_with_an_interval() -> None:
    # half-widths of 10% and 20% in quadrature of logarithms: sqrt(0.0953^2 + 0.1823^2) = 0.2057; x 1.27, a factor of 1.299
    text = sentence("moe", "dense", 2.0, 0.1, 0.2)
    assert text == "moe is cheaper than dense, 2.00x [1.54, 2.60]"
    assert sentence("moe", "dense", 0.5, 0.1, 0.2) == "dense is cheaper than moe, 2.00x [1.54, 2.60]"


@pytest.mark.parametrize(
    ("ratio", "a", "b", "close"),
    [
        (1.1, 0.1, 0.1, True),  # a factor of 1.187
        (1.2, 0.1, 0.1, False),
        (0.9, 0.1, 0.1, True),
        (1.53, 0.05, 0.4, True),  # a factor of 1.540
        (1.55, 0.4, 0.05, False),
    ],
)
def test_too_close_to_call_is_when_the_interval_holds_one(ratio: float, a: float, b: float, close: bool) -> None:
    assert sentence("moe", "dense", ratio, a, b).startswith("too close to call") == close


def test_a_useless_interval_is_too_close() -> None:
    assert sentence("moe", "dense", 3.0, 1.5, 1.2).startswith("too close to call")


def test_balanced_keeps_redundant_experts_that_the_split_needs() -> None:
    # 256 experts do not divide over 288 / 2 = 144 ranks
    from moesim.specs.routing import PlacementKind, PlacementSpec, RoutingSpec

    routing = RoutingSpec(placement=PlacementSpec(kind=PlacementKind.EPLB_GLOBAL))
    split = ParallelSpec(dp_size=144, ep_size=144, redundant_experts=32)
    instance = build_instance(load_model("deepseek-v3"), split, load_hardware("h800_x22_nodes", 144), routing)
    even = instance.balanced()
    step = even.decode_pass(144 * 32, 4096)
    assert even.analytic(step).time_s > 0
    assert even.parallel.redundant_experts == 32


def test_layers_that_hold_experts_are_the_ones_that_change() -> None:
    model = load_model("deepseek-v3")
    twin = dense_twin(model, Basis.EQUAL_TOTAL, QualityRule.GEOMETRIC_MEAN)
    changed = [i for i, (a, b) in enumerate(zip(model.layers, twin.layers, strict=True)) if a != b]
    assert changed == [i for i, layer in enumerate(model.layers) if isinstance(layer.ffn, MoeFfn)]
