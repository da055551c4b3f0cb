"""Exchanges by pair of ranks: when each message leaves its sender and when each receiver has the last one.

A rank has two ports out and two in, scale-up and NIC, that work side by side. A sender goes round its destinations, starting
after itself, with one chunk for each per round; a receiver takes messages in the order in which they began to arrive, cutting
through: its port is busy with a message while that is on its way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["PairTimes"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PairTimes:
    """Seconds that a message of each pair occupies its ports: [port, chunk-less R source, R destination] out and in.

    Port 0 is scale-up, port 1 the NIC. The sums over destinations and sources reach the port times of `rank` granularity.
    """

    out_s: Floats
    in_s: Floats
    n_chunks: int

    @classmethod
    def of(
        cls, up: Floats, nic: Floats, out_s: Floats, in_s: Floats, up_bytes_per_s: float, nic_bytes_per_s: float, n_chunks: int
    ) -> PairTimes:  # fmt: skip
        """Share every rank's port times out over its pairs, by bytes; both ports scaled so that the busier takes the whole.

        Args:
            up: [R, R] bytes through scale-up ports, row to column.
            nic: [R, R] bytes through NICs.
            out_s: [R] seconds of the busier port of each sender.
            in_s: [R] seconds of the busier port of each receiver.
            up_bytes_per_s: rate of a scale-up port, for the ratio of the two ports only.
            nic_bytes_per_s: rate of a NIC.
            n_chunks: chunks per message.
        """
        raw = np.stack([up / max(up_bytes_per_s, 1e-30), nic / nic_bytes_per_s if nic_bytes_per_s else nic * 0.0])
        busiest_out = raw.sum(axis=2).max(axis=0)
        busiest_in = raw.sum(axis=1).max(axis=0)
        out_scale = np.divide(out_s, busiest_out, out=np.zeros_like(out_s, dtype=float), where=busiest_out > 0)
        in_scale = np.divide(in_s, busiest_in, out=np.zeros_like(in_s, dtype=float), where=busiest_in > 0)
        return cls(raw * out_scale[None, :, None], raw * in_scale[None, None, :], n_chunks)

    def finish(self, starts_s: Floats, free_s: Floats) -> tuple[Floats, Floats, Floats]:
        """Ends of an exchange.

        Args:
            starts_s: [R] when each sender begins.
            free_s: [2, R] when each receiving port is free.

        Returns:
            [R] when each sender is through, [R] when each receiver has everything, [2, R] when each receiving port is free.
        """
        n, free = len(starts_s), free_s.copy()
        # the k-th destination of a source, and which one a destination is for each source
        order = (np.arange(n)[:, None] + np.arange(1, n + 1)[None, :]) % n
        place = (np.arange(n)[None, :] - np.arange(n)[:, None] - 1) % n
        sent = np.repeat(starts_s[None, :], 2, axis=0)
        received = np.zeros(n)
        for port in (0, 1):
            if not self.out_s[port].any():
                continue
            chunk = np.tile(np.take_along_axis(self.out_s[port], order, axis=1) / self.n_chunks, (1, self.n_chunks))
            ends = starts_s[:, None] + np.cumsum(chunk, axis=1)
            sent[port] = ends[:, -1]
            took, last, through = self._take_in(port, ends - chunk, ends, place, free[port])
            free[port] = through
            received = np.where(took, np.maximum(received, np.maximum(last, through)), received)
        return sent.max(axis=0), received, free

    def _take_in(
        self, port: int, begins: Floats, ends: Floats, place: NDArray[np.intp], free_s: Floats
    ) -> tuple[NDArray[np.bool_], Floats, Floats]:
        """What receivers of a port do, [R] each: whether they get anything, when it was sent, when they are through."""
        n, m = len(free_s), self.n_chunks
        take = np.repeat(self.in_s[port].T / m, m, axis=1)
        # [source, round, destination] to [destination, source and round]
        arrive, leave = (
            np.take_along_axis(x.reshape(n, m, n), place[:, None, :], axis=2).transpose(2, 0, 1).reshape(n, n * m)
            for x in (begins, ends)
        )
        is_none = take <= 0.0
        arrive[is_none], leave[is_none] = -np.inf, -np.inf
        first = np.argsort(arrive, axis=1, kind="stable")
        arrive, take = np.take_along_axis(arrive, first, axis=1), np.take_along_axis(take, first, axis=1)
        # queue of known jobs: each ends at max over earlier j of (begin_j + work from j on), and not before it was sent
        done = np.cumsum(take, axis=1)
        latest = np.maximum.accumulate(np.maximum(arrive, free_s[:, None]) - (done - take), axis=1)
        return (take[:, -1] > 0.0), leave.max(axis=1), (latest + done)[:, -1]
