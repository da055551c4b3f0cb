"""Latency, rate, dollars and energy of rows that share a router: the formulas of `moesim.study.points` over arrays.

Letters: C requests in flight on the hardware, b on one instance, I input and O output tokens.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.cost.energy import IDLE_FRAC
from moesim.cost.served import stack_of
from moesim.ops import Phase
from moesim.study.calibrated import basis_of
from moesim.study.host import wait_s
from moesim.study.steady import PromptTimes
from moesim.study.stepping import Stepping, mean_round, waits_of
from moesim.study.sweep.parts import WITH_ENDS, GroupCases, Parts
from moesim.study.sweep.pass_times import PassTimes, exposure_in, hosted
from moesim.study.sweep.passes import Passes
from moesim.study.sweep.shapes import Experts
from moesim.study.sweep.sums import Lowered
from moesim.study.uncertainty import Basis, Exposure, spreads_of

__all__ = ["Ask", "RowTimes"]

Floats = NDArray[np.float64]
Columns = dict[str, Any]
Ask = tuple[list[Lowered], "NDArray[np.intp] | None"]


class RowTimes:
    """Rows of a group: their numbers, and the result columns that they fill."""

    def __init__(
        self, cases: GroupCases, numbers: dict[str, Any], out: Columns, rows: NDArray[np.intp], n_instances: int
    ) -> None:
        self.cases, self.out, self.rows, self.n_instances = cases, out, rows, n_instances
        self.parts: Parts = cases.parts
        self.n: dict[str, Floats] = {name: values[rows] for name, values in numbers.items()}
        self.new = self.n["input_tokens"] - self.n["cached_prefix_tokens"]
        self.per_rank = np.maximum(1.0, np.floor(self.n["max_pass_tokens"] / self.new))
        self.in_flight = np.maximum(1.0, self.n["concurrency"] / n_instances)

    @property
    def n_waiting(self) -> int:
        """Attention-DP ranks that share experts and step together; 1 where there are none."""
        return self.parts.parallel.dp_size if self.parts.model.is_moe else 1

    @property
    def stepping(self) -> Stepping | None:
        """How ranks and pipeline lanes take prompts; None where none wait for each other."""
        rule, parts = self.cases.spec.dp_prefill, self.parts
        return waits_of(rule, parts.calibration, n_waiting=self.n_waiting, parallel=parts.parallel)

    def answer(self, passes: Passes, experts: Experts) -> Generator[list[Ask], list[PassTimes], None]:
        """Yields the passes to be priced, and fills the columns."""
        n, parallel = self.n, self.parts.parallel
        context = n["input_tokens"] + 0.5 * n["output_tokens"]
        share = self.padded(np.ceil(self.in_flight / float(parallel.pp_size)))
        row, sequences, q, p, n_full = self.chunks()
        decode, prompts = yield [
            passes.ask(Phase.DECODE, experts, share, np.ones(len(self.rows)), np.maximum(0.0, context - 1.0)),
            passes.ask(Phase.PREFILL, experts.take(row), sequences, q, p),
        ]
        stack = stack_of(self.parts.calibration)
        begun = (p == n["cached_prefix_tokens"][row]) * np.maximum(1.0, sequences / float(parallel.dp_size))
        decode, prompts = hosted(decode, stack, Phase.DECODE), hosted(prompts, stack, Phase.PREFILL, begun)
        times, last, alone = self.prompt_times(prompts, row, n_full)
        found = mean_round(
            decode.time_s,
            decode.attention_s,
            self.in_flight,
            n["output_tokens"],
            times,
            parallel.pp_size,
            self.stepping,
        )
        ttft_s = times.one_s + wait_s(stack, found.waited_s, n["input_tokens"]) + found.queue_s
        self.put(decode, last, ttft_s, found.tpot_s, n["concurrency"] / found.cycle_s, found.prefill_s)
        is_wide = parallel.n_ranks > self.parts.hardware.scale_up_domain_size
        self.put_intervals(exposure_in(decode, is_wide=is_wide), exposure_in(alone, is_wide=is_wide))

    def padded(self, sequences: Floats) -> Floats:
        """As many on every attention-DP rank as on the fullest (`Instance.padded`)."""
        r = float(self.n_waiting)
        return sequences if r == 1.0 else np.ceil(sequences / r) * r

    def chunks(self) -> tuple[Any, Floats, Floats, Floats, int]:
        """Row, sequences, new and cached tokens of prefill passes: full ones, then of one request alone; number of the first."""
        prefix, most = self.n["cached_prefix_tokens"], self.n["max_pass_tokens"]
        full = np.maximum(1.0, np.minimum(self.new, np.floor(most / self.per_rank)))
        together = self.per_rank * float(self.parts.parallel.dp_size)
        alone = np.maximum(1.0, np.minimum(self.new, most))
        found = [
            _chunks(self.new, full, prefix, together),
            _chunks(self.new, alone, prefix, self.padded(np.ones(len(self.new)))),
        ]
        row, sequences, q, p = (np.concatenate([c[i] for c in found]) for i in range(4))
        return row, sequences, q, p, len(found[0][0])

    def prompt_times(
        self, timed: PassTimes, row: NDArray[np.intp], n_full: int
    ) -> tuple[PromptTimes, PassTimes, PassTimes]:
        """Seconds of prompts, with the last pass of those that fill passes, and of one with nothing else in its passes."""
        n_rows = len(self.rows)
        full_s = np.bincount(row[:n_full], timed.time_s[:n_full], n_rows)
        one_s = np.asarray(np.bincount(row[n_full:], timed.time_s[n_full:], n_rows), dtype=float)
        last = np.zeros(n_rows, dtype=np.intp)
        alone = last.copy()
        last[row[:n_full]] = np.arange(n_full)
        alone[row[n_full:]] = np.arange(n_full, len(row))
        most, dp = self.n["max_pass_tokens"], self.parts.parallel.dp_size
        n_chunks = np.bincount(row[n_full:], minlength=n_rows)
        times = PromptTimes(one_s, full_s, n_chunks, self.per_rank, np.minimum(self.new, most), dp)
        return times, timed.take(last), timed.take(alone)

    def put(
        self, decode: PassTimes, last: PassTimes, ttft_s: Floats, tpot_s: Floats, rate: Floats, prefill_s: Floats
    ) -> None:
        """Fill the columns."""
        hardware = self.parts.hardware
        values = {
            "ttft_s": ttft_s, "tpot_s": tpot_s, "decode_step_s": decode.time_s, "output_tokens_per_s": rate,
            "output_tokens_per_s_per_device": rate / hardware.n_devices, "output_tokens_per_s_per_user": 1.0 / tpot_s,
            "exposed_comm_frac": decode.comm_s / decode.time_s, "rank_imbalance_ratio": decode.imbalance,
        }  # fmt: skip
        price = self.cases.variant.price_usd_per_device_h
        price = hardware.price_usd_per_device_h if price is None else price
        if price is not None:
            values["usd_per_million_output_tokens"] = hardware.n_devices * price / 3600.0 / rate * 1e6
        energy = self.energy(decode, prefill_s, last, rate)
        if energy is not None:
            values["energy_j_per_output_token"] = energy
        for name, column in values.items():
            self.out[name][self.rows] = column
        self.out["origin"][self.rows] = decode.origin.value

    def put_intervals(self, decode: Exposure, alone: Exposure) -> None:
        """Ends of the 90% intervals; nan where only assumptions stand behind a case."""
        basis, out, rows = basis_of(self.parts.calibration), self.out, self.rows
        spreads = spreads_of(basis, decode, alone, is_moe=self.parts.model.is_moe)
        for name in WITH_ENDS:
            out[f"{name}_low"][rows], out[f"{name}_high"][rows] = spreads[name].ends(out[name][rows])
        out["error_frac"][rows] = half = np.broadcast_to(spreads["tpot_s"].half_frac, len(rows))
        out["interval_basis"][rows] = np.where(np.isnan(half), Basis.ASSUMPTION.value, basis.value)

    def energy(self, decode: PassTimes, prefill_s: Floats, last: PassTimes, rate: Floats) -> Floats | None:
        """Joules per output token: dynamic energy of a decode round and its share of prefills, and idling."""
        device, n_ranks = self.parts.hardware.device, self.parts.parallel.n_ranks
        if device.board_power_w is None:
            return None
        idle_w = device.idle_power_w if device.idle_power_w is not None else IDLE_FRAC * device.board_power_w
        swing = n_ranks * (device.board_power_w - idle_w)
        step_j = swing * np.minimum(decode.power_s, decode.time_s)
        fill_j = swing * np.minimum(last.power_s / last.time_s, 1.0) * prefill_s
        per_token = (step_j + fill_j * self.in_flight / self.n["output_tokens"]) / self.in_flight
        return np.asarray(per_token + idle_w * self.parts.hardware.n_devices / rate)


def _chunks(new: Floats, chunk: Floats, prefix: Floats, sequences: Floats) -> tuple[Any, Floats, Floats, Floats]:
    """Row, sequences, new and cached tokens of every prefill pass, row by row in order."""
    n_chunks = np.ceil(new / chunk).astype(int)
    row = np.repeat(np.arange(len(new)), n_chunks)
    place = np.arange(len(row)) - np.repeat(np.cumsum(n_chunks) - n_chunks, n_chunks)
    start = place * chunk[row]
    return row, sequences[row], np.minimum(chunk[row], new[row] - start), prefix[row] + start
