"""Small kernels that calls of a stack contain: which ones a model has on a split, and what they do to a step."""

from __future__ import annotations

import numpy as np
import pytest
import validate_sample as sample

from moesim.cost.stack import DEFAULT_STACK, StackedCalibration
from moesim.lowering import Pass
from moesim.ops import REDUCES, SCORES, Op, OpKind, Phase
from moesim.specs.catalog import load_device
from moesim.study.kernels import contained_kernels
from moesim.study.validate.launches import launch_of
from moesim.study.validate.steps import Part, step_table
from moesim.study.validate.workload import Workbench

DENSE = {"model": "meta-llama/Llama-3.1-70B", "system": "h200_sxm"}
MIXTURE = {"model": "openai/gpt-oss-120b", "system": "h200_sxm", "precision": "fp4"}


def small_kernels(**changes: object) -> dict[str, str]:
    instance = Workbench().instance(sample.run_row(**changes))
    program = instance.program(Pass(Phase.DECODE, 8.0, 1.0, 1024.0))
    return {op.name: op.inside for _, op in program.ops() if op.kind is OpKind.ELEMENTWISE and op.inside}


def test_norms_are_inside_reductions_of_ranks_alone() -> None:
    assert small_kernels(**DENSE, tp_size=1) == {"rope_and_cache": SCORES}
    found = small_kernels(**DENSE, tp_size=4)
    assert found == {"rope_and_cache": SCORES, "ffn_norm": "attention", "attention_norm": "ffn"}


def test_choosing_experts_is_named_for_their_format_and_split() -> None:
    whole = small_kernels(**MIXTURE, tp_size=4)
    assert whole["top_k"] == "mxfp4_experts"
    assert (whole["ffn_norm"], whole["attention_norm"]) == ("moe_attention", "moe_ffn")
    assert small_kernels(**MIXTURE, tp_size=4, ep_size=4)["top_k"] == "mxfp4_experts, split"
    # tokens that travel are chosen for before they leave, and come back whole
    moved = small_kernels(**MIXTURE, tp_size=1, attention_dp_size=4, ep_size=4)
    assert moved == {"rope_and_cache": SCORES}


def test_stacks_differ_in_what_they_contain() -> None:
    of = {stack: contained_kernels(stack, "b200_sxm") for stack in ("vllm", "sglang", "trtllm")}
    assert set(REDUCES) | {SCORES} <= of["trtllm"]
    assert "ffn" in of["vllm"]
    assert not {"moe_ffn", SCORES} & of["vllm"]
    assert {"moe_ffn", "fp8_block_experts"} <= of["sglang"]
    assert not {"ffn", "nvfp4_experts", "fp8_block_experts, split"} & of["sglang"]
    assert contained_kernels("vllm", "l40s") == of["vllm"] - set(REDUCES)
    assert contained_kernels("vllm", "b200_sxm", fuses_norms=False) == of["vllm"] - set(REDUCES)


@pytest.mark.parametrize(
    ("changes", "fuses"),
    [
        ({"model": "meta-llama/Llama-3.1-70B", "system": "b200_sxm", "precision": "fp8"}, True),
        ({"model": "meta-llama/Llama-3.1-70B", "system": "h200_sxm", "precision": "fp8"}, False),
        ({"model": "Qwen/Qwen3.5-397B-A17B", "system": "b200_sxm", "backend": "sglang", "precision": "fp4"}, False),
        ({"model": "Qwen/Qwen3.5-397B-A17B", "system": "h200_sxm", "backend": "sglang", "precision": "fp8"}, True),
    ],
)
def test_launches_say_who_runs_norms_apart(changes: dict[str, object], fuses: bool) -> None:
    assert launch_of(sample.run_row(**changes, warm_up="no")).fuses_norms is fuses


def test_what_is_contained_is_not_launched() -> None:
    device = load_device("h200_sxm")
    program = Workbench().instance(sample.run_row(**DENSE, tp_size=4)).program(Pass(Phase.DECODE, 8.0, 1.0, 1024.0))
    norm = next(op for _, op in program.ops() if op.name == "ffn_norm")

    class Tables:
        name = "no tables"

        def cost(self, op: Op, device: object) -> None:
            return None

    apart = StackedCalibration(Tables(), DEFAULT_STACK).cost(norm, device)
    inside = StackedCalibration(Tables(), DEFAULT_STACK, contained=frozenset({"attention"})).cost(norm, device)
    assert apart is not None
    assert inside is not None
    assert inside.latency_s == 0.0
    assert apart.time_s - inside.time_s == pytest.approx(apart.latency_s)


def test_a_step_is_shorter_by_the_launches_of_its_norms() -> None:
    instance = Workbench().instance(sample.run_row(**DENSE, tp_size=4))
    program = instance.program(Pass(Phase.DECODE, 8.0, 1.0, 1024.0))
    norm = next(op for _, op in program.ops() if op.name == "ffn_norm")
    launch_s = float(instance.cost.cost(norm).latency_s)
    tables = [step_table(instance, 1024.0, 128.0, 8, 2048, names) for names in (frozenset(), frozenset(REDUCES))]
    apart, inside = (t.decode_parts(np.array([8.0]), np.array([1024.0]))[0] for t in tables)
    # two norms in each of 80 layers, and nothing else
    assert apart[Part.ELEMENTWISE_CALL] - inside[Part.ELEMENTWISE_CALL] == pytest.approx(160 * launch_s)
    assert np.delete(apart, Part.ELEMENTWISE_CALL) == pytest.approx(np.delete(inside, Part.ELEMENTWISE_CALL))
