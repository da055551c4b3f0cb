"""Recording which experts a real model chooses, layer by layer, with forward hooks.

A layer's choices are seen where they pass between modules: as a pair of tensors of one shape [T, K], whole numbers (experts) and
real ones (weights), in what a router returns or what an experts module is given. Blocks that choose inside their own `forward`
and only have a linear gate (transformers before 5) are read at the gate: the K largest logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moesim.errors import InputError
from moesim.routing.trace import write_trace

__all__ = ["LayerChoices", "RoutingRecorder"]

_N_EXPERTS = ("n_routed_experts", "num_local_experts", "num_experts", "n_experts")
_TOP_K = ("top_k", "num_experts_per_tok", "topk", "n_activated_experts")


@dataclass(frozen=True, slots=True)
class LayerChoices:
    """Choices of one MoE layer: experts and weights [T, K], of E experts."""

    name: str
    n_experts: int
    experts: NDArray[np.int64]
    weights: NDArray[np.float32]


class RoutingRecorder:
    """Records every MoE layer of a model while it is used as a context.

    Example: ``with RoutingRecorder(model) as recorder: model(tokens)`` and then ``recorder.write(path, "my model")``.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._seen: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._n_experts: dict[str, int] = {}
        self._source: dict[str, int] = {}
        self._hooks: list[Any] = []

    def __enter__(self) -> RoutingRecorder:
        modules = dict(self.model.named_modules())
        for name, module in modules.items():
            parent = modules.get(name.rpartition(".")[0]) if name else None
            self._hooks.append(module.register_forward_hook(self._hook(name, module, parent), with_kwargs=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def clear(self) -> None:
        """Forget what was recorded."""
        self._seen.clear()
        self._source.clear()

    def layers(self) -> tuple[LayerChoices, ...]:
        """What was recorded, in the order of first use.

        Raises:
            InputError: nothing was recorded, or the number of experts of a layer is not known.
        """
        if not self._seen:
            raise InputError(
                "no expert choices were seen", field="layer",
                hint="a router must return, or an experts module be given, experts [T, K] and weights [T, K]",
            )  # fmt: skip
        return tuple(self._layer(name) for name in self._seen)

    def write(self, path: Path, model_name: str, domains: Sequence[str] | None = None) -> int:
        """Write all layers as a routing trace; returns the number of tokens.

        Raises:
            InputError: nothing recorded, or layers of different sizes.
            TraceError: the choices do not make a valid trace.
        """
        layers = self.layers()
        shapes = {(layer.experts.shape, layer.n_experts) for layer in layers}
        if len(shapes) > 1:
            raise InputError(
                "layers differ in tokens, top-k or experts", field="layer", value=sorted(map(str, shapes))[:3]
            )
        experts = np.stack([layer.experts for layer in layers], axis=1)
        weights = np.stack([layer.weights for layer in layers], axis=1)
        write_trace(path, experts, layers[0].n_experts, model_name, weights, domains)
        return len(experts)

    def _layer(self, name: str) -> LayerChoices:
        pairs, n_experts = self._seen[name], self._n_experts.get(name, 0)
        experts = torch.cat([e for e, _ in pairs]).numpy().astype(np.int64)
        weights = torch.cat([w for _, w in pairs]).numpy().astype(np.float32)
        if n_experts <= int(experts.max()):
            raise InputError("cannot tell how many experts this layer has", field="layer", value=name,
                             hint="give the router a num_experts attribute")  # fmt: skip
        order = np.argsort(-weights, axis=1, kind="stable")
        return LayerChoices(
            name, n_experts, np.take_along_axis(experts, order, 1), np.take_along_axis(weights, order, 1)
        )

    def _hook(self, name: str, module: nn.Module, parent: nn.Module | None) -> Callable[..., None]:
        block = name.rpartition(".")[0] if name else ""

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
            outputs = output if isinstance(output, tuple | list) else (output,)
            found = _pair((*args, *kwargs.values())) or _pair(outputs) or _from_gate(module, parent, outputs)
            if found is None:
                return
            # Router and experts of one block show the same choices: keep those of whichever spoke first.
            if self._source.setdefault(block, id(module)) != id(module):
                self._n_experts.setdefault(block, _number(_N_EXPERTS, module, parent))
                return
            n_experts = _number(_N_EXPERTS, module, parent)
            if n_experts:
                self._n_experts[block] = n_experts
            experts, weights = (t.detach().to("cpu") for t in found)
            self._seen.setdefault(block, []).append((experts, weights.float()))

        return hook


def _pair(values: Iterable[Any]) -> tuple[Tensor, Tensor] | None:
    """Experts and weights among tensors: two of one shape [T, K], one of whole numbers."""
    flat = [v for v in values if isinstance(v, Tensor) and v.dim() == 2]
    for experts in flat:
        if experts.dtype in (torch.int64, torch.int32):
            for weights in flat:
                if weights.is_floating_point() and weights.shape == experts.shape:
                    return experts, weights
    return None


def _from_gate(module: nn.Module, parent: nn.Module | None, outputs: Iterable[Any]) -> tuple[Tensor, Tensor] | None:
    if parent is None or not isinstance(module, nn.Linear):
        return None
    n_experts, top_k = _number(_N_EXPERTS, parent), _number(_TOP_K, parent)
    if not n_experts or not top_k or module.out_features != n_experts:
        return None
    logits = next((o for o in outputs if isinstance(o, Tensor)), None)
    if logits is None:
        return None
    best = torch.softmax(logits.reshape(-1, n_experts).float(), dim=-1).topk(top_k, dim=-1)
    return best.indices, best.values / best.values.sum(dim=-1, keepdim=True)


def _number(names: Iterable[str], *modules: nn.Module | None) -> int:
    for module in modules:
        for name in names:
            value = getattr(module, name, None)
            if isinstance(value, int) and value > 0:
                return value
    return 0
