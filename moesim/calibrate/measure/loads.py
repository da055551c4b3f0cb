"""Which experts the tokens of a measured layer choose: seeded, with a wanted skew. No torch here."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError

__all__ = ["choose_experts", "load_stats"]

_ZIPF = 1.0


def choose_experts(load: str, n_tokens: int, n_experts: int, top_k: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Experts [T, K], distinct per token.

    `balanced` is round-robin; `uniform` draws K of E alike; `zipf` draws without replacement with p ~ 1 / rank (Gumbel top-k).

    Raises:
        InputError: unknown load.
    """
    if load == "balanced":
        first = np.arange(n_tokens)[:, None] * top_k
        return np.asarray((first + np.arange(top_k)[None, :]) % n_experts, dtype=np.int64)
    if load not in ("uniform", "zipf"):
        raise InputError("unknown load", field="load", value=load, allowed="balanced, uniform, zipf")
    scores = rng.gumbel(size=(n_tokens, n_experts))
    if load == "zipf":
        scores -= _ZIPF * np.log(np.arange(1, n_experts + 1))
    return np.asarray(np.argpartition(-scores, top_k - 1, axis=1)[:, :top_k], dtype=np.int64)


def load_stats(experts: NDArray[np.int64], n_experts: int) -> dict[str, float]:
    """Load statistics by the names of the measurement schema.

    >>> load_stats(np.array([[0, 1], [0, 3]]), 4)
    {'n_assignments': 4.0, 'n_experts_hit': 3.0, 'max_expert_tokens': 2.0}
    """
    counts = np.bincount(experts.ravel(), minlength=n_experts)
    return {
        "n_assignments": float(counts.sum()),
        "n_experts_hit": float((counts > 0).sum()),
        "max_expert_tokens": float(counts.max()),
    }
