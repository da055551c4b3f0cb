"""Whom ranks waited for, in words and as a table."""

from __future__ import annotations

from moesim.report.document import Cell, Table
from moesim.report.text import number, plural, time_text
from moesim.study.results import AwaitedRow, RankDetail

__all__ = ["awaited_sentence", "awaited_table", "because_of"]

_WORDS = {
    "engine": "its slowed engine", "link": "its slowed link", "traffic": "bytes it sends or takes in",
    "experts": "its experts' load", "permute": "its experts' load", "attention": "its attention's load",
    "shared_experts": "its shared experts", "router": "its router", "norm": "its own tokens", "head": "its own tokens",
}  # fmt: skip
_N_SHOWN = 8


def because_of(row: AwaitedRow) -> str:
    """What made a rank late, the largest parts first, with their shares."""
    shares: dict[str, float] = {}
    for reason, seconds in row.reasons_s.items():
        words = _WORDS.get(reason, reason.replace("_", " "))
        shares[words] = shares.get(words, 0.0) + seconds / max(row.wait_s, 1e-30)
    large = sorted(((share, words) for words, share in shares.items() if share >= 0.05), reverse=True)
    if len(large) == 1:
        return large[0][1]
    return ", ".join(f"{words} {share:.0%}" for share, words in large[:3])


def awaited_sentence(ranks: RankDetail) -> str:
    """The rank most waited for, and why; empty where nobody waits for anybody."""
    if not ranks.awaited:
        return ""
    first = ranks.awaited[0]
    return (
        f"Most waited for is rank {first.rank}: {time_text(first.wait_s)} of the mean rank's time, in "
        f"{plural(first.n_layers, 'layer')}, because of {because_of(first)}."
    )


def awaited_table(ranks: RankDetail, key: str, caption: str) -> Table | None:
    """The ranks that others waited for most."""
    if not ranks.awaited:
        return None
    waited = sum(
        sum(seconds) / max(len(seconds), 1) for cause, seconds in ranks.idle_s.items() if cause.startswith("waiting")
    )
    rows = tuple(
        (
            Cell(str(row.rank)), Cell(number(row.wait_s * 1e3)), Cell(f"{row.wait_s / max(waited, 1e-30):.0%}"),
            Cell(str(row.n_layers)), Cell(because_of(row)),
        )
        for row in ranks.awaited[:_N_SHOWN]
    )  # fmt: skip
    return Table(
        key, caption, ("Rank waited for", "Waits for it (ms)", "Of all such waits", "Layers", "Because of"),
        (True, True, True, True, False), rows,
        "Idle time of engines, mean over all ranks, until the last rank came to an exchange or its bytes were out.",
        "Because of: what that rank had more of than the mean rank since the exchange before.",
    )  # fmt: skip
