"""A pass as two micro-batches: how sequences or tokens are split, and the counts of each half."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.lowering import Pass
from moesim.lowering.route import Counts
from moesim.ops import Phase

__all__ = ["HalvedCounts", "halved", "split_pass"]


class HalvedCounts(Mapping[tuple[int, int], NDArray[Any]]):
    """Counts of a pass that were drawn as two halves: a mapping of their sums, which are as large and made when asked for."""

    __slots__ = ("halves",)

    def __init__(self, halves: tuple[Counts, Counts]) -> None:
        self.halves = halves

    def __getitem__(self, key: tuple[int, int]) -> NDArray[Any]:
        total: NDArray[Any] = self.halves[0][key] + self.halves[1][key]
        return total

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self.halves[0])

    def __len__(self) -> int:
        return len(self.halves[0])


def split_pass(step: Pass, dp_size: int) -> tuple[Pass, Pass] | None:
    """Halves of a pass: half of each attention-DP rank's sequences, or half of a prefill's tokens where a rank has one.

    None where nothing can be split: a single token per rank, grids of points.
    """
    if not isinstance(step.batch, float | int) or not isinstance(step.new_tokens, float | int):
        return None
    if step.group_batch is not None:
        first = tuple(n - n // 2 for n in step.group_batch)
        second = tuple(n // 2 for n in step.group_batch)
        if sum(second) == 0:
            return None
        return tuple(replace(step, batch=float(sum(g)), group_batch=g) for g in (first, second))  # type: ignore[return-value]
    per_rank = step.batch / dp_size
    if per_rank >= 2:
        half = float(dp_size * int((per_rank + 1) // 2))
        return replace(step, batch=half), replace(step, batch=step.batch - half)
    if step.phase is Phase.PREFILL and step.new_tokens >= 2:
        half = float((step.new_tokens + 1) // 2)
        rest = replace(step, new_tokens=step.new_tokens - half, cached_tokens=step.cached_tokens + half)
        return replace(step, new_tokens=half), rest
    return None


def halved(counts: Counts | None, halves: tuple[Pass, Pass]) -> tuple[Counts | None, Counts | None]:
    """Counts of a whole pass shared out in proportion, so that nothing is lost; a draw as halves has more chance in it."""
    if counts is None:
        return None, None
    share = float(halves[0].n_tokens) / max(float(halves[0].n_tokens) + float(halves[1].n_tokens), 1e-9)
    first = {key: _share(value, share) for key, value in counts.items()}
    return first, {key: value - first[key] for key, value in counts.items()}


def _share(counts: NDArray[Any], share: float) -> NDArray[np.int64]:
    """A share of each count such that running sums over experts stay whole."""
    total = np.cumsum(counts, axis=-1)
    return np.asarray(np.diff(np.floor(total * share + 0.5).astype(np.int64), axis=-1, prepend=0), dtype=np.int64)
