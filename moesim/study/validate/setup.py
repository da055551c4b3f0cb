"""From a row of a table of serving runs to a model on ranks: what `precision` means on which stack, the split, the device."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from moesim.cost import CalibratedOps, CostModel
from moesim.errors import InputError
from moesim.specs.catalog import load_hardware, load_model
from moesim.specs.dtypes import Dtype, Storage
from moesim.specs.hardware import Hardware
from moesim.specs.model import ModelSpec, MoeFfn, WeightStorage
from moesim.specs.parallel import ParallelSpec
from moesim.specs.variants import kept_in_nvfp4
from moesim.study.instance import Instance, build_instance
from moesim.study.kernels import SIBLINGS, calibration_of, generation_of
from moesim.study.validate.table import RunRow

__all__ = [
    "SIBLINGS",
    "calibration_of",
    "generation_of",
    "hardware_of",
    "instance_of",
    "model_of",
    "parallel_of",
    "with_launched_cache",
]

_EIGHT_BIT: dict[str, Storage | Dtype] = {"expert_activation": Dtype.FP8, "kv_cache": Storage(dtype=Dtype.FP8)}


@lru_cache(maxsize=64)
def model_of(name: str, precision: str, backend: str, device: str) -> ModelSpec:
    """The model as the stack runs it in a coarse `precision` (bf16, fp8, fp8_tensor, fp4; '' is as the model's own card says).

    fp8: block-wise where the model is published so (mixtures of recent families), else one scale per tensor. fp4: NVFP4, or what
    the card says where experts are MXFP4 already; what NVFP4 checkpoints leave in 16 bits is `specs.variants.kept_in_nvfp4`.

    Raises:
        InputError: unknown model or precision.
    """
    model = load_model(name)
    if precision in ("", "bf16", "fp16"):
        return model
    if precision == "fp8_tensor":
        storage = model.storage.model_copy(update={**_linears(Storage(dtype=Dtype.FP8)), **_EIGHT_BIT})
        return model.model_copy(update={"storage": storage})
    if precision not in ("fp8", "fp4"):
        raise InputError(
            "unknown precision", field="precision", value=precision, allowed="bf16, fp8, fp8_tensor, fp4, or empty"
        )
    change: Callable[[ModelSpec], WeightStorage] = _fp8 if precision == "fp8" else _fp4(generation_of(device))
    return model.model_copy(update={"storage": change(model)})


def _fp8(model: ModelSpec) -> WeightStorage:
    storage = model.storage
    if storage.routed_experts.dtype in (Dtype.FP8, Dtype.FP8_BLOCK) or storage.dense_ffn.dtype in (
        Dtype.FP8, Dtype.FP8_BLOCK,
    ):  # fmt: skip
        return storage.model_copy(update={"expert_activation": Dtype.FP8})
    linear = Storage(dtype=Dtype.FP8_BLOCK if model.is_moe else Dtype.FP8)
    return storage.model_copy(update={**_linears(linear), **_EIGHT_BIT})


def with_launched_cache(model: ModelSpec, precision: str, backend: str, device: str) -> ModelSpec:
    """The model with the cache that launches of public runs keep: 8-bit where weights are, on Blackwell and with TensorRT-LLM.

    For counting memory: attention of 16-bit keys is what describes the times of runs of published block-wise FP8 models.
    """
    if precision not in ("fp8", "fp4") or (generation_of(device) != "blackwell" and backend != "trtllm"):
        return model
    return model.model_copy(update={"storage": model.storage.model_copy(update={"kv_cache": Storage(dtype=Dtype.FP8)})})


def _fp4(generation: str) -> Callable[[ModelSpec], WeightStorage]:
    def change(model: ModelSpec) -> WeightStorage:
        storage = model.storage
        if storage.routed_experts.dtype is Dtype.MXFP4:
            # Blackwell kernels quantise activations to MXFP8, and launches there keep 8-bit keys and values; Hopper unpacks
            # the weights to 16 bits
            if generation != "blackwell":
                return storage.model_copy(update={"expert_activation": Dtype.BF16})
            return storage.model_copy(update=_EIGHT_BIT)
        linear = Storage(dtype=Dtype.NVFP4)
        if Dtype.NVFP4 in (storage.routed_experts.dtype, storage.dense_ffn.dtype):
            return storage
        kept = dict.fromkeys(kept_in_nvfp4(model.name, model.is_moe), Storage(dtype=Dtype.BF16))
        update = {**_linears(linear), **kept, "expert_activation": Dtype.NVFP4, "kv_cache": Storage(dtype=Dtype.FP8)}
        return storage.model_copy(update=update)

    return change


def _linears(storage: Storage) -> dict[str, Storage | Dtype]:
    return dict.fromkeys(("attention", "dense_ffn", "routed_experts", "shared_experts"), storage)


def parallel_of(row: RunRow) -> ParallelSpec:
    """The split of a row; `etp_size` x `ep_size` fills the ranks, zeros and dense models count as not split."""
    return ParallelSpec(tp_size=row.tp_size, dp_size=row.attention_dp_size, ep_size=max(1, row.ep_size))


@lru_cache(maxsize=64)
def hardware_of(system: str, n_devices: int) -> Hardware:
    """A cluster of `n_devices` of a system."""
    return load_hardware(system, n_devices)


def instance_of(row: RunRow, wrap: Callable[[CalibratedOps], CalibratedOps] = lambda c: c) -> Instance:
    """The instance that a row describes, with tables of its stack."""
    parallel = parallel_of(row)
    model = model_of(row.model, row.precision, row.backend, row.device)
    if not any(isinstance(layer.ffn, MoeFfn) for layer in model.layers):
        parallel = ParallelSpec(tp_size=row.tp_size, dp_size=row.attention_dp_size)
    hardware = hardware_of(row.system, parallel.n_ranks)
    calibration = calibration_of(row.backend, row.device, model.storage.expert_activation)
    return build_instance(
        model, parallel, hardware, cost=CostModel.of(hardware, wrap(calibration) if calibration is not None else None)
    )
