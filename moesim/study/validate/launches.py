"""How the engines of public benchmark runs were launched: settings that clients notice, from the published scripts.

A setting of a script is a fact with a source, not a fit. Rows say their own settings in the columns `budget_tokens` and
`poll_passes`; what neither says is the stack's default.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache

from pydantic import Field

from moesim.specs.base import Frozen
from moesim.specs.catalog import data_dir
from moesim.specs.load import read_yaml, validate
from moesim.study.kernels import generation_of
from moesim.study.validate.table import RunRow

__all__ = ["Launch", "launch_of"]

FILE = "hardware/calibrations/launches.yaml"
#: Tokens of a pass that servers allow by default on GPUs of 80 GB and more (vLLM's API server, TensorRT-LLM; SGLang's prompt
#: chunks on Hopper, and on Blackwell).
DEFAULT_BUDGET = {"sglang_blackwell": 16384}
BUDGET = 8192


@dataclass(frozen=True, slots=True)
class Launch:
    """Settings of an engine.

    `budget_tokens` of a pass; `poll_passes` decode passes between two looks at new requests (after a pass with prompts the
    scheduler looks at once); prompts wait for up to `hold_passes` until a pass holds `hold_frac` of the budget;
    `stream_tokens` in the first chunk that a client is sent; `fuses_norms` unless norms have kernels of their own where the
    stack's default runs them in those of all-reduces (`study.kernels.FUSED_NORMS`).
    """

    budget_tokens: int = BUDGET
    poll_passes: int = 1
    hold_passes: int = 0
    hold_frac: float = 0.0
    stream_tokens: float = 1.0
    fuses_norms: bool = True


class _When(Frozen):
    """What a row must be like; what is not said fits any row."""

    model: str = "*"
    generation: str = "*"
    precision: str = "*"
    client: str = "*"
    tp_size: tuple[int, ...] = ()
    isl: tuple[int, ...] = ()
    osl: tuple[int, ...] = ()
    concurrency_from: int = 0
    concurrency_below: int = 1 << 30

    def fits(self, row: RunRow) -> bool:
        known = "documented" if row.warm_up in ("yes", "no") else "undocumented"
        patterns = (
            (row.model.lower(), self.model), (generation_of(row.device), self.generation), (row.precision, self.precision),
            (known, self.client),
        )  # fmt: skip
        if not all(fnmatchcase(value, pattern) for value, pattern in patterns):
            return False
        lists = ((row.tp_size, self.tp_size), (row.isl, self.isl), (row.osl, self.osl))
        return self.concurrency_from <= row.concurrency < self.concurrency_below and all(
            not allowed or value in allowed for value, allowed in lists
        )


class _Setting(Frozen):
    """One script, or one branch of it; the budget is the larger of `budget_tokens` and the sum of the others."""

    backend: str
    when: _When = _When()
    source: str = Field(min_length=1)
    budget_tokens: int = Field(default=0, ge=0)
    per_input: float = Field(default=0.0, ge=0.0)
    per_sequence: float = Field(default=0.0, ge=0.0)
    spare_tokens: int = Field(default=0, ge=0)
    poll_passes: int = Field(default=1, ge=1)
    hold_passes: int = Field(default=0, ge=0)
    hold_frac: float = Field(default=0.0, ge=0.0, le=1.0)
    fuses_norms: bool = True

    def launch(self, row: RunRow) -> Launch:
        grown = self.per_input * row.isl + self.per_sequence * row.concurrency + self.spare_tokens
        budget = max(self.budget_tokens, int(grown)) or _default_budget(row)
        return Launch(
            budget, self.poll_passes, self.hold_passes, self.hold_frac, fuses_norms=self.fuses_norms
        )  # fmt: skip


class _File(Frozen):
    launches: tuple[_Setting, ...]


@lru_cache(maxsize=1)
def _settings() -> tuple[_Setting, ...]:
    path = data_dir() / FILE
    return validate(_File, read_yaml(path), str(path)).launches


def _default_budget(row: RunRow) -> int:
    return DEFAULT_BUDGET.get(f"{row.backend}_{generation_of(row.device)}", BUDGET)


def launch_of(row: RunRow) -> Launch:
    """The row's own settings, over those of the first published script that fits it, over the stack's defaults."""
    found = next((s.launch(row) for s in _settings() if s.backend == row.backend and s.when.fits(row)), None)
    found = found or Launch(_default_budget(row))
    return Launch(
        found.budget_tokens if row.budget_tokens is None else max(1, int(row.budget_tokens)),
        found.poll_passes if row.poll_passes is None else max(1, int(row.poll_passes)),
        found.hold_passes, found.hold_frac, 1.0 if row.stream_tokens is None else row.stream_tokens, found.fuses_norms,
    )  # fmt: skip
