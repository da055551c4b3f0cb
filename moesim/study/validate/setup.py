"""From a row of a table of serving runs to a model on ranks: what `precision` means on which stack, the split, the device."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from moesim.calibrate.store import find_calibration
from moesim.cost import CalibratedOps, CostModel
from moesim.cost.forms_calibration import Calibration
from moesim.cost.layered import LayeredCalibration
from moesim.cost.stack import LentCalibration, with_quickest_experts
from moesim.errors import CatalogError, InputError
from moesim.specs.catalog import load_hardware, load_model
from moesim.specs.dtypes import Dtype, Storage
from moesim.specs.hardware import Hardware
from moesim.specs.model import ModelSpec, MoeFfn, WeightStorage
from moesim.specs.parallel import ParallelSpec
from moesim.specs.variants import kept_in_nvfp4
from moesim.study.instance import Instance, build_instance
from moesim.study.validate.table import RunRow

__all__ = ["calibration_of", "generation_of", "hardware_of", "instance_of", "model_of", "parallel_of"]

BLACKWELL = ("b200_sxm", "b300_sxm", "gb200", "gb300", "rtx_pro_6000")
_EIGHT_BIT: dict[str, Storage | Dtype] = {"expert_activation": Dtype.FP8, "kv_cache": Storage(dtype=Dtype.FP8)}
#: Devices without tables of their own and the sibling whose tables stand in (same chip; other board, link or memory).
SIBLINGS = {
    "gb200": "b200_sxm",
    "gb300": "b200_sxm",
    "b300_sxm": "b200_sxm",
    "h800_sxm": "h100_sxm",
    "h20_sxm": "h200_sxm",
}


def generation_of(device: str) -> str:
    """The generation a device belongs to, as far as software treats devices alike.

    >>> generation_of("h200_sxm"), generation_of("gb200")
    ('hopper', 'blackwell')
    """
    if device in BLACKWELL:
        return "blackwell"
    if device.startswith(("h100", "h200", "h800", "h20")):
        return "hopper"
    return "ampere" if device.startswith(("a100", "a800")) else device


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
    return storage.model_copy(
        update={**_linears(linear), "expert_activation": Dtype.FP8, "kv_cache": Storage(dtype=Dtype.FP8)}
    )


def _fp4(generation: str) -> Callable[[ModelSpec], WeightStorage]:
    def change(model: ModelSpec) -> WeightStorage:
        storage = model.storage
        if storage.routed_experts.dtype is Dtype.MXFP4:
            # Blackwell kernels quantise activations to MXFP8; Hopper unpacks the weights to 16 bits
            act = Dtype.FP8 if generation == "blackwell" else Dtype.BF16
            return storage.model_copy(update={"expert_activation": act})
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


@lru_cache(maxsize=64)
def calibration_of(backend: str, system: str, expert_activation: Dtype = Dtype.BF16) -> CalibratedOps | None:
    """The tables of a stack on a device, or its sibling's, with the kernels that take these activations; None without tables.

    On Blackwell, vLLM and SGLang run TensorRT-LLM's generated kernels for MXFP4 experts (through FlashInfer), so those tables
    stand in where their own have only other kernels.
    """
    device = SIBLINGS.get(system, system)
    try:
        found = find_calibration(f"{device}/{backend}")
    except CatalogError:
        return None
    lenders: tuple[Calibration, ...] = ()
    if generation_of(device) == "blackwell" and device == "b200_sxm" and expert_activation is Dtype.FP8:
        lenders = (find_calibration(f"{device}/{'sglang' if backend == 'trtllm' else 'trtllm'}"),)
    experts = with_quickest_experts(found, expert_activation, lenders)
    layers = (experts, find_calibration(f"{device}/nccl"))
    lent = LayeredCalibration(layers)
    return LentCalibration(lent, hardware_of(device, 1).device) if device != system else lent


def instance_of(row: RunRow, wrap: Callable[[CalibratedOps], CalibratedOps] = lambda c: c) -> Instance:
    """The instance that a row describes, with tables of its stack."""
    parallel = parallel_of(row)
    model = model_of(row.model, row.precision, row.backend, row.system)
    if not any(isinstance(layer.ffn, MoeFfn) for layer in model.layers):
        parallel = ParallelSpec(tp_size=row.tp_size, dp_size=row.attention_dp_size)
    hardware = hardware_of(row.system, parallel.n_ranks)
    calibration = calibration_of(row.backend, row.system, model.storage.expert_activation)
    return build_instance(
        model, parallel, hardware, cost=CostModel.of(hardware, wrap(calibration) if calibration is not None else None)
    )
