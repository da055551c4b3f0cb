"""Whole passes of DeepSeek-V3 against published serving figures, and blocks of a layer against operator tables.

Nothing is fitted here. Three sets of kernels: default efficiencies, the H100's SGLang tables of 2026 (the H800 is the same chip),
and DeepGEMM as published when the figures were measured (`fabric_kernels`).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from fabric_cases import CASES, RATIOS, Case, step_of
from fabric_kernels import kernels, lending

from moesim.analytic import estimate
from moesim.cost import CostModel
from moesim.lowering import Pass
from moesim.lowering.traffic import tokens_per_assignment
from moesim.routing.placement import Placement
from moesim.routing.router import RouterModel
from moesim.sim import simulate
from moesim.specs.catalog import load_hardware, load_model
from moesim.specs.parallel import Overlap, ParallelSpec
from moesim.specs.routing import PlacementKind, PlacementSpec, RouterFamily, RoutingSpec
from moesim.study.halves import HalvedCounts
from moesim.study.instance import Instance, build_instance

KERNELS = ("default", "tables", "day")


def build(case: Case, which: str) -> Instance:
    """The deployment on its hardware."""
    hardware = load_hardware(case.cluster, case.n_ranks)
    split = ParallelSpec(dp_size=case.n_ranks, ep_size=case.n_ranks, redundant_experts=case.redundant)
    named = case.family is not None
    family = {"family": case.family} if named else {"family": RouterFamily.PRESET, "preset": case.preset}
    placement = PlacementSpec(kind=case.placement if case.redundant else PlacementKind.CONTIGUOUS)
    cost = CostModel.of(hardware, kernels(which, case.date))
    if case.n_sms is not None:
        cost = replace(cost, network=lending(cost.network, case.n_sms))
    instance = build_instance(
        load_model("deepseek-v3"), split, hardware, RoutingSpec(**family, placement=placement),
        cost=cost, overlap=case.overlap, rng=np.random.default_rng(0),
    )  # fmt: skip
    if case.idle_extra and instance.routed is not None:
        placements = {key: idle(p, instance.routed.routers[key]) for key, p in instance.routed.placements.items()}
        instance = replace(instance, routed=replace(instance.routed, placements=placements))
    if case.dispersion is None or instance.routed is None:
        return instance
    routers = {key: replace(r, prompt_dispersion=case.dispersion) for key, r in instance.routed.routers.items()}
    return replace(instance, routed=replace(instance.routed, routers=routers))


def idle(placement: Placement, router: RouterModel) -> Placement:
    """The extra slots without work to speak of: all of them share the tokens of the layer's coldest expert."""
    coldest = router.inclusion_probability().argmin(axis=1)
    slots = np.repeat(placement.slots, len(coldest), axis=0)
    slots[:, placement.n_experts :] = coldest[:, None]
    return replace(placement, slots=slots)


def imbalance(instance: Instance, step: Pass) -> float:
    """Fullest rank over the mean, mean over layers, of one drawn micro-batch (or pass that is not split)."""
    counts = instance.draw(step, np.random.default_rng(1))
    if counts is None or instance.routed is None:
        return 1.0
    counts = counts.halves[0] if isinstance(counts, HalvedCounts) else counts
    ratios = []
    for key, drawn in counts.items():
        loads = instance.routed.placements[key].rank_loads(drawn.sum(axis=1))
        ratios.append(loads.max(axis=1) / loads.mean(axis=1))
    return float(np.concatenate(ratios).mean())


def rate(case: Case, which: str) -> float:
    """Simulated tokens per second and node of 8."""
    instance, step = build(case, which), step_of(case)
    program = instance.program(step, instance.draw(step, np.random.default_rng(1)))
    return float(step.n_tokens) / simulate(program, instance.cost, record=False).time_s / (case.n_ranks / 8)


def attention_block(which: str) -> float:
    """Attention of one layer, 4 prompts of 4,096 tokens, as SGLang's module was timed: without norm and first projection."""
    case = CASES[1]
    instance = replace(build(case, which), overlap=Overlap.NONE)
    names = {
        "latent_norm", "q_b_proj", "kv_b_proj", "rope_and_cache", "query_copy", "key_copy", "attention_scores", "o_proj",
    }  # fmt: skip
    ops = [op for op in instance.program(step_of(case)).segments[1].ops if op.name in names]
    return sum(float(np.max(instance.cost.cost(op).time_s)) for op in ops)


#: `wideep_context_moe`, H100, SGLang 0.5.10, uniform, 524,288 rows in the call: ms by expert-parallel size.
MEASURED_EXPERTS_MS = {32: 14.265, 64: 9.368, 128: 7.009, 256: 5.755}


def experts_block(which: str, ep_size: int) -> float:
    """Routed experts of one rank as that table timed them: rows of all tokens in the call, 1 / R of their pairs computed."""
    case = replace(
        CASES[3], n_ranks=ep_size, redundant=0, family=RouterFamily.BALANCED, batch_per_rank=128 // ep_size or 1
    )
    instance = replace(build(case, which), overlap=Overlap.NONE)
    step = replace(step_of(case), batch=128.0, new_tokens=4096.0)
    if ep_size > 128:
        step = replace(step, batch=256.0, new_tokens=2048.0)
    op = next(op for op in instance.program(step).segments[2].ops if op.name == "experts")
    rows, pairs = float(step.n_tokens), float(step.n_tokens) * 8.0 / ep_size
    absent = rows - pairs * float(tokens_per_assignment(256.0, 8.0, ep_size, (8, 4)))
    more = absent * 7168.0 * (1.0 + 4.0 / 128.0 + 2.0)
    return float(np.max(instance.cost.cost(replace(op, side_bytes=op.side_bytes + more)).time_s))


def blocks() -> None:
    """Blocks of a layer against tables of the same deployment (2026, all compute units)."""
    for which in KERNELS:
        ms = attention_block(which) * 1e3
        print(f"  attention block, 4 x 4,096 tokens: measured 9.7 ms (fa3, flashinfer), predicted {ms:.1f} ({which})")
    for ep_size, measured in MEASURED_EXPERTS_MS.items():
        found = ", ".join(f"{which} {experts_block(which, ep_size) * 1e3:.1f}" for which in KERNELS)
        print(f"  experts of one rank of {ep_size}: measured {measured:.1f} ms, predicted {found}")


def report(case: Case, which: str) -> None:
    """One case in one line, and where its time goes."""
    instance, step = build(case, which), step_of(case)
    program = instance.program(step, instance.draw(step, np.random.default_rng(1)))
    result = simulate(program, instance.cost, record=False)
    closed = estimate(program, instance.cost)
    found = float(step.n_tokens) / result.time_s / (case.n_ranks / 8)
    error = f"{found / case.measured - 1:+.1%}; target {case.target or '-'}"
    print(f"  {case.name:<46} measured {case.measured:6.0f}  predicted {found:6.0f} tok/s/node ({error})", end="")
    print(f"  imbalance {imbalance(instance, step):.2f}")
    ms = [x * 1e3 for x in (result.time_s, closed.time_s, result.exposed_comm_s, result.hidden_comm_s)]
    print("      pass {:.1f} ms, closed form {:.1f}; exposed {:.1f}, hidden {:.1f}".format(*ms))


def passes(which_kernels: tuple[str, ...] = KERNELS) -> None:
    """Tokens per second and node, simulated; and published speed-ups."""
    blocks()
    for which in which_kernels:
        print(f"\nWhole passes of DeepSeek-V3; kernels: {which}")
        for case in CASES:
            report(case, which)
        for ratio in RATIOS:
            found = rate(ratio.better, which) / rate(ratio.worse, which)
            print(f"  {ratio.name:<60} measured {ratio.measured}, predicted {found:.2f} (penalty {1 - 1 / found:.1%})")


if __name__ == "__main__":
    passes()
