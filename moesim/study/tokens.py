"""A few tokens of a pass: their experts, as its counts allow, the copies that serve them, and their hops over a timeline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.lowering.route import Counts
from moesim.routing.placement_replicas import ReplicaRule, choose_slots
from moesim.study.halves import HalvedCounts
from moesim.study.instance import Instance
from moesim.study.results import PathSample
from moesim.timeline import Span, Timeline, TokenFlow

__all__ = ["home_ranks", "path_sample", "token_flows"]

Ints = NDArray[np.int64]
#: Ways from the router of which each token takes the one that fits the counts of its rank best.
N_CANDIDATES = 64


def home_ranks(instance: Instance, n_tokens: int) -> tuple[int, ...]:
    """Devices on which sampled tokens start: the first of attention groups spread evenly over the instance.

    Assumes: rank = group x (tp x cp) + place in the group, as in the lowering.
    """
    n_groups = instance.parallel.dp_size
    n_inside = instance.parallel.n_stage_ranks // n_groups
    return tuple(token * n_groups // n_tokens * n_inside for token in range(n_tokens))


def path_sample(
    instance: Instance, rng: np.random.Generator, n_tokens: int = 4, counts: Counts | None = None
) -> PathSample | None:
    """The experts, and their ranks, of a few tokens in every MoE layer (of the model's first kind of MoE block).

    Args:
        instance: with its router and placement.
        rng: of the draw.
        n_tokens: how many.
        counts: of a pass; tokens then have experts that their home rank sends tokens to, in their own micro-batch.

    Assumes: a pass draws counts by rank and layer, not tokens. A token here takes a way from the router, of which experts that
    its rank sends nothing to are replaced by others that it does, drawn by their counts. Copies of an expert serve in turn, while
    the simulation shares its tokens over them evenly.
    """
    if instance.routed is None:
        return None
    key, router = next(iter(instance.routed.routers.items()))
    placement, layers = instance.routed.placements[key], instance.routed.layers[key]
    homes = home_ranks(instance, n_tokens)
    batches, replaced = (0,) * n_tokens, 0.0
    if counts is None or counts[key].shape[1] not in (1, instance.parallel.n_stage_ranks):
        chosen = np.asarray(router.sample_tokens(n_tokens, rng), dtype=np.int64)
        counts = None
    else:
        halves = counts.halves if isinstance(counts, HalvedCounts) else (counts,)
        ways = np.asarray(router.sample_tokens(n_tokens * N_CANDIDATES, rng), dtype=np.int64)
        batches = tuple(token % len(halves) for token in range(n_tokens))
        rows = [_sent(halves[batch][key], home) for batch, home in zip(batches, homes, strict=True)]
        fitted = [
            _fitted(w, row, _n_groups(instance), rng) for w, row in zip(np.split(ways, n_tokens), rows, strict=True)
        ]
        chosen, replaced = np.stack([way for way, _ in fitted]), float(np.mean([share for _, share in fitted]))
    source = np.array(homes) // instance.parallel.etp_size
    slots = choose_slots(chosen, placement, ReplicaRule.ROUND_ROBIN, source)
    return PathSample(
        layers=layers, experts=_nested(chosen), ranks=_nested(slots // placement.slots_per_rank),
        n_possible_paths_log10=len(layers) * math.log10(math.comb(key[0], key[1])), home_ranks=homes,
        n_devices_per_expert=instance.parallel.etp_size, batches=batches, is_of_pass=counts is not None,
        replaced_frac=round(replaced, 4),
    )  # fmt: skip


def token_flows(
    timeline: Timeline, home_ranks: Sequence[int], layers: Sequence[int], ranks: Sequence[Sequence[Sequence[int]]],
    batches: Sequence[int] | None = None,
) -> tuple[TokenFlow, ...]:  # fmt: skip
    """Arrows of sampled tokens for a trace: end of the home rank's dispatch to the start of experts, and back.

    Args:
        timeline: of a recorded simulation; hops over ranks that it has no spans of are left out.
        home_ranks: where each token starts.
        layers: of the model, as `ranks` has them.
        ranks: by token and layer, the ranks of its experts.
        batches: the micro-batch of each token; the first by default.
    """
    first: dict[tuple[int, int, str, int], Span] = {}
    for span in timeline:
        if span.cause is None and span.name in ("dispatch", "experts", "combine", "unpermute"):
            first.setdefault((span.rank, span.layer, span.name, span.batch), span)
    flows: list[TokenFlow] = []
    for token, home in enumerate(home_ranks):
        batch = batches[token] if batches else 0
        for position, layer in enumerate(layers):
            sent, back = (first.get((home, layer, name, batch)) for name in ("dispatch", "unpermute"))
            for rank in sorted(set(ranks[token][position])):
                work, returned = (first.get((rank, layer, name, batch)) for name in ("experts", "combine"))
                if sent is not None and work is not None:
                    flows.append(TokenFlow(token, layer, "dispatch", home, sent.start_s, rank, work.start_s))
                if returned is not None and back is not None:
                    flows.append(TokenFlow(token, layer, "combine", rank, returned.start_s, home, back.start_s))
    return tuple(flows)


def _n_groups(instance: Instance) -> int:
    ffn = instance.model.moe_ffn
    return ffn.n_group if ffn is not None and ffn.topk_group < ffn.n_group else 1


def _sent(counts: NDArray[Any], home: int) -> Ints:
    """What a rank sends to each expert in each layer, [L, E]."""
    return np.asarray(counts[:, min(home, counts.shape[1] - 1)], dtype=np.int64)


def _fitted(ways: Ints, sent: Ints, n_groups: int, rng: np.random.Generator) -> tuple[Ints, float]:
    """The way [L, K] of candidates [N, L, K] that fits what is sent [L, E] best, made to fit; the share of replaced experts."""
    at = np.arange(sent.shape[0])[None, :, None]
    fits = sent[at, ways] > 0
    best = int(fits.sum(axis=(1, 2)).argmax())
    way, fit = ways[best].copy(), fits[best]
    group_size = max(1, sent.shape[1] // n_groups)
    score = np.where(sent > 0, np.log(np.maximum(sent, 1)) + rng.gumbel(size=sent.shape), -1e3)
    for layer in np.flatnonzero(~fit.all(axis=1)):
        row = score[layer].copy()
        if n_groups > 1:  # node-limited routing: stay in the groups that the token reaches anyway
            row[~np.isin(np.arange(len(row)) // group_size, way[layer] // group_size)] -= 20.0
        row[way[layer][fit[layer]]] = -np.inf
        n_missing = int((~fit[layer]).sum())
        way[layer][~fit[layer]] = np.argsort(-row)[:n_missing]
    return way, float((~fit).mean())


def _nested(values: NDArray[Any]) -> tuple[tuple[tuple[int, ...], ...], ...]:
    return tuple(tuple(tuple(int(x) for x in layer) for layer in token) for token in values)
