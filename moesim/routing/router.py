"""The router model: which experts T tokens choose in L layers, one by one or as counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.routing.alias import build_alias
from moesim.routing.inclusion import inclusion_from_weights
from moesim.routing.sampler import LayerLaw, draw_layer, fresh_words, link_layers, link_tokens
from moesim.specs.base import Origin

__all__ = ["RouterModel"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class RouterModel:
    """Where tokens go: per-layer selection weights, and how choices depend on the token before and the layer above.

    A token draws K experts one after another without replacement with probability proportional to the weights
    (Plackett-Luce, the law of top-k over log weights with Gumbel noise). With `topk_group` < `n_group`, the first
    `topk_group` groups that a token touches are the only ones it uses: groups ranked by their best expert, DeepSeek-V2's
    rule; V3's (sum of the best two) gives the same loads within sampling noise, see docs/routing.md.

    Attributes:
        weights: [n_domains, L, E], rows sum to 1.
        domain_shares: [n_domains], share of tokens of each domain; every token draws its domain independently.
        repeat_prob: [L], probability that a choice repeats the previous token's by copying.
        repeat_joint_frac: [L], share of tokens whose K places repeat together rather than each on its own.
        layer_coupling: [L, K], probability that a choice is made with the randomness of the layer above.
        is_balanced: round robin without randomness instead of all this.
    """

    n_layers: int
    n_experts: int
    top_k: int
    weights: Floats
    domain_shares: Floats
    n_group: int = 1
    topk_group: int = 1
    domain_names: tuple[str, ...] = ("all",)
    repeat_prob: Floats = field(default_factory=lambda: np.zeros(1))
    repeat_joint_frac: Floats = field(default_factory=lambda: np.zeros(1))
    layer_coupling: Floats = field(default_factory=lambda: np.zeros((1, 1)))
    is_balanced: bool = False
    origin: Origin = Origin.ASSUMPTION
    source: str = "synthetic router (assumption)"
    _kept: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        fitting = {
            "repeat_prob": np.broadcast_to(self.repeat_prob, (self.n_layers,)),
            "repeat_joint_frac": np.broadcast_to(self.repeat_joint_frac, (self.n_layers,)),
            "layer_coupling": np.broadcast_to(self.layer_coupling, (self.n_layers, self.top_k)),
        }
        for name, value in fitting.items():
            object.__setattr__(self, name, value)
        for array in (self.weights, self.domain_shares):
            array.flags.writeable = False

    @property
    def popularity(self) -> Floats:
        """Selection weights of all domains together, [L, E]; rows sum to 1."""
        mixed: Floats = np.einsum("d,dle->le", self.domain_shares, self.weights)
        return mixed

    @property
    def is_coupled(self) -> bool:
        """Whether tokens or layers depend on each other."""
        return bool(self.repeat_prob.any() or self.layer_coupling.any())

    def inclusion_probability(self) -> Floats:
        """P(expert e is among a token's K), [L, E]; each row sums to K.

        Exact without groups (numerical integration, about 1e-6); with node-limited groups by the approximation of
        `moesim.routing.groups`.
        """
        if "inclusion" not in self._kept:
            self._kept["inclusion"] = self._inclusion()
        kept: Floats = self._kept["inclusion"]
        return kept

    def domain_inclusion(self) -> Floats:
        """The same for each domain: [n_domains, L, E]."""
        if self.is_balanced:
            return np.full(self.weights.shape, self.top_k / self.n_experts)
        flat = self.weights.reshape(-1, self.n_experts)
        unique, back = np.unique(flat, axis=0, return_inverse=True)
        rows: Floats = inclusion_from_weights(unique, self.top_k)[back.ravel()].reshape(self.weights.shape)
        return rows

    def _inclusion(self) -> Floats:
        mixed: Floats = np.einsum("d,dle->le", self.domain_shares, self.domain_inclusion())
        mixed.flags.writeable = False
        return mixed

    def expected_distinct(self, n_tokens: Any) -> Floats:
        """Expected number of distinct experts that T tokens hit in each layer: sum over e of 1 - (1 - p_e)^T.

        Args:
            n_tokens: T, a number or an array of any shape.

        Returns:
            [..., L].

        Assumes: tokens independent of each other (a decode batch); balanced routing covers min(E, T K).
        """
        t = np.asarray(n_tokens, dtype=np.float64)[..., None]
        if self.is_balanced:
            covered: Floats = np.minimum(t * self.top_k, self.n_experts) * np.ones(self.n_layers)
            return covered
        miss = np.log1p(-np.minimum(self.inclusion_probability(), 1 - 1e-15))
        result: Floats = -np.expm1(t[..., None] * miss).sum(axis=-1)
        return result

    def sample_tokens(
        self, n_tokens: int, rng: np.random.Generator, layers: Sequence[int] | None = None
    ) -> NDArray[np.int16]:
        """The experts of each token in each layer, in order of choice: [n_tokens, n_layers or len(layers), K].

        Tokens are consecutive tokens of a sequence where the model has temporal repeats, else independent.

        Args:
            n_tokens: how many.
            rng: source of randomness; the same state gives the same tokens.
            layers: which MoE layers (0-based), ascending; all by default.
        """
        wanted = list(range(self.n_layers)) if layers is None else list(layers)
        if any(not 0 <= layer < self.n_layers for layer in wanted):
            raise InputError("no such layer", field="layers", value=wanted, allowed=f"0..{self.n_layers - 1}")
        place = {layer: i for i, layer in enumerate(wanted)}
        out = np.empty((n_tokens, len(wanted), self.top_k), np.int16)
        for layer, chosen in self._choices(n_tokens, rng, max(wanted, default=-1) + 1):
            if layer in place:
                out[:, place[layer], :] = chosen.T
        return out

    def sample_counts(self, n_tokens: int, rng: np.random.Generator) -> Ints:
        """Tokens per expert: [L, E], rows sum to T x K; the law (and, for one seed, the value) of counting `sample_tokens`."""
        return self.sample_rank_counts([n_tokens], rng)[:, 0, :]

    def sample_rank_counts(self, tokens_per_rank: Sequence[int] | NDArray[Any], rng: np.random.Generator) -> Ints:
        """Tokens per expert from each source rank: [L, R, E]; [l, r] sums to tokens_per_rank[r] x K."""
        per_rank = np.asarray(tokens_per_rank, dtype=np.int64)
        if per_rank.ndim != 1 or (per_rank < 0).any():
            raise InputError("tokens per rank must be a list of counts", field="tokens_per_rank", value=per_rank.tolist())
        n_ranks, n_tokens = len(per_rank), int(per_rank.sum())
        out = np.empty((self.n_layers, n_ranks, self.n_experts), np.int64)
        offset = np.repeat(np.arange(n_ranks) * self.n_experts, per_rank)
        for layer, chosen in self._choices(n_tokens, rng, self.n_layers):
            cells = np.bincount((chosen + offset).ravel(), minlength=n_ranks * self.n_experts)
            out[layer] = cells.reshape(n_ranks, self.n_experts)
        return out

    def _choices(self, n_tokens: int, rng: np.random.Generator, n_layers: int) -> Iterator[tuple[int, NDArray[np.int32]]]:
        """Layer after layer, the choices of all tokens: [K, n_tokens]."""
        shape = (self.top_k, n_tokens)
        if self.is_balanced:
            for layer in range(n_layers):
                yield layer, self._round_robin(n_tokens, layer)
            return
        domains = None
        if len(self.domain_shares) > 1:
            domains = rng.choice(len(self.domain_shares), n_tokens, p=self.domain_shares).astype(np.intp)
        above = None
        for layer in range(n_layers):
            words = fresh_words(shape, rng)
            if above is not None and self.layer_coupling[layer].any():
                words = link_layers(words, above, self.layer_coupling[layer], rng)
            if self.repeat_prob[layer] > 0 and n_tokens > 1:
                repeat, joint = float(self.repeat_prob[layer]), float(self.repeat_joint_frac[layer])
                words = link_tokens(words, repeat, joint, rng)
            above = words
            yield layer, draw_layer(self._law(layer), words, rng, domains)

    def _round_robin(self, n_tokens: int, layer: int) -> NDArray[np.int32]:
        start = np.arange(n_tokens) * self.top_k + layer * self.top_k
        return ((start[None, :] + np.arange(self.top_k)[:, None]) % self.n_experts).astype(np.int32)

    def _law(self, layer: int) -> LayerLaw:
        laws: dict[int, LayerLaw] = self._kept.setdefault("laws", {})
        if layer not in laws:
            weights = np.ascontiguousarray(self.weights[:, layer, :])
            laws[layer] = LayerLaw(weights, build_alias(weights), self.top_k, self.n_group, self.topk_group)
        return laws[layer]
