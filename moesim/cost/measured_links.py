"""Collectives between a few ranks as latency plus bytes over bandwidth, for cost sources that measure one rank only.

Letters: n ranks, B bytes of one rank's full buffer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moesim.specs.hardware import Hardware

__all__ = ["SimpleLink", "link_of"]


@dataclass(frozen=True, slots=True)
class SimpleLink:
    """latency + share x B / bandwidth, with share 2 (n-1)/n for all-reduce and (n-1)/n for all-gather or reduce-scatter."""

    bytes_per_s: float
    latency_s: float
    source: str = "assumption"

    def all_reduce_s(self, n_ranks: int, message_bytes: Any) -> Any:
        """Sum of a buffer over all ranks."""
        return self._seconds(2.0 * (n_ranks - 1) / n_ranks, n_ranks, message_bytes)

    def all_gather_s(self, n_ranks: int, message_bytes: Any) -> Any:
        """Gather to a full buffer of `message_bytes` on every rank (a reduce-scatter takes as long)."""
        return self._seconds((n_ranks - 1) / n_ranks, n_ranks, message_bytes)

    def _seconds(self, share: float, n_ranks: int, message_bytes: Any) -> Any:
        if n_ranks == 1:
            return message_bytes * 0.0
        return (message_bytes > 0) * self.latency_s + message_bytes * (share / self.bytes_per_s)


#: RTX PRO 6000 pairs without peer-to-peer: NCCL goes through host memory. Bandwidth: the cluster files of LLMServingSim 2 for the
#: machine of the vLLM 0.19 logs (16 GB/s); latency: NCCL all-reduce of 4 KiB between two of these cards (12.7 us, the same
#: project's calibration). With peer-to-peer on, the same source measured 36 GB/s: give `link` in the scenario.
_HOST_STAGED = {
    "rtx_pro_6000": SimpleLink(16e9, 12.7e-6, "NCCL through host memory, 16 GB/s (published for these cards)")
}


def link_of(hardware: Hardware, achieved_frac: float = 0.75) -> SimpleLink:
    """The link beside layer times of one rank: a known pair, else the scale-up link at `achieved_frac` (assumption)."""
    known = _HOST_STAGED.get(hardware.device.name)
    if known is not None:
        return known
    up = hardware.scale_up
    if up is None:
        return SimpleLink(25e9, 10e-6, "no link known (assumption)")
    return SimpleLink(up.bytes_per_s * achieved_frac, up.latency_s, f"{up.name} at {achieved_frac:.0%} (assumption)")
