"""Recorded choices are the choices that the layer made, and the trace says the same."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from moesim.calibrate.measure.layers import ReferenceMoe  # noqa: E402
from moesim.calibrate.measure.pool import Pool  # noqa: E402
from moesim.calibrate.measure.record import RoutingRecorder  # noqa: E402
from moesim.calibrate.measure.shapes import MoeSizes  # noqa: E402
from moesim.calibrate.profile import record_routing  # noqa: E402
from moesim.errors import InputError, TraceError  # noqa: E402
from moesim.routing.trace import read_trace  # noqa: E402

SIZES = MoeSizes("r", 32, 16, 12, 3)


class TwoLayers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        pool = Pool(1 << 20, torch.float32, torch.device("cpu"), 1)
        self.layers = torch.nn.ModuleList(ReferenceMoe.from_pool(pool, SIZES) for _ in range(2))

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return x


class OldBlock(torch.nn.Module):
    """Chooses inside forward, as blocks of transformers did before version 5."""

    def __init__(self):
        super().__init__()
        self.num_experts, self.top_k, self.hidden_size = 6, 2, 16
        self.gate = torch.nn.Linear(16, 6, bias=False)
        self.proj = torch.nn.Linear(16, 16)

    def forward(self, x):
        return self.proj(x) * torch.softmax(self.gate(x), -1).amax(-1, keepdim=True)


def dense_layer():
    module = torch.nn.Linear(8, 8)
    module.hidden_size = 8
    return module


def old_block():
    torch.manual_seed(0)
    return OldBlock()


def failing():
    raise RuntimeError("no such weights")


def not_a_module():
    return 3


def nameless():
    return torch.nn.Linear(8, 8)


def test_what_is_recorded_is_what_was_chosen(tmp_path):
    model, x = TwoLayers(), torch.randn(20, 32)
    with torch.inference_mode(), RoutingRecorder(model) as recorder:
        model(x[:8])
        model(x[8:])
    first, second = recorder.layers()
    chosen, weights = model.layers[0].router(x)
    assert np.array_equal(first.experts, chosen.numpy())
    assert np.allclose(first.weights, weights.numpy())
    assert first.n_experts == second.n_experts == 12
    assert recorder.write(tmp_path / "t.parquet", "two", ["a"] * 8 + ["b"] * 12) == 20
    trace = read_trace(tmp_path / "t.parquet", 2, 12, 3)
    assert np.array_equal(trace.experts[:, 0], first.experts)
    assert np.array_equal(trace.experts[:, 1], second.experts)
    assert trace.domains == ("a", "b")


def test_hooks_are_gone_afterwards():
    model = TwoLayers()
    with RoutingRecorder(model) as recorder:
        model(torch.randn(2, 32))
    model(torch.randn(5, 32))
    assert len(recorder.layers()[0].experts) == 2
    assert not any(m._forward_hooks for m in model.modules())


def test_layers_that_chose_inside_are_read_at_the_gate():
    block, x = old_block(), torch.randn(3, 5, 16)
    with torch.inference_mode(), RoutingRecorder(block) as recorder:
        block(x)
        (layer,) = recorder.layers()
        wanted = block.gate(x.reshape(-1, 16)).topk(2).indices
    assert layer.n_experts == 6
    assert np.array_equal(layer.experts, wanted.numpy())
    assert np.allclose(layer.weights.sum(1), 1.0)


def test_a_dense_model_shows_no_choices(tmp_path):
    with RoutingRecorder(dense_layer()) as recorder:
        recorder.model(torch.randn(2, 8))
    with pytest.raises(InputError, match="no expert choices were seen"):
        recorder.write(tmp_path / "x.parquet", "x")


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "deepseek_v3", "olmoe", "gpt_oss"])
def test_blocks_of_transformers_run_and_show_their_choices(family, tmp_path):
    pytest.importorskip("transformers")
    found = record_routing(f"hf:{family}", tmp_path / "t.parquet", n_tokens=40, batch_tokens=16)
    assert (found.n_tokens, found.n_layers) == (40, 1)
    trace = read_trace(tmp_path / "t.parquet", 1, found.n_experts, found.top_k)
    assert trace.model == f"hf:{family}"
    assert len(np.unique(trace.experts)) > found.n_experts // 2


def test_block_of_transformers_computes_what_its_experts_say():
    pytest.importorskip("transformers")
    from moesim.calibrate.measure.blocks import hf_block

    block = hf_block("mixtral", Pool(64 << 20, torch.float32, torch.device("cpu"), 0))
    gate_up, down = block.experts.gate_up_proj, block.experts.down_proj
    from moesim.calibrate.measure.layers import Experts, Router

    ours = ReferenceMoe(Router(block.gate.weight.detach(), 2), Experts(gate_up.detach(), down.detach()))
    x = torch.randn(1, 11, 768)
    with torch.inference_mode():
        theirs = block(x)
        theirs = theirs[0] if isinstance(theirs, tuple) else theirs
        torch.testing.assert_close(ours(x[0]), theirs.reshape(11, 768), rtol=1e-4, atol=1e-5)


def test_recording_is_seeded(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        record_routing("reference", tmp_path / name, n_tokens=30, seed=seed)
    a, b, c = (read_trace(tmp_path / n, 1, 32, 4).experts for n in "abc")
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_a_layer_of_the_user(tmp_path):
    found = record_routing(f"{__name__}:old_block", tmp_path / "t", n_tokens=10)
    assert (found.n_experts, found.top_k) == (6, 2)


@pytest.mark.parametrize(("layer", "message"), [
    ("nonsense", "must be package.module:factory"),
    ("no.such.module:f", "cannot be imported"),
    (f"{__name__}:nothing", "cannot be imported"),
    (f"{__name__}:failing", "factory failed: RuntimeError: no such weights"),
    (f"{__name__}:not_a_module", "must return a torch.nn.Module"),
    (f"{__name__}:nameless", "hidden size"),
    (f"{__name__}:dense_layer", "no expert choices"),
    ("hf:nobody", "unknown family"),
])  # fmt: skip
def test_bad_layers_are_one_line(layer, message, tmp_path):
    with pytest.raises(InputError, match=message) as caught:
        record_routing(layer, tmp_path / "t", n_tokens=3)
    assert "\n" not in str(caught.value)


def test_no_tokens(tmp_path):
    with pytest.raises(InputError, match="at least 1"):
        record_routing("reference", tmp_path / "t", n_tokens=0)


def test_trace_is_refused_for_another_model(tmp_path):
    record_routing("reference", tmp_path / "t", n_tokens=5)
    with pytest.raises(TraceError):
        read_trace(tmp_path / "t", 1, 64, 4)
