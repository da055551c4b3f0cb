"""From a point to calls that can be timed: the same work on buffers that take turns."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from moesim.calibrate.measure.layers import DenseFfn, Method, ReferenceMoe, permute
from moesim.calibrate.measure.loads import choose_experts, load_stats
from moesim.calibrate.measure.plan import HF_KERNEL, Point
from moesim.calibrate.measure.pool import Pool
from moesim.calibrate.measure.shapes import MoeSizes
from moesim.calibrate.measure.timing import Call
from moesim.errors import InputError

__all__ = ["Bench", "Case", "build_case"]

_MAX_COPIES = 48
# A buffer is cold again after this many times the last-level cache has been read in between.
_COLD = 2.0
Loaded: TypeAlias = tuple[ReferenceMoe, Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Case:
    """Calls that take turns, and what is known about them."""

    calls: tuple[Call, ...]
    stats: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bench:
    """Where points run: device, weights, cache size, and the seed."""

    device: torch.device
    pool: Pool
    cache_bytes: int
    seed: int

    def rng(self, point: Point) -> np.random.Generator:
        """Random numbers of one point, the same in every run and round."""
        return np.random.default_rng([self.seed, zlib.crc32(point.key.encode())])

    def copies(self, touched_bytes: float) -> int:
        """How many buffers must take turns so that each is out of the cache when its turn comes."""
        return max(2, min(_MAX_COPIES, math.ceil(_COLD * self.cache_bytes / max(1.0, touched_bytes))))

    def random(self, rng: np.random.Generator, *shape: int) -> Tensor:
        """Activations of unit variance."""
        return self.tensor(rng.standard_normal(shape, dtype=np.float32)).to(self.pool.dtype)

    def tensor(self, values: np.ndarray[Any, Any]) -> Tensor:
        """An array on the device."""
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)


def build_case(point: Point, bench: Bench) -> Case:
    """Calls for a point.

    Raises:
        InputError: no way to measure this kind.
    """
    if point.kernel == HF_KERNEL:
        from moesim.calibrate.measure.blocks import hf_case

        return hf_case(point, bench)
    name = "dense" if point.kernel == "dense" else point.kind
    builder = _BUILDERS.get(name)
    if builder is None:
        raise InputError(
            "do not know how to measure this", field="kind", value=point.kind, allowed=", ".join(_BUILDERS)
        )
    return builder(point, bench)


def _sizes(point: Point) -> MoeSizes:
    s = point.sizes
    return MoeSizes(
        point.name, s["hidden_size"], s["inter_size"], s["n_local_experts"], s["top_k"], s["n_shared_experts"]
    )


def _loaded_layers(point: Point, bench: Bench, method: Method) -> tuple[list[Loaded], dict[str, float]]:
    """Copies of a layer, each with an input and the logits that force the wanted load, over renamed experts."""
    sizes, rng, n_tokens = _sizes(point), bench.rng(point), point.sizes["n_tokens"]
    base = choose_experts(point.load, n_tokens, sizes.n_experts, sizes.top_k, rng)
    stats = load_stats(base, sizes.n_experts)
    per_expert = 3 * sizes.hidden_size * sizes.inter_size * bench.pool.dtype.itemsize
    made = []
    for _ in range(bench.copies(stats["n_experts_hit"] * per_expert)):
        forced = np.zeros((n_tokens, sizes.n_experts), dtype=np.float32)
        np.put_along_axis(forced, rng.permutation(sizes.n_experts)[base], 60.0, axis=1)
        layer = ReferenceMoe.from_pool(bench.pool, sizes, method)
        made.append((layer, bench.random(rng, n_tokens, sizes.hidden_size), bench.tensor(forced)))
    return made, stats


def _moe(point: Point, bench: Bench) -> Case:
    method: Any = point.kernel
    made, stats = _loaded_layers(point, bench, method)
    return Case(tuple(_bind(layer, x, forced) for layer, x, forced in made), stats)


def _part(point: Point, bench: Bench) -> Case:
    method: Any = point.kernel.removeprefix("experts_") if point.kind == "part_experts" else "looped"
    made, stats = _loaded_layers(point, bench, method)
    calls = [_part_call(point.kind, layer, x, forced) for layer, x, forced in made]
    return Case(tuple(calls), stats)


def _part_call(kind: str, layer: ReferenceMoe, x: Tensor, forced: Tensor) -> Call:
    if kind == "part_router":
        return _bind(layer.router, x, forced)
    chosen, weights = layer.router(x, forced)
    if kind == "part_permute":
        return _bind(permute, x, chosen, layer.experts.num_experts)
    permuted = permute(x, chosen, layer.experts.num_experts)
    if kind == "part_experts":
        return _bind(layer.experts, permuted, layer.method)
    return _bind(layer.combine, permuted.rows, permuted, weights)


def _dense(point: Point, bench: Bench) -> Case:
    hidden, width, rng = point.sizes["hidden_size"], point.sizes["inter_size"], bench.rng(point)
    x = bench.random(rng, point.sizes["n_tokens"], hidden)
    n = bench.copies(3 * hidden * width * bench.pool.dtype.itemsize)
    return Case(tuple(_bind(DenseFfn.from_pool(bench.pool, hidden, width), x) for _ in range(n)))


def _gemm(point: Point, bench: Bench) -> Case:
    m, n, k = (point.sizes[name] for name in ("m", "n", "k"))
    x = bench.random(bench.rng(point), m, k)
    copies = bench.copies(n * k * bench.pool.dtype.itemsize)
    return Case(tuple(_bind(functional.linear, x, bench.pool.cut(n, k)) for _ in range(copies)))


def _attention(point: Point, bench: Bench) -> Case:
    s = point.sizes
    kv_shape = (s["batch"], s["n_kv_heads"], s["kv_len"], s["qk_head_dim"])
    query = bench.random(bench.rng(point), s["batch"], s["n_heads"], s["q_len"], s["qk_head_dim"])
    is_causal = s["q_len"] > 1
    n = bench.copies(2 * math.prod(kv_shape) * bench.pool.dtype.itemsize)
    calls = []
    for _ in range(n):
        keys, values = bench.pool.cut(*kv_shape), bench.pool.cut(*kv_shape)
        calls.append(_bind(_sdpa, query, keys, values, is_causal))
    return Case(tuple(calls))


def _sdpa(query: Tensor, keys: Tensor, values: Tensor, is_causal: bool) -> Tensor:
    grouped = query.shape[1] != keys.shape[1]
    return functional.scaled_dot_product_attention(query, keys, values, is_causal=is_causal, enable_gqa=grouped)


def _memory(point: Point, bench: Bench) -> Case:
    """Copy b = a, or triad c = a + 2 b; `n_bytes` is the size of one operand."""
    n, dtype = point.sizes["n_bytes"] // 4, torch.float32
    is_copy = point.kind == "memory_copy"
    calls: list[Call] = []
    n_moved = point.sizes["n_bytes"] * (2 if is_copy else 3)
    for _ in range(1 if n_moved >= _COLD * bench.cache_bytes else bench.copies(n_moved)):
        a, b, c = (torch.ones(n, dtype=dtype, device=bench.device) for _ in range(3))
        calls.append(_bind(b.copy_, a) if is_copy else _bind_out(torch.add, c, a, b))
    return Case(tuple(calls), {"moved_bytes": float(n_moved)})


def _bind(function: Callable[..., object], *args: Any) -> Call:
    return lambda: function(*args)


def _bind_out(function: Callable[..., object], out: Tensor, a: Tensor, b: Tensor) -> Call:
    return lambda: function(a, b, alpha=2.0, out=out)


_BUILDERS: dict[str, Callable[[Point, Bench], Case]] = {
    "moe": _moe,
    "dense": _dense,
    "part_router": _part,
    "part_permute": _part,
    "part_experts": _part,
    "part_combine": _part,
    "gemm": _gemm,
    "attention_prefill": _attention,
    "attention_decode": _attention,
    "memory_copy": _memory,
    "memory_triad": _memory,
}
