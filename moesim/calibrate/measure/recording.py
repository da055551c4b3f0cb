"""Recording the routing of one layer, built by name, on random hidden states."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from moesim.calibrate.measure import blocks
from moesim.calibrate.measure.layers import ReferenceMoe
from moesim.calibrate.measure.pool import Pool
from moesim.calibrate.measure.record import RoutingRecorder
from moesim.calibrate.measure.shapes import MoeSizes

__all__ = ["record_layer"]

_REFERENCE = MoeSizes("reference", 256, 128, 32, 4)
_POOL_BYTES = 16 << 20
_HF_POOL_BYTES = 128 << 20


def record_layer(
    layer: str, out: Path, n_tokens: int, seed: int, batch_tokens: int, model_name: str
) -> tuple[int, int, int, int]:
    """Route `n_tokens` random tokens through a layer and write the trace; returns tokens, layers, E and K.

    Raises:
        InputError: the layer cannot be used, or shows no choices.
    """
    module, hidden, takes_batch = _build(layer, seed)
    generator = torch.Generator().manual_seed(seed)
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    with torch.inference_mode(), RoutingRecorder(module) as recorder:
        for start in range(0, n_tokens, batch_tokens):
            rows = min(batch_tokens, n_tokens - start)
            x: Tensor = torch.randn(rows, hidden, generator=generator).to(dtype)
            module(x.unsqueeze(0) if takes_batch else x)
    layers = recorder.layers()
    written = recorder.write(out, model_name)
    return written, len(layers), layers[0].n_experts, layers[0].experts.shape[1]


def _build(layer: str, seed: int) -> tuple[nn.Module, int, bool]:
    device = torch.device("cpu")
    if layer == "reference":
        pool = Pool(_POOL_BYTES, torch.float32, device, seed)
        return ReferenceMoe.from_pool(pool, _REFERENCE), _REFERENCE.hidden_size, False
    if layer.startswith("hf:"):
        family = layer.removeprefix("hf:")
        block = blocks.hf_block(family, Pool(_HF_POOL_BYTES, torch.float32, device, seed))
        return block, blocks.hf_hidden_size(family), True
    user = blocks.load_layer(layer, device)
    return user.module, user.hidden_size, user.takes_batch
