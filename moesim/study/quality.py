"""How large a dense model must be to be as good as an MoE: two rules, neither of them a measurement of a given model."""

from __future__ import annotations

import math

from moesim.specs.model import ModelSpec
from moesim.specs.scenario import QualityRule

__all__ = ["dense_equivalent_params", "geometric_mean_params", "scaling_law_params"]

# Clark et al. 2022, Unified Scaling Laws for Routed Language Models (arXiv 2202.01169), Table 3, S-BASE; logarithms to base 10.
_A, _B, _C, _E_START, _E_MAX = -0.082, -0.108, 0.009, 1.847, 314.478


def geometric_mean_params(model: ModelSpec) -> float:
    """sqrt(active x total): a rule of thumb among practitioners (assumption), between the two counts by construction."""
    return math.sqrt(float(model.n_active_params) * float(model.n_params))


def scaling_law_params(model: ModelSpec) -> float:
    """Effective parameter count of Clark et al. 2022 (equation 11): the dense size of equal predicted loss.

    log L(N, E) = a log N + b log E' + c log N log E' + d, with E' saturating in E; N is taken as the active parameters and E as
    experts per chosen expert, routed / K.

    Assumes: the law, fitted for K = 1 up to 1.3B active parameters and 512 experts, holds beyond; it makes routing worth less
    as N grows (nothing at 10^12), so it is the cautious one of the two rules.
    """
    ffn = model.moe_ffn
    if ffn is None:
        return float(model.n_params)
    log_n = math.log10(model.n_active_params)
    log_e = math.log10(_saturated(ffn.n_routed_experts / ffn.num_experts_per_tok))
    log_one = math.log10(_saturated(1.0))
    loss = _A * log_n + _B * log_e + _C * log_n * log_e
    return float(10.0 ** ((loss - _B * log_one) / (_A + _C * log_one)))


def dense_equivalent_params(model: ModelSpec, rule: QualityRule) -> float:
    """Parameters of the dense model of equal quality under `rule`."""
    return geometric_mean_params(model) if rule is QualityRule.GEOMETRIC_MEAN else scaling_law_params(model)


def _saturated(n_experts: float) -> float:
    return 1.0 / (1.0 / (n_experts - 1.0 + 1.0 / (1.0 / _E_START - 1.0 / _E_MAX)) + 1.0 / _E_MAX)
