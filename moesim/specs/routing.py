"""Who goes where, as a user states it: the router's behaviour, capacity and placement."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, Self

from pydantic import Field, model_validator

from moesim.specs.base import Fraction, Frozen, Natural, Number

__all__ = ["PlacementKind", "PlacementSpec", "RouterFamily", "RoutingSpec"]


class RouterFamily(StrEnum):
    """Families of expert popularity."""

    BALANCED = "balanced"
    UNIFORM = "uniform"
    ZIPF = "zipf"
    LOGNORMAL = "lognormal"
    DIRICHLET = "dirichlet"
    POPULARITY = "popularity"
    PRESET = "preset"
    TRACE = "trace"


#: Beyond these a few experts have all the load and inclusion probabilities lose their precision, or (dirichlet) all are alike.
_SKEWS = {
    RouterFamily.ZIPF: (0.0, 6.0), RouterFamily.LOGNORMAL: (0.0, 6.0), RouterFamily.DIRICHLET: (0.03, 1e4),
}  # fmt: skip


class PlacementKind(StrEnum):
    """How experts are laid out over ranks."""

    CONTIGUOUS = "contiguous"
    STRIPED = "striped"
    GIVEN = "given"
    EPLB = "eplb"
    EPLB_GLOBAL = "eplb_global"
    TRIVIAL = "trivial"
    LOCALITY = "locality"


class PlacementSpec(Frozen):
    """Which rank holds which expert. `given` lists, per rank, the experts in its slots (the same for every layer).

    `trivial` fills slots in order and starts again at expert 0 in redundant ones. `locality` puts experts that are chosen
    together in one scale-up domain, by paths of `n_sampled_tokens` tokens: `home` is where a token is between layers (`fixed`: on
    its rank, as in attention-DP), `load_tolerance` how much more than the mean a domain may carry.
    """

    kind: PlacementKind = PlacementKind.CONTIGUOUS
    given: tuple[tuple[Natural, ...], ...] | None = None
    home: Literal["fixed", "moving"] = "fixed"
    load_tolerance: Number = Field(default=0.1, gt=0)
    n_sampled_tokens: int = Field(default=2048, ge=1, le=1_000_000)

    @model_validator(mode="after")
    def _fields_match_kind(self) -> Self:
        if (self.kind is PlacementKind.GIVEN) != (self.given is not None):
            raise ValueError("given: list the experts of each rank exactly when kind is 'given'")
        # by value, not by whether they were given: a record that is read back names every field
        fields = type(self).model_fields
        own = [n for n in ("home", "load_tolerance", "n_sampled_tokens") if getattr(self, n) != fields[n].default]
        if own and self.kind is not PlacementKind.LOCALITY:
            raise ValueError(f"{', '.join(sorted(own))}: only for kind 'locality'")
        return self


class RoutingSpec(Frozen):
    """The router model of a system.

    `skew` is the exponent of zipf (0 is uniform), the sigma of lognormal, or the concentration of dirichlet (small is skewed).
    `temporal_repeat` is the extra probability that a token's first choice repeats the previous token's; `layer_coupling`
    (0..1) is the probability that a choice is made with the randomness of the layer above. None is a preset's own figure, and
    zero for all other families. `domain` picks one domain of a preset or trace; None is an even mixture, in which each token
    draws its domain. `capacity_factor` None means dropless.
    """

    family: RouterFamily = RouterFamily.UNIFORM
    skew: Number | None = Field(default=None, gt=0)
    popularity: tuple[Number, ...] | None = Field(default=None, min_length=1)
    preset: str | None = None
    domain: str | None = None
    trace: str | None = None
    temporal_repeat: Fraction | None = None
    layer_coupling: Fraction | None = None
    capacity_factor: Number | None = Field(default=None, gt=0, le=1e6)
    placement: PlacementSpec = PlacementSpec()

    @property
    def label(self) -> str:
        """The family with its number or name, as on the command line."""
        detail = self.skew if self.skew is not None else self.preset or self.trace
        return self.family.value if detail is None else f"{self.family.value}:{detail}"

    @model_validator(mode="after")
    def _family_has_what_it_needs(self) -> Self:
        needs = {
            RouterFamily.ZIPF: "skew", RouterFamily.LOGNORMAL: "skew", RouterFamily.DIRICHLET: "skew",
            RouterFamily.POPULARITY: "popularity", RouterFamily.PRESET: "preset", RouterFamily.TRACE: "trace",
        }  # fmt: skip
        need = needs.get(self.family)
        for name in ("skew", "popularity", "preset", "trace"):
            if (getattr(self, name) is not None) != (name == need):
                must = "is needed by" if name == need else "does not belong to"
                raise ValueError(f"{name}: {must} family {self.family.value!r}")
        low, high = _SKEWS.get(self.family, (0.0, 0.0))
        if self.skew is not None and not low <= self.skew <= high:
            raise ValueError(
                f"skew: {self.skew:g} is outside {low:g}..{high:g}, what family {self.family.value!r} takes"
            )
        if self.popularity is not None and (min(self.popularity) < 0 or sum(self.popularity) <= 0):
            raise ValueError("popularity: weights must not be negative and must not all be zero")
        return self
