"""Collectives appear exactly where a split needs them, with the size that travels."""

from __future__ import annotations

import pytest

from moesim.errors import ParallelError
from moesim.lowering import Pass
from moesim.ops import CollectiveShape, Lane, OpKind, Program
from moesim.specs.model import ModelSpec
from moesim.specs.parallel import ParallelSpec
from moesim.testing import decode, prefill, toy_dense_model, toy_moe_model, toy_program

DENSE, MOE = toy_dense_model(), toy_moe_model(n_experts=16)
SHARED = toy_moe_model(n_experts=16, shared_inter_size=128)
TP = {"embedding_all_reduce", "attention_all_reduce", "ffn_all_reduce", "logits_all_gather"}


def _comm(program: Program) -> dict[str, CollectiveShape]:
    return {op.name: op.shape for _, op in program.ops() if op.lane is Lane.COMM}  # type: ignore[misc]


@pytest.mark.parametrize(
    ("model", "parallel", "step", "names"),
    [
        (DENSE, ParallelSpec(), decode(4, 8), set()),
        (MOE, ParallelSpec(), prefill(4, 8), set()),
        (DENSE, ParallelSpec(tp_size=2), decode(4, 8), TP),
        (MOE, ParallelSpec(tp_size=2), decode(4, 8), TP),
        (MOE, ParallelSpec(tp_size=2, ep_size=2), decode(4, 8), TP),
        (DENSE, ParallelSpec(dp_size=2), decode(4, 8), set()),
        (MOE, ParallelSpec(dp_size=2, ep_size=2), decode(4, 8), {"dispatch", "combine"}),
        (SHARED, ParallelSpec(dp_size=2, ep_size=2), decode(4, 8), {"dispatch", "combine"}),
        (MOE, ParallelSpec(dp_size=2), decode(4, 8), {"expert_all_gather", "expert_reduce_scatter"}),
        (
            MOE,
            ParallelSpec(tp_size=2, dp_size=2, ep_size=4),
            decode(4, 8),
            {
                "embedding_all_reduce",
                "logits_all_gather",
                "attention_reduce_scatter",
                "dispatch",
                "combine",
                "ffn_all_gather",
            },
        ),
        (
            SHARED,  # shared experts are whole on every rank, for its own tokens
            ParallelSpec(tp_size=2, dp_size=2, ep_size=4),
            decode(4, 8),
            {
                "embedding_all_reduce",
                "logits_all_gather",
                "attention_reduce_scatter",
                "dispatch",
                "combine",
                "ffn_all_gather",
            },
        ),
        (DENSE, ParallelSpec(cp_size=2), prefill(4, 8), {"context_parallel_gather"}),
        (DENSE, ParallelSpec(cp_size=2), decode(4, 8), {"context_parallel_reduce"}),
        (DENSE, ParallelSpec(pp_size=2), decode(4, 8), set()),
    ],
)
def test_which(model: ModelSpec, parallel: ParallelSpec, step: Pass, names: set[str]) -> None:
    program = toy_program(model, parallel, step)
    assert set(_comm(program)) == names
    assert bool(program.stage_sends) == (parallel.pp_size > 1)


def test_sizes() -> None:
    # 6 sequences over 2 attention-DP groups: 3 tokens x 64 x bf16 = 384 bytes of residual
    comm = _comm(toy_program(MOE, ParallelSpec(tp_size=2, dp_size=2, ep_size=4), decode(6, 8)))
    for name in ("embedding_all_reduce", "attention_reduce_scatter", "ffn_all_gather"):
        assert (comm[name].n_ranks, comm[name].message_bytes, comm[name].stride) == (2, 384, 1), name
    assert comm["logits_all_gather"].message_bytes == 3 * 512 * 2
    gathers = _comm(toy_program(MOE, ParallelSpec(dp_size=2), decode(6, 8)))
    # all tokens of both groups meet on every rank
    assert (gathers["expert_all_gather"].n_ranks, gathers["expert_all_gather"].message_bytes) == (2, 768)
    assert gathers["expert_reduce_scatter"].message_bytes == 768


def test_sizes_of_context_and_pipeline_splits() -> None:
    split = ParallelSpec(tp_size=2, cp_size=2, pp_size=2)
    program = toy_program(DENSE, split, prefill(1, 10))
    gather = _comm(program)["context_parallel_gather"]
    # 10 tokens x 1 key-value head per rank x (16 + 16) x bf16, over ranks tp_size apart
    assert (gather.n_ranks, gather.message_bytes, gather.stride) == (2, 10 * 32 * 2, 2)
    (send,) = program.stage_sends
    assert send.kind is OpKind.SEND
    # half of the prompt, half of the width, to the rank n_stage_ranks away
    assert (send.shape.message_bytes, send.shape.stride) == (5 * 64 * 2 / 2, 4)  # type: ignore[union-attr]
    reduce = _comm(toy_program(DENSE, split, decode(3, 10)))["context_parallel_reduce"]
    assert reduce.message_bytes == 3 * 2 * 16 * 2  # outputs of two heads


def test_a_stage_must_fill_whole_domains() -> None:
    model = toy_moe_model(n_experts=12)
    with pytest.raises(ParallelError, match="whole scale-up domains"):
        toy_program(model, ParallelSpec(dp_size=12, ep_size=12), decode(12, 8), domain_size=8)


def test_a_grid_of_two_axes_is_refused() -> None:
    import numpy as np

    from moesim.ops import Phase

    with pytest.raises(ValueError, match="two axes of length 1"):
        Pass(Phase.DECODE, np.ones((3, 4)))
    Pass(Phase.DECODE, np.ones((3, 4, 1, 1)))
    Pass(Phase.DECODE, np.ones(3))
