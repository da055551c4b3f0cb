"""How one model instance is split over ranks."""

from __future__ import annotations

from enum import StrEnum

from moesim.errors import InputError, ParallelError
from moesim.specs.base import Count, Frozen, Natural
from moesim.specs.model import CompressedAttention, GqaAttention, MlaAttention, ModelSpec, MoeFfn

__all__ = ["DpPrefill", "Overlap", "ParallelSpec"]


class Overlap(StrEnum):
    """What runs beside communication: nothing, shared experts beside the dispatch, or another half of the batch.

    True and false stand for shared experts and nothing, also in files. An overlap is true unless it is `none`.
    """

    NONE = "none"
    SHARED_EXPERTS = "shared_experts"
    TWO_BATCH = "two_batch"

    @classmethod
    def of(cls, value: Overlap | bool | str) -> Overlap:
        """The overlap of this name, or that a plain yes or no stands for.

        >>> Overlap.of(True), Overlap.of("two_batch")
        (<Overlap.SHARED_EXPERTS: 'shared_experts'>, <Overlap.TWO_BATCH: 'two_batch'>)

        Raises:
            InputError: neither.
        """
        if isinstance(value, bool):
            return cls.SHARED_EXPERTS if value else cls.NONE
        try:
            return cls(value)
        except ValueError:
            allowed = ", ".join(mode.value for mode in cls)
            raise InputError("not known", field="overlap", value=value, allowed=f"{allowed}, true or false") from None

    def __bool__(self) -> bool:
        return self is not Overlap.NONE


class DpPrefill(StrEnum):
    """When attention-DP ranks that share experts take prompts; they step together, so a prompt on one rank stalls all.

    `lockstep`: each as they come, as vLLM and SGLang do. `balanced`: prompts wait, for 50 passes at most, until every rank has
    some (TensorRT-LLM with attention_dp_config enable_balance and its default timeout_iters). `together`: always at the same
    time; a bound that no engine reaches, and what is left where prompts are prefilled elsewhere.
    """

    LOCKSTEP = "lockstep"
    BALANCED = "balanced"
    TOGETHER = "together"


class ParallelSpec(Frozen):
    """Degrees of parallelism of one instance.

    Attention is split over `tp_size` x `cp_size` ranks and copied over `dp_size` (attention data parallel); `pp_size` stages
    follow each other. The experts of a stage are spread over the same tp x cp x dp ranks, as `ep_size` x `etp_size`:
    whole experts over `ep_size`, slices of each expert over `etp_size`. By default `ep_size` is 1 (every rank holds a
    slice of every expert), as vLLM, SGLang and TensorRT-LLM do without an expert-parallel flag.
    """

    tp_size: Count = 1
    dp_size: Count = 1
    cp_size: Count = 1
    pp_size: Count = 1
    ep_size: Count = 1
    redundant_experts: Natural = 0

    @property
    def n_stage_ranks(self) -> int:
        """Ranks of one pipeline stage."""
        return self.tp_size * self.dp_size * self.cp_size

    @property
    def n_ranks(self) -> int:
        """Ranks of the whole instance."""
        return self.n_stage_ranks * self.pp_size

    @property
    def etp_size(self) -> int:
        """Ranks over which one expert is sliced."""
        return self.n_stage_ranks // self.ep_size

    @property
    def label(self) -> str:
        """Short text such as ``TP8``, ``DP8 EP8`` or ``TP2 PP2``."""
        sizes = (
            ("TP", self.tp_size),
            ("CP", self.cp_size),
            ("DP", self.dp_size),
            ("EP", self.ep_size),
            ("PP", self.pp_size),
        )
        return " ".join(f"{name}{size}" for name, size in sizes if size > 1) or "1 GPU"

    def check(self, model: ModelSpec) -> None:
        """Refuse a split that `model` does not divide by.

        Raises:
            ParallelError: naming the degree, what it must divide, and the sizes that would fit.
        """
        if self.n_stage_ranks % self.ep_size:
            fits = _divisors(self.n_stage_ranks)
            raise ParallelError(
                f"ep_size {self.ep_size} does not divide the {self.n_stage_ranks} ranks of a stage (tp x cp x dp)",
                field="ep_size", value=self.ep_size, allowed=f"one of {fits}",
            )  # fmt: skip
        if self.pp_size > len(model.layers):
            raise ParallelError(
                f"pp_size {self.pp_size} is more than the {len(model.layers)} layers of {model.name}",
                field="pp_size", value=self.pp_size, allowed=f"1..{len(model.layers)}",
            )  # fmt: skip
        for layer, _ in model.layer_kinds:
            if isinstance(layer.attention, GqaAttention | MlaAttention):
                _divides("tp_size", self.tp_size, "attention heads", layer.attention.n_heads, model)
            if isinstance(layer.attention, CompressedAttention):
                _divides("tp_size", self.tp_size, "groups of heads", layer.attention.o_groups, model)
            if isinstance(layer.ffn, MoeFfn):
                n_slots = layer.ffn.n_routed_experts + self.redundant_experts
                missing = -n_slots % self.ep_size
                hint = f"{self.redundant_experts + missing} redundant experts would fill {self.ep_size} ranks alike"
                _divides("ep_size", self.ep_size, "expert slots", n_slots, model, hint)
                _divides("etp_size", self.etp_size, "expert width", layer.ffn.moe_intermediate_size, model)
            elif layer.ffn is not None:
                _divides("tp_size", self.tp_size, "FFN width", layer.ffn.intermediate_size, model)


def _divides(field: str, size: int, what: str, n: int, model: ModelSpec, hint: str | None = None) -> None:
    if n % size:
        fits = [d for d in _divisors(n) if d <= 4 * size]
        raise ParallelError(
            f"{field} {size} does not divide the {n} {what} of {model.name}",
            field=field, value=size, allowed=f"one of {fits}", hint=hint,
        )  # fmt: skip


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0] if n <= 4096 else [d for d in range(1, 4097) if n % d == 0]
