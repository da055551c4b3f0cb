"""A prompt's many chunks: timed where they differ, the rest in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from moesim.lowering import Pass
from moesim.study.instance import PassTime

__all__ = ["MOST_TIMED", "time_of_chunks"]

#: Chunks of one prompt that are timed one by one.
MOST_TIMED = 33


def time_of_chunks(
    passes: Sequence[Pass], time_one: Callable[[Pass, bool], PassTime], most: int = MOST_TIMED
) -> tuple[float, PassTime]:
    """Seconds of all chunks of a prompt, and the last chunk.

    All chunks but the last are of one size and differ by the tokens cached before them, of which their time is nearly a linear
    function: beyond `most` chunks, evenly spaced ones are timed and those between interpolated.

    Args:
        passes: chunks in order.
        time_one: times a chunk; the flag says that it is the first.
        most: how many are timed, at least 4.
    """
    n = len(passes)
    if n <= most:
        timed = [time_one(step, i == 0) for i, step in enumerate(passes)]
        return sum(t.time_s for t in timed), timed[-1]
    # the first has what beginning costs in it, and the last may be shorter: neither stands for others
    inner = np.unique(np.linspace(1, n - 2, most - 2).round().astype(int))
    first, last = time_one(passes[0], True), time_one(passes[-1], False)
    times = [time_one(passes[i], False).time_s for i in inner.tolist()]
    between = float(np.interp(np.arange(1, n - 1), inner, times).sum())
    return first.time_s + between + last.time_s, last
