"""Loss by published scaling laws, from active parameters, experts and training tokens.

Letters: N active parameters, E experts per chosen expert (routed / top-k), D training tokens. Coefficients were checked against
the papers or quotations of them: Clark et al. Table 3, Besiroglu et al. Table 1, Ludziejewski et al. Tables 3 and 4, Hoffmann et
al. section 3.3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError

__all__ = ["LAWS", "Law", "dense_equivalent", "joint_loss", "law_of", "outside_words"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Law:
    """A law: its words, where it comes from, and the largest values (N, E, D) among the runs that it was fitted to."""

    words: str
    source: str
    most: tuple[float, float, float]
    loss: Callable[[Any, Any, Any], Floats]


@dataclass(frozen=True, slots=True)
class _Chinchilla:
    """L = floor + a / N^alpha + b / D^beta (nats per token)."""

    floor: float
    a: float
    alpha: float
    b: float
    beta: float

    def __call__(self, n: Any, train_tokens: Any) -> Floats:
        d = np.asarray(train_tokens, dtype=float)
        return np.asarray(self.floor + self.a / n**self.alpha + self.b / d**self.beta)


# Hoffmann et al. 2022, Training Compute-Optimal Large Language Models (arXiv 2203.15556), approach 3, as rounded in the paper.
_HOFFMANN = _Chinchilla(1.69, 406.4, 0.34, 410.7, 0.28)
# Besiroglu et al. 2024, Chinchilla Scaling: A replication attempt (arXiv 2404.10102): the same runs, fitted again.
_BESIROGLU = _Chinchilla(1.8172, 482.01, 0.3478, 2085.43, 0.3658)
# Clark et al. 2022, Unified Scaling Laws for Routed Language Models (arXiv 2202.01169), Table 3, S-BASE; logarithms to base 10.
_A, _B, _C, _CLARK_START, _CLARK_MAX = -0.082, -0.108, 0.009, 1.847, 314.478
# Ludziejewski et al. 2025, Joint MoE Scaling Laws (arXiv 2502.05172), Table 3.
_JOINT = {"a": 35.91, "alpha": -0.1889, "delta": -0.2285, "gamma": 0.0098, "b": 35.98, "beta": -0.1775, "omega": 0.5529,
          "zeta": -0.0259, "c": 1.3637}  # fmt: skip
_JOINT_START, _JOINT_MAX = 2.0732, 290.4521


def dense_equivalent(n_active: Any, n_experts_per_choice: Any) -> Floats:
    """Parameters of the dense model of equal loss, equation 11 of Clark et al. (2022).

    Assumes: the law, fitted for top-1 up to 1.3B active parameters and 512 experts, holds beyond; the benefit of experts ends at
    N near 10^12. Not below N.
    """
    log_n = np.log10(n_active)
    log_e, log_one = (np.log10(_saturated(x, _CLARK_START, _CLARK_MAX)) for x in (n_experts_per_choice, 1.0))
    loss = _A * log_n + _B * log_e + _C * log_n * log_e
    found = 10.0 ** ((loss - _B * log_one) / (_A + _C * log_one))
    return np.asarray(np.maximum(found, n_active))


def _saturated(n: Any, start: float, most: float) -> Any:
    """Experts that count: `start` of one, never more than `most`."""
    return 1.0 / (1.0 / (n - 1.0 + 1.0 / (1.0 / start - 1.0 / most)) + 1.0 / most)


def joint_loss(n_active: Any, n_experts_per_choice: Any, train_tokens: Any) -> Floats:
    """L = a E'^delta N^(alpha + gamma ln E') + b E'^omega D^(beta + zeta ln E') + c with E' the experts that count.

    Source: Ludziejewski et al. (2025), equation 6 and Table 3: one law for dense models and MoEs.
    """
    p, log_n, log_d = _JOINT, np.log(n_active), np.log(np.asarray(train_tokens, dtype=float))
    log_e = np.log(_saturated(n_experts_per_choice, _JOINT_START, _JOINT_MAX))
    by_size = np.log(p["a"]) + p["delta"] * log_e + (p["alpha"] + p["gamma"] * log_e) * log_n
    by_data = np.log(p["b"]) + p["omega"] * log_e + (p["beta"] + p["zeta"] * log_e) * log_d
    return np.asarray(np.exp(by_size) + np.exp(by_data) + p["c"])


def _over_clark(dense: _Chinchilla) -> Callable[[Any, Any, Any], Floats]:
    def loss(n_active: Any, n_experts_per_choice: Any, train_tokens: Any) -> Floats:
        return dense(dense_equivalent(n_active, n_experts_per_choice), train_tokens)

    return loss


_JOINED = "over the dense equivalent of Clark et al. 2022 (arXiv 2202.01169, Table 3, S-BASE); joining the two is an assumption"
LAWS = {
    "clark_2022_hoffmann_2022": Law(
        "Hoffmann over Clark", f"Hoffmann et al. 2022 (arXiv 2203.15556, approach 3) {_JOINED}", (1.3e9, 512.0, 5e11),
        _over_clark(_HOFFMANN),
    ),
    "clark_2022_besiroglu_2024": Law(
        "Besiroglu over Clark", f"Besiroglu et al. 2024 (arXiv 2404.10102; Hoffmann et al. fitted again) {_JOINED}",
        (1.3e9, 512.0, 5e11), _over_clark(_BESIROGLU),
    ),
    "joint_2025": Law(
        "the joint MoE law", "Ludziejewski et al. 2025 (arXiv 2502.05172, Table 3), one fit to dense models and MoEs",
        (2.7e9, 32.0, 8e10), joint_loss,
    ),
}  # fmt: skip


def law_of(name: str, field: str = "law.name") -> Law:
    """The law of this name.

    Raises:
        InputError: no such law.
    """
    if name not in LAWS:
        raise InputError("no such scaling law", field=field, value=name, allowed=", ".join(LAWS))
    return LAWS[name]


def outside_words(law: Law, n_active: Floats, n_experts_per_choice: Floats, train_tokens: Floats) -> str | None:
    """How far cases lie beyond the runs that a law was fitted to, in words; None where none does."""
    units = ("active parameters", "experts per chosen one", "training tokens")
    beyond = []
    for values, most, unit in zip((n_active, n_experts_per_choice, train_tokens), law.most, units, strict=True):
        known = values[np.isfinite(values)]
        if len(known) and known.max() > most:
            beyond.append(f"{(known > most).mean():.0%} of cases beyond its {_amount(most)} {unit}")
    return ", ".join(beyond) or None


def _amount(value: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
