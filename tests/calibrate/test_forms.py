"""The fitted forms on their own: limits that physics dictates, and the correction's fade."""

import numpy as np
import pytest

from moesim.cost.forms import Correction, Target, evaluate
from moesim.cost.forms_all import FORMS, form_of
from moesim.cost.forms_attention import keys_per_sequence
from moesim.cost.forms_moe import row_tiles
from moesim.errors import CatalogError
from moesim.ops import AttentionShape, CollectiveShape, GemmShape, MoeShape

TARGET = Target(1e15, 3e12, 132, link_bytes_per_s=450e9)
SHAPES = {
    "gemm": GemmShape(np.array([16.0, 4096.0]), 4096.0, 8192.0),
    "moe": MoeShape(64.0, np.array([512.0, 8192.0]), 512.0, 128.0, 200.0, 128.0, 4096.0, 1536.0, 8.0),
    "attention_prefill": AttentionShape(np.array([1.0, 8.0]), 1024.0, 1024.0, 32.0, 8.0, 128.0, 128.0),
    "attention_decode": AttentionShape(np.array([1.0, 64.0]), 1.0, 4096.0, 32.0, 8.0, 128.0, 128.0),
    "mla_attention_prefill": AttentionShape(np.array([1.0, 8.0]), 1024.0, 1024.0, 16.0, 16.0, 192.0, 128.0, None, True),
    "mla_attention_decode": AttentionShape(np.array([1.0, 64.0]), 1.0, 4096.0, 16.0, 1.0, 576.0, 512.0, None, True),
    "linear_attention_prefill": AttentionShape(np.array([1.0, 8.0]), 1024.0, 0.0, 32.0, 16.0, 128.0, 128.0),
    "linear_attention_decode": AttentionShape(np.array([1.0, 64.0]), 1.0, 0.0, 32.0, 16.0, 128.0, 128.0),
    "all_reduce": CollectiveShape(8, np.array([1e4, 1e8])),
    "all_gather": CollectiveShape(8, np.array([1e4, 1e8])),
    "reduce_scatter": CollectiveShape(8, np.array([1e4, 1e8])),
    "all_to_all": CollectiveShape(8, np.array([1e4, 1e8])),
}


def start_params(kind):
    form = form_of(kind)
    return form.params_type(*[info.start for info in form.params_type.infos().values()])


@pytest.mark.parametrize("kind", sorted(FORMS))
def test_every_form_is_positive_grows_with_size_and_has_named_features(kind):
    form, params, shape = form_of(kind), start_params(kind), SHAPES[kind]
    p = evaluate(form, params, shape, TARGET)
    assert np.all(p.time_s > 0)
    assert p.time_s[1] > p.time_s[0]
    features = form.features(shape, params, TARGET, p.terms)
    assert features.shape == (2, len(form.feature_names))
    assert np.all(np.isfinite(features))


def test_a_large_gemm_takes_its_flops_over_the_achieved_rate():
    params = start_params("gemm")
    shape = GemmShape(np.array([16384.0]), 16384.0, 16384.0)
    p = evaluate(form_of("gemm"), params, shape, TARGET)
    ideal = 2 * 16384.0**3 / (TARGET.peak_flop_per_s * params.compute_frac)
    assert ideal < p.time_s[0] < 1.25 * ideal


def test_a_decode_moe_layer_takes_its_weight_bytes_over_the_achieved_bandwidth():
    params = start_params("moe")
    shape = MoeShape(16.0, np.array([128.0]), 128.0, 128.0, 1.0, 128.0, 4096.0, 1536.0, 8.0)
    p = evaluate(form_of("moe"), params, shape, TARGET)
    ideal = 128 * 3 * 4096 * 1536 * 2.0 / (TARGET.memory_bytes_per_s * params.memory_frac)
    assert ideal < p.time_s[0] < 1.2 * ideal


def test_linear_attention_decodes_at_the_rate_of_its_states_and_prefills_in_chunks():
    decode = start_params("linear_attention_decode")
    shape = AttentionShape(np.array([512.0]), 1.0, 0.0, 32.0, 16.0, 128.0, 128.0)
    ideal = 2 * 512 * 32 * 128 * 128 * 4.0 / (TARGET.memory_bytes_per_s * decode.memory_frac)
    assert ideal < evaluate(form_of("linear_attention_decode"), decode, shape, TARGET).time_s[0] < 1.3 * ideal
    prefill = start_params("linear_attention_prefill")
    lengths = AttentionShape(1.0, np.array([8192.0, 16384.0]), 0.0, 32.0, 16.0, 128.0, 128.0)
    short, long = evaluate(form_of("linear_attention_prefill"), prefill, lengths, TARGET).time_s
    assert 1.8 < long / short < 2.0


def test_row_tiles_between_equal_and_skewed_loads():
    pairs, hit = np.float64(1024.0), np.float64(16.0)
    assert row_tiles(pairs, hit, np.float64(64.0), 64) == 16
    assert 16 < row_tiles(pairs, hit, np.float64(256.0), 64) < 32
    assert row_tiles(np.float64(8.0), np.float64(8.0), np.float64(1.0), 128) == 8


def test_causal_pairs_by_counting():
    for q, kv, window in ((5, 9, 4), (7, 7, 100), (1, 12, 6), (6, 10, 8)):
        counted = sum(min(kv - q + i, window) for i in range(1, q + 1))
        assert keys_per_sequence(np.float64(q), np.float64(kv), np.float64(window)) == counted


def test_the_correction_fades_to_the_physical_form_outside_its_points():
    c = Correction(
        mean=np.zeros(2),
        scale=np.ones(2),
        centres=np.zeros((1, 2)),
        weights=np.array([0.4]),
        length=50.0,
        reach=1.0,
        limit=0.3,
    )
    factor, distance = c(np.array([[0.0, 0.0], [6.0, 0.0]]))
    assert factor[0] == pytest.approx(0.3)  # limited
    assert abs(factor[1]) < 1e-6  # faded, although the kernel itself still reaches there
    assert distance.tolist() == [0.0, 6.0]


def test_unknown_kind_is_told():
    with pytest.raises(CatalogError, match="unknown operator kind"):
        form_of("softmax")
