"""Timing of calls: warm-up, samples long enough to time, buffers used in turn, and whether the system cut in."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

__all__ = ["Call", "Clock", "CpuClock", "CudaClock", "Samples", "Settings", "clock_for", "take_samples"]

Call = Callable[[], object]

_LINUX_HIGH_WATER_RESET = Path("/proc/self/clear_refs")
_LINUX_STATUS = Path("/proc/self/status")


@dataclass(frozen=True, slots=True)
class Settings:
    """How long to sample one point in one round: at least `min_samples`, then until `target_s` or `max_samples`."""

    min_samples: int = 3
    max_samples: int = 9
    target_s: float = 0.12
    min_sample_s: float = 2e-4
    max_inner: int = 256


@dataclass(frozen=True, slots=True)
class Samples:
    """Seconds per call of every sample, and involuntary context switches during it."""

    seconds: tuple[float, ...]
    n_preempted: tuple[int, ...]


class Clock(Protocol):
    """Times a number of calls, one after the other."""

    def time(self, calls: Sequence[Call]) -> tuple[float, int]:
        """Seconds for all calls, and involuntary context switches (0 where they cannot be seen)."""
        ...

    def reset_peak(self) -> None:
        """Start a new high-water mark of memory."""
        ...

    def peak_bytes(self) -> int:
        """Memory high-water mark since the reset; 0 where it cannot be read."""
        ...


class CpuClock:
    """Monotonic nanoseconds; preemption from the calling thread's resource usage (Linux).

    With one thread, a sample during which the system gave the processor to another program counts the thread's own processor
    time instead of the time on the wall: a layer computes all the time, so the difference is what others took.
    """

    def __init__(self) -> None:
        self._switches = _switch_counter()
        self._is_one_thread = torch.get_num_threads() == 1

    def time(self, calls: Sequence[Call]) -> tuple[float, int]:
        """Seconds for all calls."""
        before, busy_before = self._switches(), time.thread_time_ns()
        start = time.perf_counter_ns()
        for call in calls:
            call()
        wall = time.perf_counter_ns() - start
        busy, switches = time.thread_time_ns() - busy_before, self._switches() - before
        return (busy if switches and self._is_one_thread else wall) / 1e9, switches

    def reset_peak(self) -> None:
        """Ask Linux to restart the resident high-water mark; nothing happens elsewhere."""
        try:
            _LINUX_HIGH_WATER_RESET.write_text("5")
        except OSError:
            return

    def peak_bytes(self) -> int:
        """Resident high-water mark of this process."""
        try:
            status = _LINUX_STATUS.read_text()
        except OSError:
            return 0
        for line in status.splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return 0


class CudaClock:
    """CUDA events around the calls, on the current stream."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def time(self, calls: Sequence[Call]) -> tuple[float, int]:
        """Seconds between two events; launch gaps of an eager layer are part of it, as they are in use."""
        event: Any = torch.cuda.Event
        start, stop = event(enable_timing=True), event(enable_timing=True)
        torch.cuda.synchronize(self.device)
        start.record()
        for call in calls:
            call()
        stop.record()
        stop.synchronize()
        return float(start.elapsed_time(stop)) / 1e3, 0

    def reset_peak(self) -> None:
        """Restart the allocator's high-water mark."""
        torch.cuda.reset_peak_memory_stats(self.device)

    def peak_bytes(self) -> int:
        """The allocator's high-water mark."""
        return int(torch.cuda.max_memory_allocated(self.device))


def clock_for(device: torch.device) -> Clock:
    """The clock of a device."""
    return CudaClock(device) if device.type == "cuda" else CpuClock()


def take_samples(calls: Sequence[Call], clock: Clock, settings: Settings) -> Samples:
    """Warm up, then time `calls` in turn.

    A sample is one call, or as many as `min_sample_s` needs. Warm-up takes the calls from the back, so that the first timed
    one finds its buffers cold.

    Args:
        calls: the same work on different buffers.
        clock: of the device.
        settings: how much.
    """
    first, _ = clock.time([calls[-1]])
    again, _ = clock.time([calls[-2 % len(calls)]])
    per_call = max(1e-9, min(first, again))
    n_inner = min(settings.max_inner, max(1, round(settings.min_sample_s / per_call)))
    seconds: list[float] = []
    preempted: list[int] = []
    at, total = 0, 0.0
    while len(seconds) < settings.min_samples or (total < settings.target_s and len(seconds) < settings.max_samples):
        group = [calls[(at + i) % len(calls)] for i in range(n_inner)]
        at += n_inner
        taken, switches = clock.time(group)
        total += taken
        seconds.append(taken / n_inner)
        preempted.append(switches)
    return Samples(tuple(seconds), tuple(preempted))


def _switch_counter() -> Callable[[], int]:
    try:
        import resource
    except ImportError:  # not a POSIX system
        return lambda: 0
    who = (
        resource.RUSAGE_SELF
        if torch.get_num_threads() > 1
        else getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)
    )
    return lambda: resource.getrusage(who).ru_nivcsw
