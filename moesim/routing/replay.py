"""Replay of recorded choices behind the interface of a router model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError, TraceError
from moesim.routing.router import RouterModel
from moesim.specs.base import Origin

__all__ = ["TraceRouter"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TraceRouter(RouterModel):
    """A router that repeats recorded tokens: a run of consecutive ones, from a random start, around the end.

    Consecutive tokens keep the order of time, and a token keeps its path through all layers.

    Attributes:
        experts: [n_recorded, L, K].
    """

    experts: NDArray[np.int16]

    @classmethod
    def of(cls, experts: NDArray[np.int16], n_experts: int, source: str) -> TraceRouter:
        """The router that replays `experts`, [n_recorded, L, K].

        Raises:
            TraceError: no tokens.
        """
        n_tokens, n_layers, top_k = experts.shape
        if not n_tokens:
            raise TraceError("no tokens to replay", value=source)
        share = _counts(experts, n_experts) / (n_tokens * top_k)
        return cls(
            n_layers=n_layers, n_experts=n_experts, top_k=top_k, weights=share[None], domain_shares=np.ones(1),
            origin=Origin.MEASURED, source=source, experts=experts,
        )  # fmt: skip

    def domain_inclusion(self) -> Floats:
        """Share of recorded tokens that chose each expert: [1, L, E]."""
        return self.weights * self.top_k

    def sample_tokens(
        self, n_tokens: int, rng: np.random.Generator, layers: Sequence[int] | None = None
    ) -> NDArray[np.int16]:
        """Recorded choices of consecutive tokens from a random start: [n_tokens, layers, K]."""
        picked = self.experts[self._run(n_tokens, rng)]
        if layers is None:
            return picked
        if any(not 0 <= layer < self.n_layers for layer in layers):
            raise InputError("no such layer", field="layers", value=list(layers), allowed=f"0..{self.n_layers - 1}")
        return picked[:, list(layers)]

    def sample_rank_counts(
        self, tokens_per_rank: Sequence[int] | NDArray[Any], rng: np.random.Generator, dtype: type[Any] = np.int64
    ) -> NDArray[Any]:
        """Counts of consecutive recorded tokens, dealt to ranks in order: [L, R, E]."""
        per_rank = np.asarray(tokens_per_rank, dtype=np.int64)
        rows = self._run(int(per_rank.sum()), rng)
        parts = np.split(rows, np.cumsum(per_rank)[:-1])
        return np.stack([_counts(self.experts[part], self.n_experts).astype(dtype) for part in parts], axis=1)

    def _run(self, n_tokens: int, rng: np.random.Generator) -> NDArray[np.intp]:
        if n_tokens < 0:
            raise InputError("must not be negative", field="n_tokens", value=n_tokens)
        n_recorded = len(self.experts)
        return (int(rng.integers(n_recorded)) + np.arange(n_tokens)) % n_recorded


def _counts(experts: NDArray[np.int16], n_experts: int) -> Ints:
    n_layers = experts.shape[1]
    flat = experts.astype(np.int64) + np.arange(n_layers)[None, :, None] * n_experts
    return np.bincount(flat.ravel(), minlength=n_layers * n_experts).reshape(n_layers, n_experts)
