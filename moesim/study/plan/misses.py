"""Why the others are not in the plan: which goal they miss by how much, or how much memory they lack."""

from __future__ import annotations

from typing import Literal

import numpy as np

from moesim.memory import Serving, check_memory
from moesim.study.plan.ground import Ground
from moesim.study.plan.options import NONE
from moesim.study.plan.results import NearMiss
from moesim.study.plan.search import Found
from moesim.study.plan.splits import TooLarge
from moesim.units import plural, show

__all__ = ["near_misses"]

MOST_GOALS, MOST_MEMORY = 5, 3


def near_misses(found: Found) -> list[NearMiss]:
    """Of splits that meet the goals at no batch the nearest, and the splits that lack the least memory."""
    return [*_goals(found), *_memory(found)]


def _goals(found: Found) -> list[NearMiss]:
    o, spec = found.options, found.ground.spec
    if not len(o) or (spec.ttft_s is None and spec.tpot_s is None):
        return []
    ttft = o.ttft_s / (spec.ttft_s or np.inf)
    tpot = o.tpot_s / (spec.tpot_s or np.inf)
    worst = np.maximum(ttft, tpot)
    n, alone, good = len(found.ground.splits), o.prefill_split == NONE, worst <= 1
    # a split as one of three: serving in place, decoding, prefilling; in pools the one that misses is named
    main, other = np.where(alone, o.split, n + o.split), 2 * n + o.prefill_split
    role = np.where(~alone & (ttft >= tpot), other, main)
    seen = set(main[good].tolist()) | set(other[good & ~alone].tolist())
    misses: list[NearMiss] = []
    for i in np.argsort(worst, kind="stable").tolist():
        if int(role[i]) in seen:
            continue
        seen.add(int(role[i]))
        what: Literal["ttft", "tpot"] = "ttft" if ttft[i] >= tpot[i] else "tpot"
        value, limit = (o.ttft_s[i], spec.ttft_s) if what == "ttft" else (o.tpot_s[i], spec.tpot_s)
        misses.append(_goal(found, i, what, float(value), float(limit or 0.0)))
        if len(misses) == MOST_GOALS:
            break
    return misses


def _goal(found: Found, i: int, what: Literal["ttft", "tpot"], value: float, limit: float) -> NearMiss:
    d = found.deployment(i)
    label = d.parallel.label
    if int(found.options.prefill_split[i]) != NONE and d.prefill is not None:
        label = f"prefill {d.n_prefill} x {d.prefill.label}, decode {d.n_main} x {label}"
    by = value / limit - 1.0
    n = int(found.options.n_devices[i])
    sentence = (
        f"{label} on {plural(n, 'device')}: {what.upper()} {show(value, 's')} at batch {d.batch}, its best against the goals, is"
        f" {by:.0%} over {show(limit, 's')}"
    )
    return NearMiss(hardware=found.ground.hardware.name, split=label, n_devices=n, missed=what, value=value, limit=limit,
                    by_frac=by, gap_bytes=None, sentence=sentence)  # fmt: skip


def _memory(found: Found) -> list[NearMiss]:
    nearest = sorted(found.too_large, key=lambda t: t.least_gap_bytes)[: 3 * MOST_MEMORY]
    misses = [_lacking(found.ground, split) for split in nearest]
    return sorted(misses, key=lambda m: m.by_frac)[:MOST_MEMORY]


def _lacking(ground: Ground, split: TooLarge) -> NearMiss:
    parallel, spec, capacity = split.parallel, ground.spec, ground.hardware.device.memory_bytes
    serving = Serving(
        float(parallel.dp_size * parallel.pp_size), float(spec.workload.longest_context), float(spec.max_pass_tokens)
    )
    report = check_memory(ground.model, parallel, serving, capacity, explain=False)
    need = report.memory.total
    return NearMiss(
        hardware=ground.hardware.name, split=parallel.label, n_devices=parallel.n_ranks, missed="memory", value=need,
        limit=capacity, by_frac=need / capacity - 1.0, gap_bytes=report.gap_bytes,
        sentence=f"{parallel.label} on {plural(parallel.n_ranks, 'device')}: {report.sentence}",
    )  # fmt: skip
