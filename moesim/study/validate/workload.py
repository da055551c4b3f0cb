"""What the client of a row did, and what its engine allowed: lengths, policy, token budget."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from moesim.study.instance import Instance
from moesim.study.validate.closed_loop import Schedule, closed_loop
from moesim.study.validate.features import RowFeatures, row_features
from moesim.study.validate.setup import generation_of, instance_of
from moesim.study.validate.steps import StepTable, step_table
from moesim.study.validate.table import RunRow

__all__ = ["Client", "Launch", "Workbench", "client_of", "launch_of"]

#: Tokens of a pass: vLLM's and SGLang's default on large GPUs, and TensorRT-LLM's max_num_tokens.
BUDGET = 8192


@dataclass(frozen=True, slots=True)
class Client:
    """How lengths spread, and their means over nominal."""

    spread: float

    @property
    def mean_frac(self) -> float:
        """Mean length over nominal."""
        return 1.0 - 0.5 * self.spread


def client_of(row: RunRow) -> Client:
    """The row's client: lengths 0.8 to 1.0 of nominal; SGLang's runs by the undocumented client are batches of equal requests.

    Assumption, from those runs' data: their TTFT is that of whole batches prefilled at once (it grows with concurrency as the
    batch's prefill does), and their TPOT has no prompts between its steps.
    """
    return Client(0.0 if row.backend == "sglang" and row.warm_up not in ("yes", "no") else 0.2)


@dataclass(frozen=True, slots=True)
class Launch:
    """Settings of an engine that clients notice: passes between two looks at new requests, tokens in the first chunk sent."""

    poll_passes: float = 0.0
    stream_tokens: float = 1.0


def launch_of(row: RunRow) -> Launch:
    """The row's own settings, or those that runs of SGLang on Blackwell seem to have used.

    Those look for requests every 10 passes, or 30 from 16 requests in flight on (``--scheduler-recv-interval``), and send every
    10 tokens (``--stream-interval``). Source: a public launch script of
    SGLang on B200 sets an interval of 10; the other values are inferred from measured times (assumption). Others use defaults.
    """
    poll, stream = row.poll_passes, row.stream_tokens
    if row.backend == "sglang" and generation_of(row.device) == "blackwell":
        poll = poll if poll is not None else (30.0 if row.concurrency >= 16 else 10.0)
        stream = stream if stream is not None else 10.0
    return Launch(poll or 0.0, stream or 1.0)


@lru_cache(maxsize=4096)
def _schedule(isl: int, osl: int, concurrency: int, policy: str, n_ranks: int, spread: float) -> Schedule:
    rng = np.random.default_rng(0)
    return closed_loop(isl, osl, concurrency, policy, n_ranks=n_ranks, budget=BUDGET, spread=spread, rng=rng)


class Workbench:
    """Features of rows; instances and tables of passes are made once per split and lengths."""

    def __init__(self) -> None:
        self._instances: dict[tuple[object, ...], Instance] = {}
        self._tables: dict[tuple[object, ...], StepTable] = {}

    def instance(self, row: RunRow) -> Instance:
        """The row's model on its ranks."""
        key = _split(row)
        if key not in self._instances:
            self._instances[key] = instance_of(row)
        return self._instances[key]

    def table(self, row: RunRow) -> StepTable:
        """Passes of the row's split and lengths."""
        client, per_rank = client_of(row), -(-row.concurrency // row.attention_dp_size)
        most = max(256, 1 << (per_rank - 1).bit_length())
        key = (*_split(row), row.isl, row.osl, client.spread, most)
        if key not in self._tables:
            mean = client.mean_frac
            self._tables[key] = step_table(
                self.instance(row), mean * row.isl, mean * row.osl, most, max(BUDGET, row.isl) + most
            )
        return self._tables[key]

    def features(self, row: RunRow) -> RowFeatures:
        """What the row's means are made of.

        Raises:
            InputError: model, split or precision that cannot be.
        """
        client = client_of(row)
        table = self.table(row)
        plan = _schedule(row.isl, row.osl, row.concurrency, row.backend, row.attention_dp_size, client.spread)
        return row_features(table, plan, client.mean_frac * row.osl, row.concurrency)


def _split(row: RunRow) -> tuple[object, ...]:
    return (row.model, row.system, row.backend, row.precision, row.tp_size, row.attention_dp_size, row.ep_size)
