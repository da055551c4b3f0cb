"""The reference Mixture-of-Experts layer, and the dense layer it is compared with: plain PyTorch, one step per method.

Shapes: T tokens, D hidden, F expert width, E experts, K top-k, A = T K token-expert pairs. Experts are gated,
y = down(silu(gate x) * up x), as in Mixtral and all later models here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from moesim.calibrate.measure.pool import Pool
from moesim.calibrate.measure.shapes import MoeSizes
from moesim.errors import InputError

__all__ = ["Combine", "DenseFfn", "Experts", "Permuted", "ReferenceMoe", "Router", "has_grouped_mm", "permute"]

Method = Literal["looped", "padded", "grouped"]


def has_grouped_mm() -> bool:
    """True if this PyTorch has a grouped matrix product."""
    return hasattr(functional, "grouped_mm") or hasattr(torch, "_grouped_mm")


class Router(nn.Module):
    """Scores E experts per token and takes the best K; weights are the softmax over all, renormalised over the chosen."""

    def __init__(self, weight: Tensor, top_k: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.top_k = top_k
        self.num_experts = weight.shape[0]

    def forward(self, x: Tensor, forced_logits: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Experts [T, K] and weights [T, K]; `forced_logits` [T, E] are added, to make a wanted load."""
        logits = functional.linear(x, self.weight).float()
        if forced_logits is not None:
            logits = logits + forced_logits
        weights, experts = torch.topk(torch.softmax(logits, dim=-1), self.top_k, dim=-1)
        return experts, (weights / weights.sum(dim=-1, keepdim=True)).to(x.dtype)


@dataclass(frozen=True, slots=True)
class Permuted:
    """Rows of all pairs in order of expert [A, D], the pair each came from [A], and rows per expert [E]."""

    rows: Tensor
    order: Tensor
    counts: Tensor


def permute(x: Tensor, experts: Tensor, n_experts: int) -> Permuted:
    """Copy each token once per chosen expert, sorted by expert."""
    flat = experts.reshape(-1)
    order = torch.argsort(flat, stable=True)
    rows = x[torch.div(order, experts.shape[1], rounding_mode="floor")]
    return Permuted(rows, order, torch.bincount(flat, minlength=n_experts))


class Experts(nn.Module):
    """E gated feed-forward networks; `gate_up` is [E, 2F, D], `down` [E, D, F]."""

    def __init__(self, gate_up: Tensor, down: Tensor) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(gate_up, requires_grad=False)
        self.down = nn.Parameter(down, requires_grad=False)
        self.num_experts = gate_up.shape[0]

    def forward(self, p: Permuted, method: Method = "looped") -> Tensor:
        """Outputs [A, D] in the order of the rows.

        Raises:
            InputError: unknown method, or a grouped product that this PyTorch lacks.
        """
        if method == "looped":
            return self._looped(p)
        if method == "padded":
            return self._padded(p)
        if method == "grouped":
            return self._grouped(p)
        raise InputError("unknown method", field="method", value=method, allowed="looped, padded, grouped")

    def _looped(self, p: Permuted) -> Tensor:
        """One expert that got rows after the other."""
        out = torch.empty_like(p.rows)
        start = 0
        for expert, count in enumerate(p.counts.tolist()):
            if count:
                rows = p.rows[start : start + count]
                inner = _gated(functional.linear(rows, self.gate_up[expert]))
                out[start : start + count] = functional.linear(inner, self.down[expert])
                start += count
        return out

    def _padded(self, p: Permuted) -> Tensor:
        """All experts in one batched product, each padded to the rows of the hottest."""
        n_experts, most = self.num_experts, int(p.counts.max())
        starts = torch.cumsum(p.counts, 0) - p.counts
        expert = torch.repeat_interleave(torch.arange(n_experts, device=p.rows.device), p.counts)
        slot = torch.arange(len(p.rows), device=p.rows.device) - starts[expert]
        batch = p.rows.new_zeros((n_experts, most, p.rows.shape[1]))
        batch[expert, slot] = p.rows
        inner = _gated(torch.bmm(batch, self.gate_up.transpose(1, 2)))
        return torch.bmm(inner, self.down.transpose(1, 2))[expert, slot]

    def _grouped(self, p: Permuted) -> Tensor:
        """PyTorch's grouped product, which knows where each expert's rows end."""
        ends = torch.cumsum(p.counts, 0).to(torch.int32)
        inner = _gated(_grouped_mm(p.rows, self.gate_up.transpose(1, 2), ends))
        return _grouped_mm(inner, self.down.transpose(1, 2), ends)


def _gated(both: Tensor) -> Tensor:
    gate, up = both.chunk(2, dim=-1)
    return functional.silu(gate) * up


def _grouped_mm(rows: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    if hasattr(functional, "grouped_mm"):
        out: Tensor = functional.grouped_mm(rows, weights, offs=ends)
        return out
    if hasattr(torch, "_grouped_mm"):
        old: Tensor = torch._grouped_mm(rows, weights, ends)
        return old
    raise InputError("this PyTorch has no grouped matrix product", value=torch.__version__, hint="use 2.8 or later")


class Combine(nn.Module):
    """Weighs the outputs of a token's experts and adds them up."""

    def forward(self, out: Tensor, p: Permuted, weights: Tensor) -> Tensor:
        """Sum over each token's pairs [T, D]."""
        n_tokens, top_k = weights.shape
        weighed = out * weights.reshape(-1)[p.order].unsqueeze(1)
        result = out.new_zeros((n_tokens, out.shape[1]))
        return result.index_add_(0, torch.div(p.order, top_k, rounding_mode="floor"), weighed)


class DenseFfn(nn.Module):
    """A dense gated feed-forward layer; `gate_up` is [2F, D], `down` [D, F]."""

    def __init__(self, gate_up: Tensor, down: Tensor) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(gate_up, requires_grad=False)
        self.down = nn.Parameter(down, requires_grad=False)

    @classmethod
    def from_pool(cls, pool: Pool, hidden_size: int, inter_size: int) -> DenseFfn:
        """A layer whose weights are cut from a pool."""
        return cls(pool.cut(2 * inter_size, hidden_size), pool.cut(hidden_size, inter_size))

    def forward(self, x: Tensor) -> Tensor:
        """[T, D] to [T, D]."""
        return functional.linear(_gated(functional.linear(x, self.gate_up)), self.down)


class ReferenceMoe(nn.Module):
    """Router, permute, experts, combine, and a shared expert if there is one."""

    def __init__(
        self, router: Router, experts: Experts, shared: DenseFfn | None = None, method: Method = "looped"
    ) -> None:
        super().__init__()
        self.router = router
        self.experts = experts
        self.combine = Combine()
        self.shared = shared
        self.method: Method = method

    @classmethod
    def from_pool(cls, pool: Pool, sizes: MoeSizes, method: Method = "looped") -> ReferenceMoe:
        """A layer whose weights are cut from a pool."""
        router = Router(pool.cut(sizes.n_experts, sizes.hidden_size), sizes.top_k)
        gate_up = pool.cut(sizes.n_experts, 2 * sizes.inter_size, sizes.hidden_size)
        experts = Experts(gate_up, pool.cut(sizes.n_experts, sizes.hidden_size, sizes.inter_size))
        width = sizes.n_shared_experts * sizes.inter_size
        shared = DenseFfn.from_pool(pool, sizes.hidden_size, width) if width else None
        return cls(router, experts, shared, method)

    def forward(self, x: Tensor, forced_logits: Tensor | None = None) -> Tensor:
        """[T, D] to [T, D]."""
        chosen, weights = self.router(x, forced_logits)
        permuted = permute(x, chosen, self.experts.num_experts)
        out: Tensor = self.combine(self.experts(permuted, self.method), permuted, weights)
        return out if self.shared is None else out + self.shared(x)
