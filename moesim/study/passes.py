"""One pass of an instance as its stack runs it, and how far draws of its routing scatter."""

from __future__ import annotations

import numpy as np

from moesim.analytic import step_time
from moesim.lowering import Pass
from moesim.specs.scenario import Engine
from moesim.study.host import with_host
from moesim.study.instance import Instance, PassTime

__all__ = ["scatter", "time_pass"]

#: Draws of routing from which the scatter of one pass is taken, and normal quantile of the 90% interval.
N_DRAWS, NINETY = 5, 1.645


def time_pass(
    instance: Instance, step: Pass, engine: Engine, rng: np.random.Generator, *, is_begun: bool = True
) -> PassTime:
    """One pass by the engine asked for, with the host time of its stack."""
    passing = instance.flow(step, rng) if engine is Engine.FLOW else instance.analytic(step)
    return with_host(instance, step, passing, is_begun=is_begun)


def scatter(instance: Instance, step: Pass, rng: np.random.Generator) -> float:
    """Half-width of the 90% interval of one pass's log time over draws of its routing, by the closed form of drawn loads.

    What one simulated pass may be off the mean of many; closed forms under the expected load have none of it, and a request's
    mean over its output tokens next to none.
    """
    if instance.routed is None:
        return 0.0
    times = [float(step_time(instance.program(step, instance.draw(step, rng)), instance.cost)) for _ in range(N_DRAWS)]
    return NINETY * float(np.std(np.log(times), ddof=1))
