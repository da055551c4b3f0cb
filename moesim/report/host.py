"""Where times leave the host out, a report says so where it cannot be missed: such devices look faster than they serve."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moesim.study.results import RunResult

__all__ = ["HOST_TITLE", "host_note", "run_host_note"]

HOST_TITLE = "Host time is not counted"
#: What stands behind times of serving stacks, whose host was measured (`moesim.study.uncertainty.Basis`).
_SERVED = ("serving runs that no fit saw", "serving runs on other GPUs")


def host_note(bases: Iterable[str], where: str) -> str:
    """What is left out and what that means, if any of the results' bases is without a serving stack; empty otherwise.

    >>> host_note(["serving runs that no fit saw"], "h100_sxm")
    ''
    >>> host_note(["assumption only"], "mi300x")[:51]
    'No serving stack stands behind times on mi300x: the'
    """
    if all(basis in _SERVED for basis in bases):
        return ""
    return (
        f"No serving stack stands behind times on {where}: they are those of operators on the device, without the host's "
        "launches and scheduling. A server is slower than that, most so in short decode steps, so devices whose stack was "
        "measured look slower beside it than they are."
    )


def run_host_note(result: RunResult) -> str:
    """The note on a run's times; empty where its stack was measured or nothing runs."""
    return host_note(
        (p.interval_basis for s in result.systems for p in s.points if p.outcome == "ok"), result.device_name
    )
