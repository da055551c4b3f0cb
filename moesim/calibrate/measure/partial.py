"""What was measured so far, one JSON line per point and round, so that a stopped profile can go on. No torch here."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from moesim.errors import InputError

__all__ = ["FORMAT_VERSION", "NO_ANSWER", "Partial", "Record"]

FORMAT_VERSION = 1
#: Start of the error of a point that ran out of time; it is tried again when the profile goes on.
NO_ANSWER = "no answer within"
# These decide what a number means; a partial profile of another device or setting cannot be continued.
_IDENTITY = ("format_version", "device", "device_name", "dtype", "n_threads", "seed", "layer", "torch_version")


@dataclass(frozen=True, slots=True)
class Record:
    """Samples of one point in one round, or why there are none.

    `samples_s` are seconds per call, `n_preempted[i]` involuntary context switches during sample i (empty where unknown),
    `stats` what was found out while measuring (load statistics, sizes of blocks that name their own).
    """

    key: str
    round: int
    samples_s: tuple[float, ...] = ()
    n_preempted: tuple[int, ...] = ()
    stats: Mapping[str, float] = field(default_factory=dict)
    peak_bytes: int = 0
    error: str = ""


class Partial:
    """The file of records; every append is one write of one whole line, flushed to disk."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        self.header = dict(header)
        self.records: list[Record] = []
        if path.is_file() and path.stat().st_size > 0:
            self._load()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._append({"header": self.header})

    def add(self, record: Record) -> None:
        """Keep a record."""
        self._append(asdict(record))
        self.records.append(record)

    def done(self) -> dict[str, int]:
        """Rounds recorded per point; a point that failed counts as done for good."""
        rounds: dict[str, int] = {}
        for record in self.records:
            rounds[record.key] = 1_000_000 if record.error else rounds.get(record.key, 0) + 1
        return rounds

    def _append(self, value: Mapping[str, Any]) -> None:
        line = json.dumps(value, separators=(",", ":")) + "\n"
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(handle, line.encode())
            os.fsync(handle)
        finally:
            os.close(handle)

    def _load(self) -> None:
        lines = self.path.read_bytes().split(b"\n")
        if lines[-1]:  # cut off in the middle of a write: drop the piece, on disk as well
            os.truncate(self.path, self.path.stat().st_size - len(lines[-1]))
        whole = [line for line in lines[:-1] if line]
        try:
            values = [json.loads(line) for line in whole]
            found = values[0]["header"] if values else None
            records = [_record(v) for v in values[1:]]
        except (ValueError, KeyError, TypeError):
            raise InputError(
                "is not a partial profile", file=str(self.path), hint="name another --out folder or remove the file"
            ) from None
        if found is None:
            self._append({"header": self.header})
            return
        for name in _IDENTITY:
            if found.get(name) != self.header.get(name):
                raise InputError(
                    "the profile in this folder was started differently", file=str(self.path), field=name,
                    value=self.header.get(name), allowed=str(found.get(name)), hint="name another --out folder",
                )  # fmt: skip
        self.records = [r for r in records if not r.error.startswith(NO_ANSWER)]


def _record(value: Mapping[str, Any]) -> Record:
    return Record(
        key=str(value["key"]),
        round=int(value["round"]),
        samples_s=tuple(float(s) for s in value["samples_s"]),
        n_preempted=tuple(int(n) for n in value["n_preempted"]),
        stats=dict(value["stats"]),
        peak_bytes=int(value["peak_bytes"]),
        error=str(value["error"]),
    )
