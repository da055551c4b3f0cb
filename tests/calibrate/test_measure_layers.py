"""The reference layer: every way of running the experts gives the same numbers, and one expert is a dense layer."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from moesim.calibrate.measure.layers import (  # noqa: E402
    DenseFfn,
    Experts,
    ReferenceMoe,
    Router,
    has_grouped_mm,
    permute,
)
from moesim.calibrate.measure.loads import choose_experts, load_stats  # noqa: E402
from moesim.calibrate.measure.pool import Pool  # noqa: E402
from moesim.calibrate.measure.shapes import MoeSizes  # noqa: E402
from moesim.errors import InputError  # noqa: E402


def layer(sizes, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype) * 0.3

    d, f, e = sizes.hidden_size, sizes.inter_size, sizes.n_experts
    shared = DenseFfn(random(2 * f, d), random(d, f)) if sizes.n_shared_experts else None
    return ReferenceMoe(Router(random(e, d), sizes.top_k), Experts(random(e, 2 * f, d), random(e, d, f)), shared)


def by_hand(moe, x):
    """Token by token, expert by expert, in plain loops."""
    out = torch.zeros_like(x)
    chosen, weights = moe.router(x)
    for t in range(len(x)):
        for e, w in zip(chosen[t].tolist(), weights[t], strict=True):
            gate, up = (moe.experts.gate_up[e] @ x[t]).chunk(2)
            out[t] += w * (moe.experts.down[e] @ (torch.nn.functional.silu(gate) * up))
    return out if moe.shared is None else out + moe.shared(x)


@pytest.mark.parametrize("sizes", [
    MoeSizes("a", 16, 8, 6, 2), MoeSizes("b", 8, 24, 5, 1), MoeSizes("c", 16, 8, 12, 12), MoeSizes("d", 16, 8, 4, 2, 1),
])  # fmt: skip
@pytest.mark.parametrize("n_tokens", [1, 2, 17])
def test_looped_and_padded_give_what_plain_loops_give(sizes, n_tokens):
    moe, x = layer(sizes), torch.randn(n_tokens, sizes.hidden_size, dtype=torch.float64)
    wanted = by_hand(moe, x)
    for method in ("looped", "padded"):
        moe.method = method
        torch.testing.assert_close(moe(x), wanted, rtol=1e-6, atol=1e-9)  # weights pass through float32


@pytest.mark.skipif(not has_grouped_mm(), reason="this PyTorch has no grouped product")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_equals_looped(dtype):
    sizes = MoeSizes("g", 32, 16, 8, 2)
    moe, x = layer(sizes, dtype), torch.randn(23, 32).to(dtype)
    looped = moe(x)
    moe.method = "grouped"
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(moe(x), looped, rtol=tolerance, atol=tolerance * float(looped.abs().max()))


def test_grouped_skips_experts_without_tokens():
    if not has_grouped_mm():
        pytest.skip("this PyTorch has no grouped product")
    moe, x = layer(MoeSizes("g", 32, 16, 16, 1), torch.float32), torch.randn(3, 32)
    looped = moe(x)
    moe.method = "grouped"
    torch.testing.assert_close(moe(x), looped)


def test_one_expert_is_a_dense_layer():
    moe = layer(MoeSizes("one", 16, 24, 1, 1))
    dense = DenseFfn(moe.experts.gate_up[0], moe.experts.down[0])
    x = torch.randn(9, 16, dtype=torch.float64)
    for method in ("looped", "padded"):
        moe.method = method
        torch.testing.assert_close(moe(x), dense(x))


def test_unknown_method_is_one_line():
    moe = layer(MoeSizes("one", 16, 24, 2, 1))
    moe.method = "magic"
    with pytest.raises(InputError, match="looped, padded, grouped"):
        moe(torch.randn(2, 16, dtype=torch.float64))


def test_permute_sorts_by_expert_and_keeps_tokens_in_order():
    x = torch.arange(3.0).unsqueeze(1)
    p = permute(x, torch.tensor([[2, 0], [0, 1], [2, 1]]), 4)
    assert p.counts.tolist() == [2, 2, 2, 0]
    assert p.rows.squeeze(1).tolist() == [0.0, 1.0, 1.0, 2.0, 0.0, 2.0]


def test_forced_logits_force_the_choice():
    sizes = MoeSizes("f", 16, 8, 10, 3)
    wanted = choose_experts("zipf", 40, 10, 3, np.random.default_rng(3))
    forced = np.zeros((40, 10), np.float32)
    np.put_along_axis(forced, wanted, 60.0, axis=1)
    chosen, weights = layer(sizes).router(torch.randn(40, 16, dtype=torch.float64), torch.from_numpy(forced))
    assert np.array_equal(np.sort(chosen.numpy(), 1), np.sort(wanted, 1))
    torch.testing.assert_close(weights.sum(1), torch.ones(40, dtype=torch.float64), rtol=1e-6, atol=0)


def test_router_weights_are_softmax_over_the_chosen():
    router = Router(torch.eye(4, dtype=torch.float64), 2)
    chosen, weights = router(torch.tensor([[3.0, 0.0, 1.0, 2.0]], dtype=torch.float64))
    assert chosen.tolist() == [[0, 3]]
    assert weights[0, 0].item() == pytest.approx(np.exp(3) / (np.exp(3) + np.exp(2)), rel=1e-6)


@pytest.mark.parametrize("load", ["balanced", "uniform", "zipf"])
def test_loads_choose_distinct_experts(load):
    chosen = choose_experts(load, 64, 16, 4, np.random.default_rng(0))
    assert chosen.shape == (64, 4)
    assert all(len(set(row)) == 4 for row in chosen.tolist())
    assert 0 <= chosen.min() <= chosen.max() < 16


def test_loads_differ_in_skew():
    def hottest(load):
        return load_stats(choose_experts(load, 512, 32, 2, np.random.default_rng(0)), 32)["max_expert_tokens"]

    assert hottest("balanced") == 32
    assert 32 < hottest("uniform") < 60
    assert hottest("zipf") > 100


def test_unknown_load():
    with pytest.raises(InputError, match="balanced, uniform, zipf"):
        choose_experts("natural", 1, 2, 1, np.random.default_rng(0))


def test_pool_cuts_follow_each_other_and_start_again():
    pool = Pool(4096 * 4, torch.float32, torch.device("cpu"), 0)
    a, b = pool.cut(16, 64), pool.cut(32, 64)
    assert b.data_ptr() - a.data_ptr() == 16 * 64 * 4
    assert pool.cut(32, 64).data_ptr() == a.data_ptr()
    with pytest.raises(InputError, match="larger than the block"):
        pool.cut(65, 64)


def test_twins_have_the_parameters_they_claim():
    sizes = MoeSizes("t", 16, 8, 10, 3, 1)
    moe = layer(sizes)
    n_router = sizes.hidden_size * sizes.n_experts
    assert sum(p.numel() for p in moe.parameters()) == sizes.n_weights
    assert 3 * sizes.hidden_size * sizes.total_width == sizes.n_weights - n_router
    assert 3 * sizes.hidden_size * sizes.active_width == 4 * 3 * 16 * 8
