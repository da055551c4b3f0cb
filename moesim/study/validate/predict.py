"""Mean TTFT and TPOT of many rows at once under a stack's parameters: weights of passes times their durations.

Letters: R rows, B bins of passes with prompts, K parts of a pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.cost.stack import StackParams, eager_s
from moesim.study.validate.features import RowFeatures
from moesim.study.validate.launches import launch_of
from moesim.study.validate.steps import N_PARTS
from moesim.study.validate.table import RunRow

__all__ = ["Batch", "part_factors"]

Floats = NDArray[np.float64]


def part_factors(stack: StackParams) -> Floats:
    """Factor of each `Part`."""
    s = stack
    return np.asarray(
        [
            s.gemm_ratio, s.gemm_call_ratio, s.experts_ratio, s.experts_call_ratio, s.attention_ratio,
            s.attention_call_ratio, 1.0, s.elementwise_call_ratio, s.comm_ratio, s.comm_ratio, s.quantise_s,
        ]
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Batch:
    """Features of R rows as arrays."""

    decode: Floats
    n_decode: Floats
    prompt: Floats
    n_new: Floats
    weight: Floats
    n_kernels: Floats
    mean_output: Floats
    is_cold: Floats
    is_other: Floats
    mean_input: Floats
    streamed: Floats

    @classmethod
    def of(cls, rows: Sequence[RunRow], features: Sequence[RowFeatures]) -> Batch:
        """Pad the bins and stack."""
        n, bins = len(rows), max(len(f.prompt) for f in features)
        prompt, n_new, weight = np.zeros((n, bins, N_PARTS)), np.zeros((n, bins)), np.zeros((n, 2, bins))
        for i, f in enumerate(features):
            b = len(f.prompt)
            prompt[i, :b], n_new[i, :b], weight[i, :, :b] = f.prompt, f.n_new, f.weight
        return cls(
            decode=np.stack([f.decode for f in features]), n_decode=np.stack([f.n_decode for f in features]), prompt=prompt,
            n_new=n_new, weight=weight, n_kernels=np.asarray([f.n_kernels for f in features]),
            mean_output=np.asarray([f.mean_output for f in features]),
            is_cold=np.asarray([float(r.warm_up == "no") for r in rows]),
            is_other=np.asarray([float(r.warm_up not in ("yes", "no")) for r in rows]),
            mean_input=np.asarray([f.mean_input for f in features]),
            streamed=np.asarray([launch_of(r).stream_tokens - 1.0 for r in rows]),
        )  # fmt: skip

    def at(self, index: NDArray[np.intp]) -> Batch:
        """Some of the rows."""
        return Batch(*(getattr(self, name)[index] for name in self.__slots__))

    def predict(self, stack: StackParams) -> Floats:
        """Mean TTFT and TPOT in seconds, [R, 2]."""
        factors = part_factors(stack)
        decode = self.decode @ factors + self.n_decode * stack.step_s
        passes = eager_s(stack, self.prompt @ factors, self.n_kernels[:, None])
        passes = passes + stack.prompt_pass_s + stack.prompt_s * self.n_new
        ttft, tpot = (decode + np.einsum("rmb,rb->rm", self.weight, passes)).T
        client = stack.request_s + stack.token_s * self.mean_input
        client = client + stack.cold_s * self.is_cold + stack.other_client_s * self.is_other
        ttft = ttft + (stack.wait_passes + self.streamed) * tpot + client
        tpot = tpot * (1.0 - self.streamed / np.maximum(self.mean_output - 1.0, self.streamed + 1.0))
        return np.stack([ttft, tpot], axis=1)
