"""Collectives through torch.distributed: one process per rank, on this machine.

Processes are started as ``python -m moesim.calibrate.measure.collectives`` (which works whatever the caller's main module is) and
meet through a file. A sample is the time of the slowest rank; ranks wait for each other before each. Every wait has a time limit.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from moesim.calibrate.measure.partial import NO_ANSWER, Record
from moesim.calibrate.measure.plan import Point
from moesim.errors import InputError

__all__ = ["measure_collectives"]

_WARM_UP = 3
_SAMPLES = 15
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def measure_collectives(points: Sequence[Point], n_ranks: int, time_limit_s: float, round_: int = 0) -> list[Record]:
    """Time collectives over `n_ranks` processes; points that were not reached in time are recorded as failed.

    Args:
        points: all over `n_ranks` ranks and one backend.
        n_ranks: processes.
        time_limit_s: of the whole group, start included.
        round_: number of the round, for the records.
    """
    if not points:
        return []
    with tempfile.TemporaryDirectory(prefix="moesim-ranks-") as folder:
        job = {
            "points": [{"kind": p.kind, "bytes": p.sizes["message_bytes"]} for p in points],
            "backend": points[0].kernel,
            "dtype": points[0].dtype,
            "n_ranks": n_ranks,
            "folder": folder,
            "time_limit_s": time_limit_s,
        }
        trouble = _run_ranks(job, n_ranks, time_limit_s)
        found = _read_results(Path(folder) / "results.jsonl")
    records = []
    for i, point in enumerate(points):
        if i in found:
            records.append(Record(point.key, round_, tuple(found[i])))
        else:
            records.append(Record(point.key, round_, error=trouble or "the process group ended early"))
    return records


def _run_ranks(job: dict[str, Any], n_ranks: int, time_limit_s: float) -> str:
    """Run all ranks; returns what went wrong, or nothing."""
    command = [sys.executable, "-m", "moesim.calibrate.measure.collectives", json.dumps(job)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    ranks = [subprocess.Popen([*command, str(r)], env=environment, text=True, **quiet) for r in range(n_ranks)]
    deadline = time.monotonic() + time_limit_s
    trouble = ""
    try:
        for rank in ranks:
            try:
                _, said = rank.communicate(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                return f"{NO_ANSWER} {time_limit_s:.0f} s"
            if rank.returncode != 0 and not trouble:
                lines = said.strip().splitlines()
                trouble = lines[-1][:200] if lines else f"exit code {rank.returncode}"
    finally:
        for rank in ranks:
            if rank.poll() is None:
                rank.kill()
            rank.wait()
            if rank.stderr is not None:
                rank.stderr.close()
    return trouble


def _read_results(path: Path) -> dict[int, list[float]]:
    if not path.is_file():
        return {}
    lines = path.read_text().split("\n")[:-1]
    return {int(value["point"]): value["samples_s"] for value in map(json.loads, lines)}


def _rank_main(job: dict[str, Any], rank: int) -> None:
    torch.set_num_threads(1)
    n_ranks, folder = int(job["n_ranks"]), Path(job["folder"])
    on_gpu = job["backend"] == "nccl"
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group(
        job["backend"], init_method=(folder / "store").as_uri(), rank=rank, world_size=n_ranks,
        timeout=timedelta(seconds=float(job["time_limit_s"])),
    )  # fmt: skip
    try:
        for i, point in enumerate(job["points"]):
            samples = _sample(point["kind"], int(point["bytes"]), n_ranks, _DTYPES[job["dtype"]], device)
            if rank == 0:
                with (folder / "results.jsonl").open("a") as file:
                    file.write(json.dumps({"point": i, "samples_s": samples}) + "\n")
    finally:
        dist.destroy_process_group()


def _sample(kind: str, n_bytes: int, n_ranks: int, dtype: torch.dtype, device: torch.device) -> list[float]:
    n = max(n_ranks, n_bytes // dtype.itemsize // n_ranks * n_ranks)
    full, other = (torch.ones(n, dtype=dtype, device=device) for _ in range(2))
    times = torch.zeros(_SAMPLES, dtype=torch.float64, device=device)
    for i in range(-_WARM_UP, _SAMPLES):
        dist.barrier()
        _wait(device)
        start = time.perf_counter_ns()
        _collective(kind, full, other, n_ranks)
        _wait(device)
        if i >= 0:
            times[i] = (time.perf_counter_ns() - start) / 1e9
    dist.all_reduce(times, op=dist.ReduceOp.MAX)
    return [float(t) for t in times]


def _collective(kind: str, full: Tensor, other: Tensor, n_ranks: int) -> None:
    if kind == "all_reduce":
        dist.all_reduce(full)
    elif kind == "all_gather":
        part = other[: len(full) // n_ranks]
        dist.all_gather(list(full.chunk(n_ranks)), part)
    elif kind == "all_to_all":
        dist.all_to_all_single(full, other)
    else:
        raise InputError("unknown collective", value=kind, allowed="all_reduce, all_gather, all_to_all")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    _rank_main(json.loads(sys.argv[1]), int(sys.argv[2]))
