"""MoE layers that others wrote: blocks of Hugging Face transformers, and any module of the user."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from moesim.calibrate.measure.cases import Bench, Case
from moesim.calibrate.measure.loads import load_stats
from moesim.calibrate.measure.plan import Point
from moesim.calibrate.measure.pool import Pool
from moesim.calibrate.measure.record import LayerChoices, RoutingRecorder
from moesim.calibrate.measure.timing import Call
from moesim.errors import InputError, MissingExtraError

__all__ = ["UserLayer", "available_families", "hf_block", "hf_case", "hf_hidden_size", "load_layer", "user_case"]


@dataclass(frozen=True, slots=True)
class _Family:
    """Where a block of transformers is, and a small config of it; `mlp` is the experts' width in that config."""

    config: str
    block: str
    fields: Mapping[str, Any]

    def numbers(self) -> dict[str, float]:
        """Sizes by the names of the measurement schema."""
        f = self.fields
        width = f.get("moe_intermediate_size", f.get("intermediate_size", 0))
        experts = next(f[n] for n in ("n_routed_experts", "num_experts", "num_local_experts") if n in f)
        return {"hidden_size": float(f["hidden_size"]), "inter_size": float(width), "n_local_experts": float(experts),
                "top_k": float(f["num_experts_per_tok"])}  # fmt: skip


_FAMILIES = {
    "mixtral": _Family("MixtralConfig", "MixtralSparseMoeBlock", {
        "hidden_size": 768, "intermediate_size": 1344, "num_local_experts": 8, "num_experts_per_tok": 2}),
    "qwen3_moe": _Family("Qwen3MoeConfig", "Qwen3MoeSparseMoeBlock", {
        "hidden_size": 512, "moe_intermediate_size": 192, "num_experts": 64, "num_experts_per_tok": 8}),
    "deepseek_v3": _Family("DeepseekV3Config", "DeepseekV3MoE", {
        "hidden_size": 640, "moe_intermediate_size": 256, "n_routed_experts": 32, "num_experts_per_tok": 4,
        "n_group": 4, "topk_group": 2, "n_shared_experts": 1}),
    "olmoe": _Family("OlmoeConfig", "OlmoeSparseMoeBlock", {
        "hidden_size": 512, "intermediate_size": 256, "num_experts": 64, "num_experts_per_tok": 8}),
    "gpt_oss": _Family("GptOssConfig", "GptOssMLP", {
        "hidden_size": 576, "intermediate_size": 576, "num_local_experts": 16, "num_experts_per_tok": 4}),
}  # fmt: skip


def available_families() -> tuple[str, ...]:
    """Families whose block the installed transformers has; none if it is not installed."""
    if importlib.util.find_spec("transformers") is None:
        return ()
    return tuple(f for f in _FAMILIES if importlib.util.find_spec(f"transformers.models.{f}.modeling_{f}") is not None)


def hf_block(family: str, pool: Pool) -> nn.Module:
    """A block of transformers with a small config and random weights cut from a pool.

    Raises:
        InputError: a family that is not among `available_families`, or whose block this version keeps elsewhere.
        MissingExtraError: transformers is not installed.
    """
    if importlib.util.find_spec("transformers") is None:
        raise MissingExtraError("transformers", "calibrate")
    if family not in _FAMILIES:
        raise InputError("unknown family of blocks", field="layer", value=family, allowed=", ".join(_FAMILIES))
    known = _FAMILIES[family]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        configs = importlib.import_module(f"transformers.models.{family}.configuration_{family}")
        models = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
        block_type = getattr(models, known.block, None)
        if block_type is None:
            raise InputError(f"this transformers has no {known.block}", field="layer", value=family)
        config = getattr(configs, known.config)(num_hidden_layers=1, **known.fields)
        config._experts_implementation = "eager"
        with torch.device("meta"):
            block: nn.Module = block_type(config)
    _fill(block, pool)
    return block.eval()


def hf_hidden_size(family: str) -> int:
    """D of the small config of a family."""
    return int(_FAMILIES[family].fields["hidden_size"])


def _fill(block: nn.Module, pool: Pool) -> None:
    for module in block.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(pool.cut(*parameter.shape), requires_grad=False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            module.register_buffer(name, torch.zeros(buffer.shape, dtype=buffer.dtype, device=pool.device))


def hf_case(point: Point, bench: Bench) -> Case:
    """Calls on copies of a block of transformers, with its own routing of random tokens."""
    family = point.name
    numbers = _FAMILIES[family].numbers()
    per_layer = (
        3 * numbers["hidden_size"] * numbers["inter_size"] * numbers["n_local_experts"] * bench.pool.dtype.itemsize
    )
    pairs = point.sizes["n_tokens"] * numbers["top_k"]
    touched = per_layer * min(1.0, pairs / numbers["n_local_experts"])
    rng, hidden = bench.rng(point), int(numbers["hidden_size"])
    calls, seen = [], []
    for _ in range(bench.copies(touched)):
        block, x = hf_block(family, bench.pool), bench.random(rng, 1, point.sizes["n_tokens"], hidden)
        seen.append(_choices(block, x))
        calls.append(_bind(block, x))
    return Case(tuple(calls), {**numbers, **_mean_load([c for c in seen if c is not None])})


def _choices(module: nn.Module, x: Tensor) -> LayerChoices | None:
    """The choices of the only MoE layer in a module; None if it shows none, or several."""
    with torch.inference_mode(), RoutingRecorder(module) as recorder:
        module(x)
    try:
        layers = recorder.layers()
    except InputError:
        return None
    return layers[0] if len(layers) == 1 else None


def _mean_load(seen: list[LayerChoices]) -> dict[str, float]:
    if not seen:
        return {}
    stats = [load_stats(c.experts, c.n_experts) for c in seen]
    return {name: sum(s[name] for s in stats) / len(stats) for name in stats[0]}


@dataclass(frozen=True, slots=True)
class UserLayer:
    """A module of the user, its hidden size and, where known, the expert width F."""

    name: str
    module: nn.Module
    hidden_size: int
    inter_size: int = 0
    takes_batch: bool = False


def load_layer(spec: str, device: torch.device) -> UserLayer:
    """A layer by ``package.module:factory``.

    The factory takes no arguments and returns an `nn.Module` that maps [T, D] (or [1, T, D]) to the same shape. D is read from
    `hidden_size`, `hidden_dim` or `d_model` of the module or its `config`, F from `inter_size`, `moe_intermediate_size` or
    `intermediate_size`.

    Raises:
        InputError: the name cannot be imported, the factory fails, or its module does not take hidden states.
    """
    module_name, colon, factory_name = spec.partition(":")
    if not colon or not module_name or not factory_name:
        raise InputError("must be package.module:factory", field="layer", value=spec)
    try:
        factory = getattr(importlib.import_module(module_name), factory_name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"cannot be imported: {error}", field="layer", value=spec) from None
    try:
        module = factory()
    except Exception as error:
        raise InputError(f"the factory failed: {type(error).__name__}: {error}", field="layer", value=spec) from error
    if not isinstance(module, nn.Module):
        raise InputError("the factory must return a torch.nn.Module", field="layer", value=type(module).__name__)
    hidden = _attribute(module, ("hidden_size", "hidden_dim", "d_model"))
    if not hidden:
        raise InputError("cannot tell the hidden size", field="layer", value=spec,
                         hint="give the module a hidden_size attribute")  # fmt: skip
    module = module.to(device).eval()
    inter = _attribute(module, ("inter_size", "moe_intermediate_size", "intermediate_size"))
    return UserLayer(spec, module, hidden, inter, _needs_batch(module, hidden, device, spec))


def user_case(layer: UserLayer, point: Point, bench: Bench) -> Case:
    """Calls on copies of the user's module, with its own routing of random tokens."""
    n_weights = sum(p.numel() * p.element_size() for p in layer.module.parameters())
    rng, shape = bench.rng(point), (point.sizes["n_tokens"], layer.hidden_size)
    calls, seen = [], []
    for i in range(min(4, bench.copies(n_weights))):
        module = layer.module if i == 0 else copy.deepcopy(layer.module)
        x = bench.random(rng, *((1, *shape) if layer.takes_batch else shape)).to(_dtype_of(layer.module))
        seen.append(_choices(module, x))
        calls.append(_bind(module, x))
    known = [c for c in seen if c is not None]
    stats = _mean_load(known)
    if known:
        stats |= {"n_local_experts": float(known[0].n_experts), "top_k": float(known[0].experts.shape[1])}
    stats |= {"hidden_size": float(layer.hidden_size), "inter_size": float(layer.inter_size)}
    return Case(tuple(calls), stats)


def _needs_batch(module: nn.Module, hidden: int, device: torch.device, spec: str) -> bool:
    problems = []
    for shape in ((1, 3, hidden), (3, hidden)):
        x = torch.zeros(shape, device=device, dtype=_dtype_of(module))
        try:
            with torch.inference_mode():
                module(x)
        except Exception as error:
            problems.append(f"{shape}: {type(error).__name__}: {error}")
        else:
            return len(shape) == 3
    raise InputError(f"the module takes neither [1, T, D] nor [T, D]: {problems[0]}", field="layer", value=spec)


def _dtype_of(module: nn.Module) -> torch.dtype:
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)


def _attribute(module: nn.Module, names: tuple[str, ...]) -> int:
    for owner in (module, getattr(module, "config", None)):
        for name in names:
            value = getattr(owner, name, None)
            if isinstance(value, int) and value > 0:
                return value
    return 0


def _bind(module: Callable[..., object], x: Tensor) -> Call:
    return lambda: module(x)
