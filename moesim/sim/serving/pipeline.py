"""Pipeline stages: successive resources that several passes of one replica go through, each in a lane of its own.

Letters: P stages, t_i seconds of a pass on stage i, h seconds of a send to the next stage. With P lanes always ready and passes
alike, a lane's passes follow each other every max(sum t_i + (P - 1) h + host, P max t_i).
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moesim.sim.serving.engine import Engine
from moesim.sim.serving.policies import Policy
from moesim.sim.serving.rank import Rank
from moesim.sim.serving.requests import Sequence

__all__ = ["Pipeline", "Stages"]

Floats = NDArray[np.float64]


@dataclass(slots=True)
class Stages:
    """The stages of one replica, and the host that schedules its passes one after another.

    `shares` is each stage's part of a pass (its layers over all); `send_s` the seconds of a send by tokens of a rank. Stages take
    passes in the order in which they are scheduled.
    """

    shares: tuple[float, ...]
    send_s: Floats
    host_s: float
    free_s: list[float] = field(init=False)
    host_free_s: float = 0.0

    def __post_init__(self) -> None:
        self.free_s = [0.0] * len(self.shares)

    def run(self, ready_s: float, seconds: float, tokens: int) -> tuple[float, float]:
        """When a pass of `seconds` on all stages together, scheduled at `ready_s`, starts and ends."""
        self.host_free_s = max(ready_s, self.host_free_s) + self.host_s
        send_s = float(self.send_s[min(tokens, len(self.send_s) - 1)])
        at = max(self.host_free_s, self.free_s[0])
        start_s = at
        for i, share in enumerate(self.shares):
            at = max(at if i == 0 else at + send_s, self.free_s[i]) + seconds * share
            self.free_s[i] = at
        return start_s, at


class Pipeline:
    """A replica of P stages: P engines, each with its own requests and its part of the KV blocks, share the stages.

    A request stays with its engine, which schedules it again when its token is out; up to P passes are under way at once.
    Source: SGLang, python/sglang/srt/managers/scheduler_pp_mixin.py (pp_size micro-batches, each with its own running batch);
    vLLM's batch queue of pp_size passes forms such groups too, but may mix them anew and shares all blocks (assumption: the
    same times).
    """

    def __init__(self, lanes: Many[Engine]) -> None:
        self.lanes = list(lanes)

    @property
    def ranks(self) -> list[Rank]:
        """Ranks of all lanes."""
        return [rank for lane in self.lanes for rank in lane.ranks]

    @property
    def policy(self) -> Policy:
        """The policy, which all lanes share."""
        return self.lanes[0].policy

    @property
    def hand_over(self) -> bool:
        """Whether prompts go elsewhere to decode."""
        return self.lanes[0].hand_over

    @property
    def n_unfinished(self) -> int:
        """Requests here that are not done."""
        return sum(lane.n_unfinished for lane in self.lanes)

    def submit(self, seq: Sequence, ready_s: float, rank: int | None = None) -> None:
        """A request joins the lane with the fewest."""
        min(self.lanes, key=lambda lane: lane.n_unfinished).submit(seq, ready_s, rank)
