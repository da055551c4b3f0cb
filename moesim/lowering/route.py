"""From a router model to the load of every MoE layer: drawn from a seed, or expected in closed form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.lowering.common import Pass, ceil_div
from moesim.lowering.load import ExpertLayout, MoeLoad, drawn_load, expected_load, uniform_load
from moesim.lowering.traffic import limited_to
from moesim.ops import Num
from moesim.routing import Placement, RouterModel, build_router, contiguous, expert_capacity, given, striped
from moesim.routing.eplb import eplb_global, eplb_hierarchical
from moesim.routing.locality import TokenHome, locality_placement
from moesim.routing.placement import trivial
from moesim.specs.model import ModelSpec, MoeFfn
from moesim.specs.parallel import ParallelSpec
from moesim.specs.routing import PlacementKind, PlacementSpec, RouterFamily, RoutingSpec

__all__ = ["Counts", "Routed", "fullest_source", "node_limited", "route_model", "tokens_per_source"]

Key = tuple[int, int]
Counts = Mapping[Key, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Routed:
    """Routers and placements of a model's MoE layers, one per distinct (experts, top-k) among them."""

    spec: RoutingSpec
    routers: dict[Key, RouterModel]
    placements: dict[Key, Placement]
    layers: dict[Key, tuple[int, ...]]

    def rows(self, ffn: MoeFfn, indices: tuple[int, ...]) -> list[int]:
        """Router rows of the model layers `indices`."""
        position = {layer: row for row, layer in enumerate(self.layers[_key(ffn)])}
        return [position[i] for i in indices]

    def expected(self, ffn: MoeFfn, indices: tuple[int, ...], step: Pass, layout: ExpertLayout) -> MoeLoad:
        """Expected load of the fullest rank, in closed form; tokens of the pass may be an array.

        Balanced routing fills no expert beyond a capacity factor of 1 or more.
        """
        key, family = _key(ffn), self.spec.family
        layout = node_limited(layout, ffn, self._placement(ffn, indices))
        tokens, source, factor = step.n_tokens, fullest_source(step, layout), self.spec.capacity_factor
        if family is RouterFamily.BALANCED or (family is RouterFamily.UNIFORM and factor is None):
            n_slots, balanced = float(self.placements[key].n_slots), family is RouterFamily.BALANCED
            load = uniform_load(tokens, n_slots, float(key[1]), layout, source, balanced=balanced)
            return load if n_slots == key[0] else replace(load, n_experts=float(key[0]))
        inclusion = self.routers[key].inclusion_probability()[self.rows(ffn, indices)]
        capacity = None if factor is None else ceil_div(tokens * (factor * key[1]), float(key[0]))
        return expected_load(inclusion, tokens, self._placement(ffn, indices), layout, source, capacity)

    def draw(self, step: Pass, layout: ExpertLayout, rng: np.random.Generator) -> Counts:
        """Every token's experts in every layer, as counts [L, source ranks, E] in 32 bits."""
        tokens = tokens_per_source(step, layout)
        routers = {key: r.of_pass(float(step.batch), float(step.new_tokens)) for key, r in self.routers.items()}
        return {key: router.sample_rank_counts(tokens, rng, np.int32) for key, router in routers.items()}

    def drawn(
        self,
        ffn: MoeFfn,
        indices: tuple[int, ...],
        step: Pass,
        layout: ExpertLayout,
        counts: Counts,
        *,
        pairs: bool = False,
    ) -> MoeLoad:
        """Load of every rank from `draw`, without what exceeds the experts' capacity."""
        tokens = tokens_per_source(step, layout).astype(float)
        of_layers = _rows_of(counts[_key(ffn)], self.rows(ffn, indices))
        if self.spec.capacity_factor is not None:
            capacity = expert_capacity(int(tokens.sum()), *_key(ffn), self.spec.capacity_factor)
            of_layers = _capped(of_layers, capacity)
        placement = self._placement(ffn, indices)
        layout = node_limited(layout, ffn, placement)
        return drawn_load(of_layers, tokens, placement, layout, ffn.num_experts_per_tok, pairs=pairs)

    def _placement(self, ffn: MoeFfn, indices: tuple[int, ...]) -> Placement:
        whole = self.placements[_key(ffn)]
        if len(whole.slots) == 1:
            return whole
        return Placement(whole.slots[self.rows(ffn, indices)].copy(), whole.n_ranks, whole.n_experts)


def route_model(
    model: ModelSpec,
    spec: RoutingSpec,
    parallel: ParallelSpec,
    domain_size: int = 1,
    rng: np.random.Generator | None = None,
) -> Routed:
    """Build the routers of a model and place its experts.

    Raises:
        InputError: a popularity vector, trace or placement that does not fit the model.
    """
    layers: dict[Key, list[int]] = {}
    blocks: dict[Key, MoeFfn] = {}
    for index in model.moe_layers:
        ffn = model.layers[index].ffn
        if isinstance(ffn, MoeFfn):
            layers.setdefault(_key(ffn), []).append(index)
            blocks.setdefault(_key(ffn), ffn)
    routers = {
        key: build_router(spec, len(layers[key]), key[0], key[1], ffn.n_group, ffn.topk_group, rng)
        for key, ffn in blocks.items()
    }
    placements = {
        key: place_experts(spec.placement, routers[key], parallel, domain_size, ffn.n_group, rng)
        for key, ffn in blocks.items()
    }
    return Routed(spec, routers, placements, {key: tuple(found) for key, found in layers.items()})


def place_experts(
    spec: PlacementSpec, router: RouterModel, parallel: ParallelSpec, domain_size: int, n_group: int,
    rng: np.random.Generator | None = None,
) -> Placement:  # fmt: skip
    """Slots of one router's experts over the expert ranks; balancing placements look at the router's own probabilities.

    `locality` looks at paths drawn by `rng` (by default always the same).

    Raises:
        InputError: redundant experts without a balancing placement, or a given placement of another size.
    """
    n_ranks, n_experts = parallel.ep_size, router.n_experts
    n_slots = n_experts + parallel.redundant_experts
    if spec.kind in (PlacementKind.EPLB, PlacementKind.EPLB_GLOBAL):
        load = router.inclusion_probability()
        n_nodes = max(1, parallel.n_stage_ranks // domain_size)
        if spec.kind is PlacementKind.EPLB and n_nodes > 1 and n_group > 1 and n_group % n_nodes == 0:
            return eplb_hierarchical(load, n_ranks, n_slots, n_nodes, n_group)
        return eplb_global(load, n_ranks, n_slots)
    if spec.given is not None:
        placement = given(spec.given, n_experts)
        if placement.n_ranks != n_ranks:
            raise InputError(
                "lists another number of ranks than ep_size", field="routing.placement.given", value=placement.n_ranks,
                allowed=f"{n_ranks} ranks",
            )  # fmt: skip
        return placement
    if spec.kind is PlacementKind.TRIVIAL:
        return trivial(n_experts, n_ranks, n_slots)
    if parallel.redundant_experts:
        raise InputError(
            "redundant experts need a balancing placement", field="routing.placement.kind", value=spec.kind.value,
            allowed="eplb, eplb_global or trivial",
        )  # fmt: skip
    if spec.kind is PlacementKind.LOCALITY:
        paths = router.sample_tokens(spec.n_sampled_tokens, rng or np.random.default_rng(0))
        domain = min(domain_size, parallel.n_stage_ranks) * n_ranks // parallel.n_stage_ranks
        return locality_placement(
            paths, n_experts, n_ranks, max(1, domain), home=TokenHome(spec.home), load_tolerance=spec.load_tolerance
        )
    return striped(n_experts, n_ranks) if spec.kind is PlacementKind.STRIPED else contiguous(n_experts, n_ranks)


def tokens_per_source(step: Pass, layout: ExpertLayout) -> NDArray[np.int64]:
    """Tokens that each source rank routes; one source where tokens are everywhere.

    Whole sequences are dealt to the attention-DP groups as evenly as they go, and a group's ranks share its tokens out.
    """
    if layout.tokens_are_everywhere:
        return np.asarray([round(float(step.n_tokens))], dtype=np.int64)
    if layout.attention_dp_size is None:
        return _dealt(round(float(step.n_tokens)), layout.n_ranks)
    if step.group_batch is not None:
        sequences = np.asarray(step.group_batch, dtype=np.int64)
    else:
        sequences = _dealt(round(float(step.batch)), layout.attention_dp_size)
    n_inside, new = layout.n_ranks // layout.attention_dp_size, round(float(step.new_tokens))
    return np.concatenate([_dealt(int(n) * new, n_inside) for n in sequences])


def fullest_source(step: Pass, layout: ExpertLayout) -> Num:
    """Tokens that the fullest source rank routes; the batch may be an array."""
    if layout.tokens_are_everywhere:
        return step.n_tokens
    if layout.attention_dp_size is None:
        return step.n_tokens / float(layout.n_ranks)
    n_inside = layout.n_ranks // layout.attention_dp_size
    if step.group_batch is not None:
        return float(max(step.group_batch)) * step.new_tokens / float(n_inside)
    return ceil_div(step.batch, float(layout.attention_dp_size)) * step.new_tokens / float(n_inside)


def node_limited(layout: ExpertLayout, ffn: MoeFfn, placement: Placement | None = None) -> ExpertLayout:
    """The layout with the block's limit on groups that a token may reach, if it has one; experts in order without a placement."""
    if ffn.topk_group >= ffn.n_group:
        return layout
    if placement is None:
        return replace(layout, n_group=ffn.n_group, topk_group=ffn.topk_group)
    return limited_to(layout, ffn.n_group, ffn.topk_group, ffn.num_experts_per_tok, placement)


def _rows_of(counts: NDArray[Any], rows: list[int]) -> NDArray[Any]:
    """Some rows; neighbours are not copied, as counts of many ranks are large."""
    if rows == list(range(rows[0], rows[-1] + 1)):
        return counts[rows[0] : rows[-1] + 1]
    picked: NDArray[Any] = counts[rows]
    return picked


def _capped(counts: NDArray[Any], capacity: int) -> NDArray[np.int64]:
    """Counts [L, S, E] of which each expert takes at most `capacity` over all sources, each source losing its share."""
    before = np.cumsum(counts, axis=1)
    total = before[:, -1:, :]
    kept = before * np.minimum(total, capacity) // np.maximum(total, 1)
    left: NDArray[np.int64] = np.diff(kept, axis=1, prepend=0)
    return left


def _dealt(n: int, n_hands: int) -> NDArray[np.int64]:
    base, rest = divmod(n, n_hands)
    return np.asarray([base + (i < rest) for i in range(n_hands)], dtype=np.int64)


def _key(ffn: MoeFfn) -> Key:
    return ffn.n_routed_experts, ffn.num_experts_per_tok
