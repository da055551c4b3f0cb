"""What is asked of a system: request lengths and how many at once."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from moesim.specs.base import Count, Frozen, Natural

__all__ = ["WorkloadSpec"]


class WorkloadSpec(Frozen):
    """Requests of one shape, a fixed number of them in flight on the whole hardware.

    `concurrency` lists the numbers in flight to study; `cached_prefix_tokens` of the input are found in the cache;
    `max_pass_tokens` is the most new tokens of one pass of one instance (chunked prefill).
    """

    input_tokens: Count
    output_tokens: Count
    concurrency: tuple[Count, ...] = Field(default=(1, 4, 16, 64, 256), min_length=1)
    cached_prefix_tokens: Natural = 0
    max_pass_tokens: Count = 8192

    @model_validator(mode="after")
    def _prefix_is_shorter(self) -> Self:
        if self.cached_prefix_tokens >= self.input_tokens:
            raise ValueError("cached_prefix_tokens: must be less than input_tokens")
        if len(set(self.concurrency)) != len(self.concurrency):
            raise ValueError("concurrency: lists a number twice")
        return self

    @property
    def mean_context(self) -> float:
        """Context of a decode step averaged over the output."""
        return self.input_tokens + 0.5 * self.output_tokens

    @property
    def middle(self) -> int:
        """The concurrency at which systems are explained in detail: the middle of those listed."""
        return self.concurrency[len(self.concurrency) // 2]

    @property
    def longest_context(self) -> int:
        """Tokens that a request has cached when it ends."""
        return self.input_tokens + self.output_tokens
