"""What else was searched: of every split a few deployments, by the search's own closed forms and not costed pass by pass."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.cost import usd_per_million_tokens
from moesim.specs.parallel import ParallelSpec
from moesim.study.plan.options import NONE, front
from moesim.study.plan.results import Candidate
from moesim.study.plan.search import Found

__all__ = ["candidates"]

#: Of each decoding split, in place and in pools, and in all.
MOST_OF_A_SPLIT, MOST = 5, 300


def candidates(found: Found) -> list[Candidate]:
    """Of every split that decodes some deployments that no other of that split beats, from the quickest to the largest batch."""
    o = found.options
    kinds = np.stack([o.split, (o.prefill_split == NONE).astype(np.int64)])
    chosen: list[int] = []
    for kind in np.unique(kinds, axis=1).T:
        at = np.flatnonzero((kinds == kind[:, None]).all(axis=0))
        at = at[front(1.0 / o.tpot_s[at], o.per_device[at])]
        chosen += at[_even(len(at), MOST_OF_A_SPLIT)].tolist()
    return [_candidate(found, chosen[i]) for i in _even(len(chosen), MOST).tolist()]


def _even(n: int, most: int) -> NDArray[np.intp]:
    """At most `most` of n places, ends included."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(np.intp)) if n else np.zeros(0, dtype=np.intp)


def _candidate(found: Found, i: int) -> Candidate:
    o, spec, d = found.options, found.ground.spec, found.deployment(i)
    n_devices, tokens_per_s = int(o.n_devices[i]), float(o.requests_per_s[i]) * spec.output_tokens
    label = _label(d.n_main, d.parallel)
    if d.prefill is not None:
        label = f"prefill {_label(d.n_prefill, d.prefill)}, decode {label}"
    return Candidate(
        mode="in place" if d.prefill is None else "disaggregated", split=label, n_devices=n_devices, batch=d.batch,
        ttft_s=float(o.ttft_s[i]), tpot_s=float(o.tpot_s[i]), output_tokens_per_s_per_device=tokens_per_s / n_devices,
        usd_per_million_output_tokens=usd_per_million_tokens(found.ground.hardware, n_devices, tokens_per_s),
    )  # fmt: skip


def _label(n: int, parallel: ParallelSpec) -> str:
    return f"{n} x {parallel.label}" if n > 1 else parallel.label
