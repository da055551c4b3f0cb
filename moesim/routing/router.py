"""The router model: which experts T tokens choose in L layers, one by one or as counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.routing.draws import LARGE, LARGE_PER_RANK, choices, count_choices, normal_counts
from moesim.routing.groups import limited_inclusion
from moesim.routing.inclusion import inclusion_from_weights
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
    rule. V3's (sum of the best two) gives nearly the same loads: total variation below 1.5% at E 256, K 8 (tested).

    Attributes:
        weights: [n_domains, L, E], rows sum to 1.
        domain_shares: [n_domains], share of tokens of each domain; every token draws its domain independently.
        repeat_prob: [L], probability that a choice repeats the previous token's by copying.
        repeat_joint_frac: [L], share of tokens whose K places repeat together rather than each on its own.
        layer_coupling: [L, K], probability that a choice is made with the randomness of the layer above.
        pass_jitter: sigma of the log-normal factor by which each expert's weight differs from pass to pass (one call of a
            sampling method is one pass): tokens of one batch resemble each other more than tokens of different batches.
        prompt_dispersion: D, variance over squared mean of an expert's load from prompt to prompt, beside the chance of single
            tokens. `of_pass` turns it into jitter.
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
    pass_jitter: float = 0.0
    prompt_dispersion: float = 0.0
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
    def is_limited(self) -> bool:
        """Whether a token may use only some of the groups."""
        return self.topk_group < self.n_group

    def of_pass(self, n_prompts: float, tokens_per_prompt: float) -> RouterModel:
        """The router of a pass over P prompts of t tokens: sigma^2 = pass_jitter^2 + ln(1 + D (1 - 1/t) / P).

        The mean of P prompts varies by D / P; single tokens (t = 1, decode) are independent whatever their prompts are like.

        Assumes: prompts independent and of equal length; their experts' loads vary independently of each other.
        """
        spread = self.prompt_dispersion * (1.0 - 1.0 / max(tokens_per_prompt, 1.0)) / max(n_prompts, 1.0)
        if spread == 0.0 or self.is_balanced:
            return self
        of_it = replace(self, pass_jitter=float(np.sqrt(self.pass_jitter**2 + np.log1p(spread))))
        object.__setattr__(of_it, "_kept", self._kept)  # inclusion does not depend on jitter
        return of_it

    def inclusion_probability(self) -> Floats:
        """P(expert e is among a token's K), [L, E]; each row sums to K.

        Exact without groups (numerical integration, about 1e-6); with node-limited groups approximate, see
        `moesim.routing.groups`. `pass_jitter` is left out: it shifts no mean to first order.
        """
        kept: Floats = self.kept("inclusion", self._inclusion)
        return kept

    def kept(self, name: str, make: Callable[[], Any]) -> Any:
        """A value derived from this model, made once."""
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    def domain_inclusion(self) -> Floats:
        """The same for each domain: [n_domains, L, E]."""
        if self.is_balanced:
            return np.full(self.weights.shape, self.top_k / self.n_experts)
        flat = self.weights.reshape(-1, self.n_experts)
        return inclusion_of(flat, self.top_k, self.n_group, self.topk_group).reshape(self.weights.shape)

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

        One call is one pass. Tokens follow each other in a sequence where the model has temporal repeats, else they are
        independent of each other.

        Args:
            n_tokens: how many.
            rng: source of randomness; the same state gives the same tokens.
            layers: which MoE layers (0-based); all by default.

        Raises:
            InputError: no such layer, or a negative number of tokens.
        """
        wanted = list(range(self.n_layers)) if layers is None else list(layers)
        if any(not 0 <= layer < self.n_layers for layer in wanted):
            raise InputError("no such layer", field="layers", value=wanted, allowed=f"0..{self.n_layers - 1}")
        _check_tokens(n_tokens)
        place = {layer: i for i, layer in enumerate(wanted)}
        out = np.empty((n_tokens, len(wanted), self.top_k), np.int16)
        for start, layer, chosen in choices(self, n_tokens, rng, max(wanted, default=-1) + 1):
            if layer in place:
                out[start : start + chosen.shape[1], place[layer], :] = chosen.T
        return out

    def sample_counts(self, n_tokens: int, rng: np.random.Generator) -> Ints:
        """Tokens per expert in one pass: [L, E], rows sum to T x K; the law of counting `sample_tokens`.

        Equal to that count, for one seed, up to `moesim.routing.draws.LARGE` choices; normal approximation above.
        """
        counts: Ints = self.sample_rank_counts([n_tokens], rng)[:, 0, :]
        return counts

    def sample_rank_counts(
        self, tokens_per_rank: Sequence[int] | NDArray[Any], rng: np.random.Generator, dtype: type[Any] = np.int64
    ) -> NDArray[Any]:
        """Tokens per expert from each source rank in one pass: [L, R, E]; [l, r] sums to tokens_per_rank[r] x K.

        Many ranks make it large: `dtype` may be a narrower integer.

        Raises:
            InputError: not a list of counts.
        """
        per_rank = np.asarray(tokens_per_rank, dtype=np.int64)
        if per_rank.ndim != 1:
            raise InputError("must be one count per rank", field="tokens_per_rank", value=per_rank.shape)
        _check_tokens(int(per_rank.min(initial=0)))
        n_choices = int(per_rank.sum()) * self.n_layers * self.top_k
        if n_choices > LARGE and not self.is_balanced and per_rank.min() >= LARGE_PER_RANK:
            return normal_counts(self, per_rank, rng, dtype)
        return count_choices(self, per_rank, rng, dtype)


def inclusion_of(rows: Floats, top_k: int, n_group: int, topk_group: int) -> Floats:
    """Inclusion probabilities of rows of weights, [n_rows, E], with or without node-limited groups."""
    unique, back = np.unique(rows, axis=0, return_inverse=True)
    if topk_group < n_group:
        found = limited_inclusion(unique, top_k, n_group, topk_group)
    else:
        found = inclusion_from_weights(unique, top_k)
    return found[back.ravel()]


def _check_tokens(n_tokens: int) -> None:
    if n_tokens < 0:
        raise InputError("must not be negative", field="n_tokens", value=n_tokens)
