"""Requests as a user submits them, and the live state of one inside an engine."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Outcome", "Request", "Sequence"]


class Outcome(StrEnum):
    """How a request ended; the values are what users read."""

    FINISHED = "finished"
    REJECTED_CONTEXT = "rejected: longer than the model's context"
    REJECTED_KV = "rejected: longer than the KV cache"
    REJECTED_EMPTY = "rejected: no tokens"
    IN_FLIGHT = "in flight"


@dataclass(frozen=True, slots=True)
class Request:
    """One request: when it arrives, how long its input and output are.

    `prefix_hashes` name consecutive blocks of `hash_tokens` input tokens; requests that begin with the same hashes share them.
    `domain` is what its text is about, for routers that tell domains apart.
    """

    request_id: str
    arrival_s: float
    input_tokens: int
    output_tokens: int
    prefix_hashes: tuple[int, ...] = ()
    hash_tokens: int = 512
    domain: str | None = None


class Sequence:
    """A request inside an engine.

    `target` is the tokens to prefill before the next token comes out: the input, and after a preemption also what had been
    generated. `computed` of them are in the cache.
    """

    __slots__ = (
        "blocks", "cached", "computed", "finish_step", "first_s", "generated", "held", "join_context", "join_step", "last_s",
        "n_preempted", "order", "prefilled_elsewhere", "queued_s", "ready_s", "request", "scheduled_s", "shared", "steps_left",
        "target",
    )  # fmt: skip

    def __init__(self, request: Request) -> None:
        self.request = request
        self.ready_s = request.arrival_s
        self.target = request.input_tokens
        self.computed = 0
        self.cached = 0
        self.generated = 0
        self.blocks = 0
        self.shared: tuple[int, ...] = ()
        self.held = 0
        self.n_preempted = 0
        self.order = 0
        self.join_step = 0
        self.join_context = 0
        self.steps_left = 0
        self.finish_step = 0
        self.prefilled_elsewhere = False
        self.queued_s = -1.0
        self.scheduled_s = -1.0
        self.first_s = -1.0
        self.last_s = -1.0

    @property
    def final_context(self) -> int:
        """Tokens cached when the last output token is computed."""
        return self.request.input_tokens + self.request.output_tokens
