"""Routers fitted to measured or published loads: a sorted load curve by depth and domain, and how choices are coupled."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from moesim.errors import CatalogError, InputError, nearest
from moesim.routing.families import normal_scores
from moesim.routing.inclusion import weights_from_inclusion
from moesim.specs.base import Fraction, Frozen, Sourced
from moesim.specs.catalog import data_dir
from moesim.specs.load import read_yaml, validate

__all__ = ["RouterPreset", "load_preset", "preset_names"]

Floats = NDArray[np.float64]
Row = tuple[float, ...]
MAX_INCLUSION = 0.995


class DomainLoad(Frozen):
    """One domain's load curves: at each depth, load over mean at the knots, hottest expert first."""

    name: str
    load_over_mean: tuple[Row, ...]


class Repeats(Frozen):
    """Temporal repeats by depth: probability of a copied choice, and the share of tokens whose places repeat together."""

    domain: str
    repeat_prob: tuple[Fraction, ...]
    joint_frac: tuple[Fraction, ...]


class Coupling(Frozen):
    """Copy probability between the layers at two depths, of the first choice and of the others."""

    from_depth: Fraction
    to_depth: Fraction
    first: Fraction
    rest: Fraction


class RouterPreset(Sourced):
    """A fitted router. Depth runs from 0 (first MoE layer) to 1 (last); curves between depths are interpolated in logs.

    `knot_ranks` are ranks among `n_experts` experts. `lognormal_sigma` replaces the curves where only summary figures
    of the load are published: selection weights are then sorted log-normal. With `block_weights`, per depth what equal blocks
    of consecutive experts weigh against their mean, that is the spread inside each block, and nothing is interpolated.
    `domain_correlation` has, per depth, the lower triangle of the correlation of experts' loads between domains.
    `prompt_dispersion`: see `RouterModel`.
    """

    name: str
    model: str
    n_layers: int = Field(ge=1)
    n_experts: int = Field(ge=2)
    top_k: int = Field(ge=1)
    depths: tuple[Fraction, ...]
    knot_ranks: tuple[int, ...] = ()
    domains: tuple[DomainLoad, ...] = ()
    domain_correlation: tuple[Row, ...] = ()
    lognormal_sigma: tuple[float, ...] = ()
    block_weights: tuple[Row, ...] = ()
    repeat_depths: tuple[Fraction, ...] = ()
    repeats: tuple[Repeats, ...] = ()
    couplings: tuple[Coupling, ...] = ()
    pass_jitter: float | None = Field(default=None, ge=0)
    prompt_dispersion: float | None = Field(default=None, ge=0)
    note: str | None = None

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        n_depths, n_domains = len(self.depths), len(self.domains)
        if bool(self.domains) == bool(self.lognormal_sigma):
            raise ValueError("give either domains with load curves or lognormal_sigma")
        if self.lognormal_sigma and len(self.lognormal_sigma) != n_depths:
            raise ValueError(f"lognormal_sigma: needs {n_depths} values, one per depth")
        if self.block_weights and not (self.lognormal_sigma and len(self.block_weights) == n_depths):
            raise ValueError(f"block_weights: needs lognormal_sigma beside it, and {n_depths} rows, one per depth")
        if len({len(row) for row in self.block_weights}) > 1 or any(w <= 0 for row in self.block_weights for w in row):
            raise ValueError("block_weights: every row needs as many weights, all above 0")
        for domain in self.domains:
            if len(domain.load_over_mean) != n_depths or any(
                len(r) != len(self.knot_ranks) for r in domain.load_over_mean
            ):
                raise ValueError(f"domain {domain.name!r}: needs {n_depths} rows of {len(self.knot_ranks)} knots")
        pairs = n_domains * (n_domains - 1) // 2
        if self.domains and [len(row) for row in self.domain_correlation] != [pairs] * n_depths:
            raise ValueError(f"domain_correlation: needs {n_depths} rows of {pairs}")
        for repeat in self.repeats:
            if not len(repeat.repeat_prob) == len(repeat.joint_frac) == len(self.repeat_depths):
                raise ValueError(f"repeats of {repeat.domain!r}: need {len(self.repeat_depths)} values")
        return self

    @property
    def domain_names(self) -> tuple[str, ...]:
        """Domains that the load was fitted for."""
        return tuple(domain.name for domain in self.domains) or ("all",)

    def domain_index(self, domain: str | None) -> int | None:
        """Where a domain stands, None for the even mixture of all.

        Raises:
            InputError: no such domain in this preset.
        """
        if domain is None:
            return None
        if domain not in self.domain_names:
            raise InputError(f"preset {self.name!r} has no such domain", field="routing.domain", value=domain,
                             allowed=", ".join(self.domain_names))  # fmt: skip
        return self.domain_names.index(domain)

    def weights(self, n_layers: int, n_experts: int, top_k: int, rng: np.random.Generator) -> Floats:
        """Selection weights for a model of any size: [n_domains, L, E], heat given to random experts in each layer."""
        at = layer_depths(n_layers)
        if self.block_weights:
            return self._in_blocks(at, n_experts, rng)
        if self.lognormal_sigma:
            sigma = np.interp(at, self.depths, self.lognormal_sigma)
            sorted_rows = np.exp(sigma[:, None] * (normal_scores(n_experts) - normal_scores(n_experts)[0]))[None]
        else:
            sorted_rows = self._sorted_weights(at, n_experts, top_k)
        order = self._order(at, n_experts, rng)
        weights = np.empty_like(sorted_rows)
        np.put_along_axis(weights, order, sorted_rows, axis=2)
        result: Floats = weights / weights.sum(axis=2, keepdims=True)
        return result

    def _in_blocks(self, at: Floats, n_experts: int, rng: np.random.Generator) -> Floats:
        """Log-normal weights in random order inside each block, which together weigh what the block does: [1, L, E].

        Each layer is as uneven as the nearest one that was measured: means of two layers would be more even than either.

        Raises:
            InputError: experts that the blocks do not divide.
        """
        n_blocks = len(self.block_weights[0])
        if n_experts % n_blocks:
            raise InputError(f"preset {self.name!r} has {n_blocks} blocks of experts", field="routing.preset",
                             value=f"{n_experts} experts", allowed=f"a multiple of {n_blocks}")  # fmt: skip
        near = np.abs(at[:, None] - np.array(self.depths)).argmin(axis=1)
        sigma, block = np.array(self.lognormal_sigma)[near], np.array(self.block_weights)[near]
        scores = np.broadcast_to(normal_scores(n_experts // n_blocks), (len(at), n_blocks, n_experts // n_blocks))
        inside = np.exp(sigma[:, None, None] * rng.permuted(scores, axis=2))
        weights = (inside * (block / inside.sum(axis=2))[:, :, None]).reshape(1, len(at), n_experts)
        result: Floats = weights / weights.sum(axis=2, keepdims=True)
        return result

    def _sorted_weights(self, at: Floats, n_experts: int, top_k: int) -> Floats:
        """Weights, hottest first, [n_domains, L, E]: inverted at the measured depths and halfway, linear in logs between."""
        depths = np.array(self.depths)
        knots = np.unique(np.concatenate([depths, (depths[1:] + depths[:-1]) / 2]))
        curves = np.stack([self._curve(d, knots, n_experts) for d in range(len(self.domains))])
        inclusion = _to_inclusion(curves.reshape(-1, n_experts), top_k)
        log_weights = np.log(weights_from_inclusion(inclusion, top_k)).reshape(curves.shape)
        return np.stack([np.exp(_between(at, knots, rows)) for rows in log_weights])

    def _curve(self, domain: int, at: Floats, n_experts: int) -> Floats:
        """Load over mean of E experts, hottest first, in each layer: linear in logs over normal scores."""
        x = -normal_scores(self.n_experts)[np.array(self.knot_ranks) - 1]
        y = np.log(np.array(self.domains[domain].load_over_mean))
        to = -normal_scores(n_experts)
        low, high = (y[:, 1] - y[:, 0]) / (x[1] - x[0]), (y[:, -1] - y[:, -2]) / (x[-1] - x[-2])
        rows = np.stack([np.interp(to, x, row) for row in y])
        rows += np.minimum(to - x[0], 0.0) * low[:, None] + np.maximum(to - x[-1], 0.0) * high[:, None]
        curves: Floats = np.exp(_between(at, np.array(self.depths), rows))
        return curves

    def _order(self, at: Floats, n_experts: int, rng: np.random.Generator) -> NDArray[np.intp]:
        """Experts by heat, hottest first: [n_domains, L, E]; domains agree as far as their correlation says."""
        n_domains = len(self.domain_names)
        noise = rng.standard_normal((len(at), n_domains, n_experts))
        if n_domains > 1:
            triangles = _between(at, np.array(self.depths), np.array(self.domain_correlation))
            noise = np.stack([_root(_full(row, n_domains)) @ z for row, z in zip(triangles, noise, strict=True)])
        return np.argsort(-noise, axis=2).transpose(1, 0, 2)

    def repeat_of(self, n_layers: int, domain: str | None) -> tuple[Floats, Floats]:
        """Copy probability and joint share per layer: the domain's own, or those of `all` where it was not measured."""
        if not self.repeats:
            return np.zeros(n_layers), np.zeros(n_layers)
        chosen = [r for r in self.repeats if r.domain == domain] or [r for r in self.repeats if r.domain == "all"]
        at, depths = layer_depths(n_layers), np.array(self.repeat_depths)
        prob = np.mean([r.repeat_prob for r in chosen], axis=0)
        joint = np.mean([r.joint_frac for r in chosen], axis=0)
        return np.interp(at, depths, prob), np.interp(at, depths, joint)

    def coupling_of(self, n_layers: int, top_k: int) -> Floats:
        """Copy probability from the layer above, [L, K]: the n-th root of what holds over n layers.

        Assumes: copying is Markov over layers (only layers 7 or 8 apart were measured); beyond the last measured depth
        the nearest rate holds on.
        """
        coupling = np.zeros((n_layers, top_k))
        if not self.couplings:
            return coupling
        at = layer_depths(n_layers)
        for layer in range(1, n_layers):
            middle = (at[layer] + at[layer - 1]) / 2
            gap = min(self.couplings, key=lambda c: max(c.from_depth - middle, middle - c.to_depth, 0.0))
            # a step of the fitted model, whatever the number of layers: choices are kept per layer, not per depth
            n_steps = (gap.to_depth - gap.from_depth) * (self.n_layers - 1)
            coupling[layer, 0] = gap.first ** (1 / n_steps)
            coupling[layer, 1:] = gap.rest ** (1 / n_steps)
        return coupling


def layer_depths(n_layers: int) -> Floats:
    """Depth of each layer, 0..1."""
    return np.linspace(0.0, 1.0, n_layers) if n_layers > 1 else np.zeros(1)


def preset_names() -> tuple[str, ...]:
    """Names of the shipped router presets."""
    return tuple(sorted(path.stem for path in (data_dir() / "scenarios" / "routing").glob("*.yaml")))


@lru_cache(maxsize=16)
def load_preset(name: str) -> RouterPreset:
    """A shipped router preset by name.

    Raises:
        CatalogError: no such preset; nearest names are suggested.
    """
    path = data_dir() / "scenarios" / "routing" / f"{name}.yaml"
    if not re.fullmatch(r"[\w.+-]+", name) or not path.is_file():
        close = nearest(name, preset_names())
        hint = (
            f"did you mean {' or '.join(repr(c) for c in close)}?" if close else f"known: {', '.join(preset_names())}"
        )
        raise CatalogError("no router preset of this name", field="routing.preset", value=name, hint=hint)
    return validate(RouterPreset, read_yaml(path), str(path))


def _between(at: Floats, depths: Floats, rows: Floats) -> Floats:
    """Rows interpolated over depth; held constant outside the measured depths."""
    right = np.clip(np.searchsorted(depths, at), 1, max(len(depths) - 1, 1))
    left = right - 1
    if len(depths) == 1:
        return np.repeat(rows, len(at), axis=0)
    part = np.clip((at - depths[left]) / (depths[right] - depths[left]), 0.0, 1.0)[:, None]
    result: Floats = rows[left] * (1 - part) + rows[right] * part
    return result


def _to_inclusion(load_over_mean: Floats, top_k: int) -> Floats:
    """Inclusion probabilities, at most `MAX_INCLUSION`, that sum to K in each row."""
    n_experts = load_over_mean.shape[1]
    p = load_over_mean * (top_k / n_experts)
    for _ in range(50):
        p = np.minimum(p, MAX_INCLUSION)
        room = np.where(p < MAX_INCLUSION, p, 0.0)
        short = top_k - p.sum(axis=1, keepdims=True)
        if np.abs(short).max() < 1e-9:
            break
        p = p + room * short / np.maximum(room.sum(axis=1, keepdims=True), 1e-12)
    inclusion: Floats = p
    return inclusion


def _full(triangle: Floats, n: int) -> Floats:
    matrix = np.zeros((n, n))
    matrix[np.tril_indices(n, -1)] = triangle
    result: Floats = matrix + matrix.T + np.eye(n)
    return result


def _root(correlation: Floats) -> Floats:
    """A matrix square root; directions of negative variance (rounding of the figures) are cut off."""
    values, vectors = np.linalg.eigh(correlation)
    result: Floats = vectors * np.sqrt(np.clip(values, 0.0, None))
    return result
