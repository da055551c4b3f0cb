"""What the client of a row did, and the schedule and passes of its engine."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from moesim.memory import check_memory
from moesim.memory.count import Serving
from moesim.study.instance import Instance
from moesim.study.kernels import contained_kernels
from moesim.study.validate.closed_loop import Schedule, closed_loop
from moesim.study.validate.features import RowFeatures, row_features
from moesim.study.validate.launches import Launch, launch_of
from moesim.study.validate.setup import instance_of, with_launched_cache
from moesim.study.validate.steps import StepTable, step_table
from moesim.study.validate.table import RunRow

__all__ = ["Client", "Workbench", "client_of"]

#: Of the data sheet's memory; the memory model's reserve comes off it.
MOST_MEMORY = 1.055


@dataclass(frozen=True, slots=True)
class Client:
    """How lengths spread, and their means over nominal."""

    spread: float

    @property
    def mean_frac(self) -> float:
        """Mean length over nominal."""
        return 1.0 - 0.5 * self.spread


def client_of(row: RunRow) -> Client:
    """The row's client: lengths 0.8 to 1.0 of nominal; runs by the undocumented client are of equal requests.

    Assumption, from those runs' data: their TTFT does not depend on how long outputs are, as where requests that begin together
    also end together and come back together; and SGLang's TPOT there has no prompts between its steps.
    """
    return Client(0.2 if row.warm_up in ("yes", "no") else 0.0)


@lru_cache(maxsize=4096)
def _schedule(
    isl: int, osl: int, concurrency: int, policy: str, n_ranks: int, spread: float, launch: Launch, capacity: float
) -> Schedule:
    return closed_loop(
        isl, osl, concurrency, policy, n_ranks=n_ranks, budget=launch.budget_tokens, spread=spread,
        poll=launch.poll_passes, hold=(launch.hold_passes, launch.hold_frac), capacity=capacity, rng=np.random.default_rng(0),
    )  # fmt: skip


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
        launch = launch_of(row)
        budget, fuses = launch.budget_tokens, launch.fuses_norms
        most = max(256, 1 << (per_rank - 1).bit_length())
        key = (*_split(row), row.isl, row.osl, client.spread, most, budget, fuses)
        if key not in self._tables:
            mean = client.mean_frac
            self._tables[key] = step_table(
                self.instance(row), mean * row.isl, mean * row.osl, most, max(budget, row.isl) + most,
                contained_kernels(row.backend, row.device, fuses_norms=fuses),
            )  # fmt: skip
        return self._tables[key]

    def capacity(self, row: RunRow) -> float:
        """Tokens that a rank's KV cache holds: infinite where the run's requests fit in any case.

        Where a cache is what little is left beside the weights, no table of runs says it exactly; so only runs wait that would
        even under the most generous launch (0.95 of what the driver shows, 7% above the data sheet: 143,771 MiB of an H200).
        """
        instance, budget = self.instance(row), float(launch_of(row).budget_tokens)
        per_rank = -(-row.concurrency // row.attention_dp_size)
        serving = Serving(float(row.attention_dp_size), float(row.isl + row.osl), budget)
        model = with_launched_cache(instance.model, row.precision, row.backend, row.device)
        most_bytes = MOST_MEMORY * instance.hardware.device.memory_bytes
        report = check_memory(model, instance.parallel, serving, most_bytes, explain=False)
        tokens = report.kv_capacity_tokens / row.attention_dp_size
        if tokens < row.isl + row.osl or tokens >= per_rank * (row.isl + row.osl):
            return float(np.inf)
        return float(round(tokens, -3))

    def features(self, row: RunRow) -> RowFeatures:
        """What the row's means are made of.

        Raises:
            InputError: model, split or precision that cannot be.
        """
        client = client_of(row)
        table = self.table(row)
        plan = _schedule(
            row.isl, row.osl, row.concurrency, row.backend, row.attention_dp_size, client.spread, launch_of(row),
            self.capacity(row),
        )  # fmt: skip
        mean = client.mean_frac
        return row_features(table, plan, mean * row.isl, mean * row.osl, row.concurrency)


def _split(row: RunRow) -> tuple[object, ...]:
    return (row.model, row.system, row.backend, row.precision, row.tp_size, row.attention_dp_size, row.ep_size)
