"""What a profile measures: points, as values. No torch here.

Sizes are those of one device. Shapes for CPUs are published models at about a quarter of their width, so that a layer of each
fits in memory and minutes; GPUs get the published widths.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from moesim.calibrate.measure.shapes import CPU_SHAPES, GPU_SHAPES, MoeSizes

__all__ = [
    "COLLECTIVES",
    "ELEMENT_BYTES",
    "HF_KERNEL",
    "Load",
    "Mode",
    "Point",
    "Scale",
    "collective_points",
    "plan_points",
    "scale_for",
    "user_points",
]

T = TypeVar("T")
Mode = Literal["quick", "full"]
Load = Literal["", "balanced", "uniform", "zipf", "natural"]

HF_KERNEL = "transformers"
COLLECTIVES = ("all_reduce", "all_gather", "all_to_all")
#: Bytes per element of the formats that a profile runs in.
ELEMENT_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}


@dataclass(frozen=True, slots=True)
class Point:
    """One thing to time.

    `kind` is an operator kind of the measurement schema, or a part or bandwidth test that only the profile knows; `kernel` says
    which implementation; `name` the model shape it belongs to; `sizes` the numbers that make the shape.
    """

    kind: str
    kernel: str
    dtype: str
    name: str = ""
    load: Load = ""
    sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Identity within a profile, equal in every run.

        >>> Point("gemm", "linear", "bf16", sizes={"m": 1, "k": 3, "n": 2}).key
        'gemm|linear|bf16|||k=3,m=1,n=2'
        """
        sizes = ",".join(f"{name}={value}" for name, value in sorted(self.sizes.items()))
        return "|".join((self.kind, self.kernel, self.dtype, self.name, self.load, sizes))


@dataclass(frozen=True, slots=True)
class Scale:
    """How large the points of a device and mode are."""

    shapes: tuple[MoeSizes, ...]
    tokens: tuple[int, ...]
    skew_tokens: tuple[int, ...]
    grouped_tokens: tuple[int, ...]
    part_tokens: tuple[int, ...]
    gemm_sides: tuple[tuple[int, int], ...]
    attention_heads: tuple[tuple[int, int, int], ...]
    prefill: tuple[tuple[int, int], ...]
    decode: tuple[tuple[int, int], ...]
    memory_bytes: tuple[int, ...]
    message_bytes: tuple[int, ...]
    max_twin_flops: float
    hf_tokens: tuple[int, ...]


_KIB, _MIB = 1 << 10, 1 << 20

_CPU = Scale(
    shapes=CPU_SHAPES,
    tokens=(1, 4, 16, 64, 256, 512),
    skew_tokens=(32, 384),
    grouped_tokens=(1, 4, 32, 128, 384),
    part_tokens=(4, 32, 256),
    gemm_sides=((256, 512), (512, 512), (512, 1024), (1024, 512), (1024, 1024), (768, 2048), (2048, 1024), (3072, 1024),
                (1024, 3072), (2048, 2048), (4096, 1024)),
    attention_heads=((16, 4, 64), (8, 8, 128), (32, 8, 64), (16, 2, 128), (12, 12, 64), (32, 4, 128)),
    prefill=((1, 32), (1, 64), (4, 64), (1, 128), (1, 192), (2, 256), (1, 384), (1, 512), (1, 768), (1, 1024)),
    decode=((1, 512), (1, 1024), (4, 256), (8, 256), (8, 1024), (16, 128), (32, 512), (1, 4096)),
    memory_bytes=(1 * _MIB, 8 * _MIB, 64 * _MIB, 192 * _MIB),
    message_bytes=(1 * _KIB, 4 * _KIB, 16 * _KIB, 64 * _KIB, 256 * _KIB, 1 * _MIB, 4 * _MIB, 8 * _MIB),
    max_twin_flops=6e9,
    hf_tokens=(1, 4, 16, 64, 256),
)  # fmt: skip

_GPU = Scale(
    shapes=GPU_SHAPES,
    tokens=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192),
    skew_tokens=(16, 128, 1024, 4096),
    grouped_tokens=(1, 4, 16, 64, 128, 256, 1024, 4096, 8192),
    part_tokens=(4, 64, 1024, 4096),
    gemm_sides=((1024, 4096), (2048, 2048), (2048, 4096), (4096, 4096), (6144, 4096), (4096, 14336), (14336, 4096),
                (7168, 2048), (7168, 7168), (8192, 8192), (28672, 4096)),
    attention_heads=((32, 8, 128), (32, 4, 128), (16, 16, 128), (64, 8, 128), (64, 8, 64), (16, 2, 128)),
    prefill=((1, 128), (4, 512), (1, 1024), (4, 1024), (1, 4096), (2, 4096), (1, 8192)),
    decode=((1, 1024), (8, 1024), (32, 1024), (64, 4096), (128, 2048), (8, 16384), (1, 32768)),
    memory_bytes=(1 * _MIB, 16 * _MIB, 256 * _MIB, 1024 * _MIB),
    message_bytes=(1 * _KIB, 4 * _KIB, 16 * _KIB, 64 * _KIB, 256 * _KIB, 1 * _MIB, 4 * _MIB, 16 * _MIB, 64 * _MIB, 256 * _MIB),
    max_twin_flops=2e14,
    hf_tokens=(1, 16, 128, 1024),
)  # fmt: skip


def scale_for(device_kind: str, mode: Mode) -> Scale:
    """Sizes for a device kind (cpu or cuda); `quick` keeps every second shape and the ends and middle of each range."""
    scale = _GPU if device_kind == "cuda" else _CPU
    if mode == "full":
        return scale
    return Scale(
        shapes=scale.shapes[::2],
        tokens=_thin(scale.tokens),
        skew_tokens=scale.skew_tokens[:1],
        grouped_tokens=_thin(scale.grouped_tokens),
        part_tokens=_thin(scale.part_tokens),
        gemm_sides=scale.gemm_sides[::2],
        attention_heads=scale.attention_heads[::2],
        prefill=_thin(scale.prefill),
        decode=_thin(scale.decode),
        memory_bytes=scale.memory_bytes[-2:],
        message_bytes=scale.message_bytes[::2],
        max_twin_flops=scale.max_twin_flops / 2,
        hf_tokens=scale.hf_tokens[::2],
    )


def _thin(values: tuple[T, ...]) -> tuple[T, ...]:
    return tuple(v for i, v in enumerate(values) if i % 2 == 0 or i == len(values) - 1)


def plan_points(scale: Scale, dtype: str, max_layer_bytes: float, hf_families: Iterable[str] = ()) -> tuple[Point, ...]:
    """Every point of a profile, in the order of the issue: whole layers, twins, parts, products, attention, memory.

    Args:
        scale: sizes.
        dtype: format of weights and activations.
        max_layer_bytes: shapes whose layer is larger than this are left out.
        hf_families: blocks of transformers to add.
    """
    element = ELEMENT_BYTES[dtype]
    shapes = [s for s in scale.shapes if s.n_weights * element <= max_layer_bytes]
    points: list[Point] = []
    for sizes in shapes:
        points += _layers(sizes, scale, dtype)
        points += _twins(sizes, scale, dtype)
    for sizes in shapes[::4]:
        points += _parts(sizes, scale, dtype)
    for family in hf_families:
        points += [Point("moe", HF_KERNEL, dtype, family, "natural", {"n_tokens": t}) for t in scale.hf_tokens]
    points += _products(scale, dtype) + _attention(scale, dtype)
    for n_bytes in scale.memory_bytes:
        points += [Point(kind, "torch", "fp32", sizes={"n_bytes": n_bytes}) for kind in ("memory_copy", "memory_triad")]
    return tuple(points)


def collective_points(scale: Scale, dtype: str, backend: str, world_sizes: Iterable[int]) -> tuple[Point, ...]:
    """Collectives over every number of processes; `message_bytes` is one rank's full buffer."""
    return tuple(
        Point(kind, backend, dtype, sizes={"n_ranks": n, "message_bytes": size})
        for n in world_sizes
        for kind in COLLECTIVES
        for size in scale.message_bytes
    )


def user_points(scale: Scale, dtype: str, name: str) -> tuple[Point, ...]:
    """A layer of the user over the token counts of the scale."""
    return tuple(Point("moe", "user", dtype, name, "natural", {"n_tokens": t}) for t in scale.tokens)


def _layers(sizes: MoeSizes, scale: Scale, dtype: str) -> list[Point]:
    def layer(kernel: str, load: Load, n_tokens: int) -> Point:
        return Point("moe", kernel, dtype, sizes.name, load, {"n_tokens": n_tokens, **sizes.numbers})

    points = [layer("looped", "uniform", t) for t in scale.tokens]
    points += [layer("looped", "zipf", t) for t in scale.skew_tokens]
    points += [layer("looped", "balanced", t) for t in scale.skew_tokens[:1]]
    points += [layer("grouped", "uniform", t) for t in scale.grouped_tokens]
    points += [layer("padded", "uniform", t) for t in scale.grouped_tokens[:3] if sizes.n_experts <= 32]
    return points


def _twins(sizes: MoeSizes, scale: Scale, dtype: str) -> list[Point]:
    """Dense layers with the active, and with all, parameters of the experts."""
    points = []
    for twin, width in (("active", sizes.active_width), ("total", sizes.total_width)):
        for n_tokens in scale.tokens:
            if 6.0 * n_tokens * sizes.hidden_size * width <= scale.max_twin_flops:
                numbers = {"n_tokens": n_tokens, "hidden_size": sizes.hidden_size, "inter_size": width}
                points.append(Point("moe", "dense", dtype, f"{sizes.name}:{twin}", "", numbers))
    return points


def _parts(sizes: MoeSizes, scale: Scale, dtype: str) -> list[Point]:
    """Router, permute, expert products and combine of one layer, apart."""
    points = []
    for n_tokens in scale.part_tokens:
        numbers = {"n_tokens": n_tokens, **sizes.numbers}
        points += [
            Point(f"part_{p}", "torch", dtype, sizes.name, "uniform", numbers) for p in ("router", "permute", "combine")
        ]
        for kernel in ("experts_looped", "experts_grouped"):
            loads: tuple[Load, ...] = ("balanced", "uniform", "zipf")
            points += [Point("part_experts", kernel, dtype, sizes.name, load, numbers) for load in loads]
    return points


def _products(scale: Scale, dtype: str) -> list[Point]:
    rows = tuple(sorted({*scale.tokens, *scale.skew_tokens}))
    return [
        Point("gemm", "linear", dtype, f"{n}x{k}", sizes={"m": m, "n": n, "k": k})
        for n, k in scale.gemm_sides
        for m in rows
    ]


def _attention(scale: Scale, dtype: str) -> list[Point]:
    points = []
    for heads, kv_heads, width in scale.attention_heads:
        name = f"{heads}-{kv_heads}-{width}"
        numbers = {"n_heads": heads, "n_kv_heads": kv_heads, "qk_head_dim": width, "v_head_dim": width}
        for batch, length in scale.prefill:
            shape = {"batch": batch, "q_len": length, "kv_len": length, **numbers}
            points.append(Point("attention_prefill", "sdpa", dtype, name, sizes=shape))
        for batch, length in scale.decode:
            shape = {"batch": batch, "q_len": 1, "kv_len": length, **numbers}
            points.append(Point("attention_decode", "sdpa", dtype, name, sizes=shape))
    return points
