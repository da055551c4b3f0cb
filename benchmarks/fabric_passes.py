"""Whole passes of DeepSeek-V3 against published serving figures: profile data, SGLang's large-scale deployment, production.

H800 kernels are the H100's (same chip, other links): its calibration is used on the H800.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from moesim.analytic import estimate
from moesim.cost import CalibratedOps, CostModel, OpCost
from moesim.lowering import Pass
from moesim.ops import Op, OpKind, Phase
from moesim.sim import simulate
from moesim.specs.catalog import load_device, load_hardware, load_model
from moesim.specs.hardware import DeviceSpec
from moesim.specs.parallel import Overlap, ParallelSpec
from moesim.specs.routing import PlacementKind, PlacementSpec, RouterFamily, RoutingSpec
from moesim.study.calibrated import calibration_for
from moesim.study.halves import HalvedCounts
from moesim.study.instance import Instance, build_instance


@dataclass(frozen=True)
class Case:
    """A published deployment."""

    name: str
    cluster: str
    n_ranks: int
    phase: Phase
    batch_per_rank: int
    tokens: int
    measured: float
    redundant: int = 0
    load: str = "balanced"
    jitter: float | None = None
    cached: int = 0
    target: str = ""


CASES = (
    Case("DeepSeek profile, prefill EP32", "h800_x40_nodes", 32, Phase.PREFILL, 4, 4096, 62_713, target="10%"),
    Case("DeepSeek profile, decode EP128", "h800_x40_nodes", 128, Phase.DECODE, 128, 4096, 18_598, target="10%"),
    Case("SGLang prefill EP32, even by force", "h100_x128_nodes", 32, Phase.PREFILL, 4, 4096, 59_337, 32, target="15%"),
    # imbalance 1.10, as TensorRT-LLM's published run with EPLB (the preset's own jitter)
    Case(
        "SGLang prefill EP32, EPLB, load A",
        "h100_x128_nodes",
        32,
        Phase.PREFILL,
        4,
        4096,
        50_302,
        32,
        "preset",
        target="15%",
    ),
    # jitter set for an imbalance of 1.42: LMSYS and Ant publish a balancedness above 70% after EPLB (1.43 at most)
    Case(
        "SGLang prefill EP32, EPLB, load B",
        "h100_x128_nodes",
        32,
        Phase.PREFILL,
        4,
        4096,
        50_302,
        32,
        "preset",
        0.4,
        target="15%",
    ),
    # 20 to 22 tokens/s per user and 1,850 tokens/s per GPU: 88 requests per GPU; mean context as published
    Case("DeepSeek production, decode EP144", "h800_x22_nodes", 144, Phase.DECODE, 88, 4989, 14_800, 32, "preset"),
    Case("  the same, even load", "h800_x22_nodes", 144, Phase.DECODE, 88, 4989, 14_800, 32),
    # 56.3% of input tokens came from the cache; a prompt of 4,400 tokens is an assumption
    Case(
        "DeepSeek production, prefill EP32",
        "h800_x22_nodes",
        32,
        Phase.PREFILL,
        8,
        1923,
        32_200,
        32,
        "preset",
        cached=2477,
    ),
    Case("  the same, even load", "h800_x22_nodes", 32, Phase.PREFILL, 8, 1923, 32_200, 32, cached=2477),
    Case("  the same, even load, nothing cached", "h800_x22_nodes", 32, Phase.PREFILL, 4, 4400, 32_200, 32),
)


@dataclass(frozen=True)
class Borrowed:
    """The calibration of another device whose chip is the same, for all operators but two.

    Deployments with wide expert parallelism run other kernels than the calibrated families: DeepGEMM's grouped GEMMs instead of
    fused experts, and prefill attention over expanded heads instead of the latent. Both stay at the default efficiencies, which
    agree with the tables that aiconfigurator-core has of that deployment (`wideep_*`, H100, SGLang): experts 77 ns per assignment
    or 0.58 of peak there (0.55 assumed; DeepGEMM alone publishes 0.61 to 0.68), the attention block 9.7 ms per layer for 4
    prompts of 4096 tokens (10.3 here).
    """

    inner: CalibratedOps
    device: DeviceSpec

    @property
    def name(self) -> str:
        """Whose it is."""
        return f"{self.inner.name}, experts and prefill attention by default"

    def cost(self, op: Op, device: DeviceSpec) -> OpCost | None:
        """As the other device's."""
        own = op.kind in (OpKind.GROUPED_GEMM, OpKind.ATTENTION_PREFILL)
        return None if own else self.inner.cost(op, self.device)

    def costs(self, ops: Sequence[Op], device: DeviceSpec) -> list[OpCost | None]:
        """Each of them."""
        return [self.cost(op, device) for op in ops]


def kernels(stack: str | None) -> CalibratedOps | None:
    """The H100's calibration under one stack."""
    found = None if stack is None else calibration_for(stack, "h100_sxm")
    return None if found is None else Borrowed(found, load_device("h100_sxm"))


def build(case: Case, stack: str | None, overlap: Overlap = Overlap.TWO_BATCH) -> Instance:
    """The deployment on its hardware."""
    hardware = load_hardware(case.cluster, case.n_ranks)
    split = ParallelSpec(dp_size=case.n_ranks, ep_size=case.n_ranks, redundant_experts=case.redundant)
    even = case.load == "balanced"
    family = {"family": RouterFamily.BALANCED} if even else {"family": RouterFamily.PRESET, "preset": "deepseek-v3"}
    placement = PlacementSpec(kind=PlacementKind.EPLB_GLOBAL if case.redundant else PlacementKind.CONTIGUOUS)
    instance = build_instance(
        load_model("deepseek-v3"), split, hardware, RoutingSpec(**family, placement=placement),
        cost=CostModel.of(hardware, kernels(stack)), overlap=overlap, rng=np.random.default_rng(0),
    )  # fmt: skip
    return instance if case.jitter is None else jittered(instance, case.jitter)


def jittered(instance: Instance, sigma: float) -> Instance:
    """The same instance whose experts' popularity differs by more from pass to pass."""
    routed = instance.routed
    if routed is None:
        return instance
    routers = {key: replace(router, pass_jitter=sigma) for key, router in routed.routers.items()}
    return replace(instance, routed=replace(routed, routers=routers))


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


def attention_block() -> None:
    """The attention of one layer against the deployment's own operator table: 9.72 ms (fa3 and flashinfer alike)."""
    case = CASES[0]
    for stack in (None, "sglang"):
        instance = replace(build(case, stack), overlap=Overlap.NONE)
        names = (
            "attention_norm",
            "q_kv_a_proj",
            "q_b_proj",
            "kv_b_proj",
            "rope_and_cache",
            "attention_scores",
            "o_proj",
        )
        ops = [op for op in instance.program(step_of(case)).segments[1].ops if op.name in names]
        total = sum(float(np.max(instance.cost.cost(op).time_s)) for op in ops)
        print(
            f"  attention block, 4 x 4096 tokens on H100: measured 9.72 ms, predicted {total * 1e3:.2f} ({stack or 'default'})"
        )


def step_of(case: Case) -> Pass:
    """The pass that the figure was measured on."""
    n = float(case.batch_per_rank * case.n_ranks)
    if case.phase is Phase.PREFILL:
        return Pass(case.phase, n, float(case.tokens), float(case.cached))
    return Pass(case.phase, n, 1.0, float(case.tokens))


def passes(stacks: tuple[str | None, ...] = (None, "sglang")) -> None:
    """Tokens per second and node, simulated."""
    attention_block()
    for stack in stacks:
        print(
            f"\nWhole passes of DeepSeek-V3; kernels: {stack + ' calibration of the H100, see Borrowed' if stack else 'default'}"
        )
        for case in CASES:
            instance, step = build(case, stack), step_of(case)
            program = instance.program(step, instance.draw(step, np.random.default_rng(1)))
            result = simulate(program, instance.cost, record=False)
            closed = estimate(program, instance.cost)
            none = replace(instance, overlap=Overlap.NONE)
            alone = simulate(none.program(step, none.draw(step, np.random.default_rng(1))), none.cost, record=False)
            rate = float(step.n_tokens) / result.time_s / (case.n_ranks / 8)
            ms = [
                x * 1e3
                for x in (result.time_s, closed.time_s, alone.time_s, result.exposed_comm_s, result.hidden_comm_s)
            ]
            error = f"{rate / case.measured - 1:+.0%}; target {case.target or '-'}"
            print(
                f"  {case.name:<42} measured {case.measured:6.0f}  predicted {rate:6.0f} tok/s/node ({error})", end=""
            )
            print(f"  imbalance {imbalance(instance, step):.2f}")
            print(
                "      pass {:.1f} ms, closed form {:.1f}, no overlap {:.1f}; exposed {:.1f}, hidden {:.1f}".format(*ms)
            )


if __name__ == "__main__":
    passes()
