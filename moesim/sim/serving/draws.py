"""Where the tokens of each pass go: seconds of every MoE layer, drawn per pass from what the router model does.

Letters: T tokens of a pass, L MoE layers, E experts, R ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Drawn", "ExpertDraws", "LoadMoments", "token_axis"]

Floats = NDArray[np.float64]

N_NOISE_ROWS = 4096
#: Tokens from which times are asked for right above each power of two too, and the part of it by which (one over it).
JUMP_FROM = 64


@dataclass(frozen=True, slots=True)
class Drawn:
    """One draw of a pass: per layer the slowest rank's seconds, experts hit, and rank load over its mean; [L] each."""

    seconds: Floats
    hits: Floats
    imbalance: Floats


@dataclass(frozen=True, slots=True)
class LoadMoments:
    """Mean and standard deviation per layer over some draws of passes of one size."""

    mean_s: Floats
    sd_s: Floats
    hits: float
    imbalance: float


class ExpertDraws:
    """Seconds of the MoE layers of passes, by tokens and the pass's number.

    At token counts on a grid (`token_axis`) the router model is sampled a few times. A pass takes, in
    each layer, mean + sd z with z from a table of standard normals whose row is the pass's number, so that a pass costs the
    same however it is asked for. Between grid counts moments are linear in T. Assumes layers independent within a pass.

    Args:
        sample: draws one pass of T tokens.
        n_layers: L.
        seed: of the table and of the draws; each count on the grid has its own stream.
    """

    __slots__ = ("_cache", "_grid", "_moments", "_noise", "_sample", "_seed", "n_layers")

    def __init__(self, sample: Callable[[int, np.random.Generator], Drawn], n_layers: int, seed: int = 0) -> None:
        self._sample, self.n_layers, self._seed = sample, n_layers, seed
        self._grid = [int(x) for x in token_axis(1, 1 << 20)]
        self._moments: dict[int, LoadMoments] = {}
        self._cache: dict[float, tuple[Floats, Floats]] = {}
        self._noise = np.random.default_rng([seed, 1]).standard_normal((N_NOISE_ROWS, n_layers))

    def at(self, tokens: int) -> LoadMoments:
        """Moments at a count on the grid; sampled once."""
        if tokens not in self._moments:
            rng = np.random.default_rng([self._seed, 2, tokens])
            drawn = [self._sample(tokens, rng) for _ in range(3 if tokens <= 16 else 2)]
            seconds = np.stack([d.seconds for d in drawn])
            deviation = seconds - seconds.mean(axis=0)
            pooled = np.sqrt((deviation**2).sum(axis=0) / (len(drawn) - 1))
            shared = float(np.sqrt(np.mean(pooled**2)))
            self._moments[tokens] = LoadMoments(
                seconds.mean(axis=0), np.full(self.n_layers, shared), float(np.mean([d.hits for d in drawn])),
                float(np.mean([d.imbalance for d in drawn])),
            )  # fmt: skip
        return self._moments[tokens]

    def moments(self, tokens: float) -> tuple[Floats, Floats]:
        """Mean and sd per layer."""
        found = self._cache.get(tokens)
        if found is None:
            low, high, w = self._between(tokens)
            mean = low.mean_s * (1.0 - w) + high.mean_s * w
            found = self._cache[tokens] = (mean, low.sd_s * (1.0 - w) + high.sd_s * w)
        return found

    def load(self, tokens: float) -> tuple[float, float]:
        """Mean experts hit per layer, and rank load over its mean."""
        low, high, w = self._between(tokens)
        return low.hits * (1.0 - w) + high.hits * w, low.imbalance * (1.0 - w) + high.imbalance * w

    def seconds(self, tokens: float, first_pass: int, n_passes: int) -> Floats:
        """Seconds of all MoE layers in each of `n_passes` passes, [n_passes]."""
        mean, sd = self.moments(tokens)
        start = first_pass % N_NOISE_ROWS
        if start + n_passes <= N_NOISE_ROWS:
            z = self._noise[start : start + n_passes]
        else:
            z = self._noise[(first_pass + np.arange(n_passes)) % N_NOISE_ROWS]
        total: Floats = np.add.reduce(np.maximum(mean + sd * z, 0.25 * mean), axis=1)
        return total

    def _between(self, tokens: float) -> tuple[LoadMoments, LoadMoments, float]:
        i = int(np.searchsorted(self._grid, tokens, side="right")) - 1
        i = min(max(i, 0), len(self._grid) - 2)
        low, high = self._grid[i], self._grid[i + 1]
        w = (tokens - low) / (high - low)
        if w <= 0.0:
            return self.at(low), self.at(low), 0.0
        return self.at(low), self.at(high), w


def token_axis(low: int, high: int) -> Floats:
    """Token counts at which passes are priced, linear between: from `low` to `high` powers of two, their halves, and from 64 on
    the counts right above both, where tiles and measured kernels make times jump.

    >>> [int(x) for x in token_axis(1, 8)], [int(x) for x in token_axis(100, 256)]
    ([1, 2, 3, 4, 6, 8], [100, 128, 130, 192, 195, 256])
    """
    values = {float(low), float(high)}
    step = 1
    while step <= high:
        values |= {float(step), float(step * 3 // 2)}
        if step >= JUMP_FROM:
            values |= {step * (1.0 + 1.0 / JUMP_FROM), step * 1.5 * (1.0 + 1.0 / JUMP_FROM)}
        step *= 2
    return np.asarray(sorted(v for v in {float(int(v)) for v in values} if low <= v <= high))
