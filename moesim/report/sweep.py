"""A sweep's report: placeholder until its page is there."""

from __future__ import annotations

from pathlib import Path

from moesim.study.sweep import SweepResult

__all__ = ["write_sweep"]


def write_sweep(result: SweepResult, out_dir: Path) -> tuple[str, ...]:
    """Write tables."""
    frame = result.to_frame()
    frame.to_csv(out_dir / "results.csv", index=False)
    return ()
