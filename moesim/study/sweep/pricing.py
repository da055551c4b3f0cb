"""Costs of many programs at once: each distinct operator is priced once, whoever shares it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from moesim.cost import CostModel, OpCost
from moesim.cost.estimate import known_costs
from moesim.ops import OpKind
from moesim.specs.base import weakest
from moesim.study.sweep.pass_times import PassTimes, built, columns_of
from moesim.study.sweep.sums import Lowered, Priced, timed, timed_together

__all__ = ["MOST_ROWS", "priced"]

#: Programs of more rows are summed one by one, so that intermediate results stay in a cache.
MOST_ROWS = 64


def priced(asked: Sequence[Sequence[Lowered]]) -> list[PassTimes]:
    """Times of the rows of each request; operators of all of them that one calibration knows are priced together."""
    keys = [[lowered.key for lowered in request] for request in asked]
    distinct: dict[Any, Priced] = {}
    for own, request in zip(keys, asked, strict=True):
        for key, lowered in zip(own, request, strict=True):
            if key not in distinct:
                distinct[key] = Priced(lowered)
    _find_costs(list(distinct.values()))
    sums: dict[Any, PassTimes] = {}
    few: dict[int, list[tuple[Any, Priced]]] = {}
    for key, program in distinct.items():
        if program.lowered.program.overlap or program.lowered.n > MOST_ROWS:
            sums[key] = timed(program)
        else:
            few.setdefault(program.lowered.n, []).append((key, program))
    for members in few.values():
        sums |= timed_together(members)
    return [_joined([sums[key] for key in own]) for own in keys]


def _find_costs(programs: Sequence[Priced]) -> None:
    """Give every program the costs of its operators by their identity; programs on equal links share them."""
    by_calibration: dict[tuple[int, str], list[Priced]] = {}
    for p in programs:
        model = p.lowered.cost
        by_calibration.setdefault((id(model.calibration), model.hardware.device.name), []).append(p)
    for members in by_calibration.values():
        every = {id(op): op for p in members for op in p.ops}
        calibration, device = members[0].lowered.cost.calibration, members[0].lowered.cost.hardware.device
        answers = (
            known_costs(calibration, list(every.values()), device) if calibration is not None else [None] * len(every)
        )
        known = {key: cost for key, cost in zip(every, answers, strict=True) if cost is not None}
        here: dict[Any, dict[int, OpCost]] = {}
        for p in members:
            model = p.lowered.cost
            costs = p.costs = here.setdefault(p.lowered.network_key, known.copy())
            plain = CostModel(model.hardware, model.network, model.efficiency)
            for op in p.ops:
                if id(op) not in costs:
                    costs[id(op)] = plain.cost(op)
                elif op.kind is OpKind.GROUPED_GEMM and model.calibration is not None and model.is_apart(op):
                    costs[id(op)] = model.apart(op)


def _joined(parts: Sequence[PassTimes]) -> PassTimes:
    if len(parts) == 1:
        return parts[0]
    columns = zip(*(columns_of(p) for p in parts), strict=True)
    return built([np.concatenate(c) for c in columns], weakest(*(p.origin for p in parts)))
