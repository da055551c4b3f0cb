"""Loss by a published scaling law, from active parameters, experts and training tokens.

Letters: N active parameters, E experts per chosen expert (routed / top-k), D training tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError

__all__ = ["LAWS", "LAW_SOURCES", "clark_hoffmann_loss", "dense_equivalent", "loss_of"]

Floats = NDArray[np.float64]
# Clark et al. 2022, Unified Scaling Laws for Routed Language Models (arXiv 2202.01169), Table 3, S-BASE; logarithms to base 10.
_A, _B, _C, _E_START, _E_MAX = -0.082, -0.108, 0.009, 1.847, 314.478
# Hoffmann et al. 2022, Training Compute-Optimal Large Language Models (arXiv 2203.15556), section 3.3, approach 3.
_FLOOR, _N_SCALE, _N_POWER, _D_SCALE, _D_POWER = 1.69, 406.4, 0.34, 410.7, 0.28


def dense_equivalent(n_active: Any, n_experts_per_choice: Any) -> Floats:
    """Parameters of the dense model of equal loss, equation 11 of Clark et al. (2022).

    Assumes: the law, fitted for top-1 up to 1.3B active parameters and 512 experts, holds beyond; the benefit of experts ends at
    N near 10^12. Not below N.
    """
    log_n = np.log10(n_active)
    log_e, log_one = np.log10(_saturated(n_experts_per_choice)), np.log10(_saturated(1.0))
    loss = _A * log_n + _B * log_e + _C * log_n * log_e
    found = 10.0 ** ((loss - _B * log_one) / (_A + _C * log_one))
    return np.asarray(np.maximum(found, n_active))


def _saturated(n: Any) -> Any:
    return 1.0 / (1.0 / (n - 1.0 + 1.0 / (1.0 / _E_START - 1.0 / _E_MAX)) + 1.0 / _E_MAX)


def clark_hoffmann_loss(n_active: Any, n_experts_per_choice: Any, train_tokens: Any) -> Floats:
    """L = 1.69 + 406.4 / N'^0.34 + 410.7 / D^0.28 with N' the dense equivalent of an MoE (nats per token).

    Source: Hoffmann et al. (2022) for dense models, Clark et al. (2022) for what experts are worth. That the two may be joined is
    an assumption, as is every use beyond 1.3B active parameters.
    """
    n = dense_equivalent(n_active, n_experts_per_choice)
    return np.asarray(_FLOOR + _N_SCALE / n**_N_POWER + _D_SCALE / np.asarray(train_tokens, dtype=float) ** _D_POWER)


LAWS = {"clark_2022_hoffmann_2022": clark_hoffmann_loss}
LAW_SOURCES = {
    "clark_2022_hoffmann_2022": (
        "Hoffmann et al. 2022 (arXiv 2203.15556, approach 3) over the dense equivalent of Clark et al. 2022 (arXiv 2202.01169, "
        "Table 3, S-BASE); joining them, and going beyond 1.3B active parameters, is an assumption"
    ),
}


def loss_of(name: str, n_active: Any, n_experts_per_choice: Any, train_tokens: Any) -> Floats:
    """Loss by the law of this name.

    Raises:
        InputError: no such law.
    """
    if name not in LAWS:
        raise InputError("no such scaling law", field="law.name", value=name, allowed=", ".join(LAWS))
    return LAWS[name](n_active, n_experts_per_choice, train_tokens)
