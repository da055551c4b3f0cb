"""Which kernel tables and which fitted parameters a serving stack has on a device; shared by every command and by `validate`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from moesim.calibrate.store import calibration_names, find_calibration
from moesim.cost import CalibratedOps
from moesim.cost.forms_calibration import Calibration
from moesim.cost.layered import LayeredCalibration
from moesim.cost.stack import DEFAULT_STACK, LentCalibration, StackParams, with_quickest_experts
from moesim.ops import REDUCES, SCORES, experts_call
from moesim.specs.catalog import load_device
from moesim.specs.dtypes import Dtype
from moesim.specs.model import ModelSpec

__all__ = [
    "BACKENDS",
    "SIBLINGS",
    "as_run",
    "calibration_of",
    "contained_kernels",
    "generation_of",
    "is_like_its_sibling",
    "stack_for",
    "tables_device",
]

#: Serving stacks, in the order in which a device's default is chosen.
BACKENDS = ("vllm", "sglang", "trtllm")
#: Data-centre Blackwell: vLLM, SGLang and TensorRT-LLM share kernels that TensorRT-LLM generates (through FlashInfer).
_SHARED_KERNELS = ("b200_sxm", "b300_sxm", "gb200", "gb300")
BLACKWELL = ("b200_sxm", "b300_sxm", "gb200", "gb300", "rtx_pro_6000")
#: The sibling (same chip; other board, link or memory) whose tables stand in for those that a device lacks.
SIBLINGS = {
    "gb200": "b200_sxm",
    "gb300": "b200_sxm",
    "b300_sxm": "b200_sxm",
    "h800_sxm": "h100_sxm",
    "h20_sxm": "h200_sxm",
}
#: Kernel of MXFP4 experts that published launch scripts force (VLLM_MXFP4_USE_MARLIN=1 in gptoss_fp4_h100.sh and
#: gptoss_fp4_h200.sh of the public repository SemiAnalysisAI/InferenceX).
FORCED_EXPERTS = {("vllm", "hopper"): "marlin"}
#: Norms that stacks run in the kernel of the tensor-parallel all-reduce before them, by default. TensorRT-LLM: all of them
#: (AllReduceFusionOp.RESIDUAL_RMS_NORM in its models). vLLM: `fuse_allreduce_rms` at its default level on Hopper and data-centre
#: Blackwell, but for the sum of experts, which its fused layer adds up itself (vllm-project/vllm, enable_allreduce_rms_fusion in
#: vllm/config/vllm.py; pull request 34109). SGLang: --enable-flashinfer-allreduce-fusion, which it sets for mixtures
#: there (sgl-project/sglang, python/sglang/srt/server_args.py).
FUSED_NORMS = {
    "trtllm": frozenset(REDUCES),
    "vllm": frozenset(REDUCES) - {"moe_ffn"},
    "sglang": frozenset(REDUCES) - {"attention", "ffn"},
}
_FORMATS = frozenset(Dtype)
_EVERY_CALL = {ep: frozenset(experts_call(d, ep) for d in _FORMATS) for ep in (1, 2)}
_MXFP4_CALLS = frozenset(experts_call(Dtype.MXFP4, ep) for ep in (1, 2))
#: Small kernels that the calls of a stack's tables contain, by how aiconfigurator's collectors time them (collect_attn.py,
#: collect_mla.py and collect_moe.py in collector/<stack> of ai-dynamo/aiconfigurator). TensorRT-LLM: rotation and writing of
#: keys in the attention call, choosing experts in the MoE module. vLLM: choosing experts of MXFP4. SGLang: choosing experts,
#: but for NVFP4 and where ranks hold some of them.
IN_TABLES = {
    "trtllm": frozenset({SCORES}) | _EVERY_CALL[1] | _EVERY_CALL[2],
    "vllm": _MXFP4_CALLS,
    "sglang": (_EVERY_CALL[1] - {experts_call(Dtype.NVFP4, 1)}) | _MXFP4_CALLS,
}
#: How far peak arithmetic of a sibling may be for its tables to stand in unasked.
LIKE_FRAC = 0.25


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


def contained_kernels(backend: str, device: str, *, fuses_norms: bool = True) -> frozenset[str]:
    """Names (`Op.inside`) of what contains small kernels, which a stack then does not launch.

    >>> sorted(contained_kernels("vllm", "l40s"))
    ['mxfp4_experts', 'mxfp4_experts, split']
    """
    is_new = device in _SHARED_KERNELS or generation_of(device) == "hopper"
    norms = FUSED_NORMS.get(backend, frozenset()) if fuses_norms and (is_new or backend == "trtllm") else frozenset()
    return norms | IN_TABLES.get(backend, frozenset())


def is_like_its_sibling(device: str) -> bool:
    """Whether a device computes about as fast as the one whose tables stand in for it (the H20 does not)."""
    own, other = (load_device(name).peak_flop_per_s.rate(Dtype.BF16) for name in (device, SIBLINGS[device]))
    return abs(own / other - 1.0) <= LIKE_FRAC


@lru_cache(maxsize=64)
def calibration_of(
    backend: str, system: str, expert_activation: Dtype = Dtype.BF16, *, by_point: bool = False
) -> CalibratedOps | None:
    """The tables of a stack on a device, or its sibling's, with the kernels that take these activations; None without tables.

    On Blackwell, all three run TensorRT-LLM's generated kernels for MXFP4 experts (vLLM and SGLang through FlashInfer), so tables
    of the others stand in where a stack's own have only other kernels or shapes. `by_point` picks the quickest kernel for every
    point of a grid.
    """
    device = tables_device(backend, system)
    if device is None:
        return None
    found = find_calibration(f"{device}/{backend}")
    lenders: tuple[Calibration, ...] = ()
    if device in _SHARED_KERNELS and expert_activation is Dtype.FP8:
        lenders = tuple(find_calibration(f"{device}/{other}") for other in BACKENDS if other != backend)
    forced = FORCED_EXPERTS.get((backend, generation_of(device)), "")
    experts = with_quickest_experts(found, expert_activation, lenders, by_point=by_point, forced=forced)
    tables: CalibratedOps = experts if device == system else LentCalibration(experts, load_device(device))
    linked = tables_device("nccl", system)
    if linked is None:
        return tables
    links = find_calibration(f"{linked}/nccl")
    return LayeredCalibration((tables, links if linked == system else LentCalibration(links, load_device(linked))))


def tables_device(stack: str, device: str) -> str | None:
    """The device whose tables of a stack answer for a device: its own, else its sibling's; None without either."""
    known = calibration_names()
    return next((d for d in (device, SIBLINGS.get(device, device)) if f"{d}/{stack}" in known), None)


def as_run(model: ModelSpec, device: str) -> ModelSpec:
    """The model with its experts' activations as serving stacks run them: 8-bit ones with 8-bit experts, and so on.

    MXFP4 experts take 8-bit activations on Blackwell and 16-bit ones before; NVFP4 ones 4-bit on Blackwell, 16-bit before.
    """
    storage = model.storage
    act = storage.expert_activation
    is_new = generation_of(device) == "blackwell"
    wanted = {
        Dtype.MXFP4: Dtype.FP8 if is_new else Dtype.BF16,
        Dtype.NVFP4: Dtype.NVFP4 if is_new else Dtype.BF16,
        Dtype.FP8: Dtype.FP8,
        Dtype.FP8_BLOCK: Dtype.FP8,
    }.get(storage.routed_experts.dtype, act)
    if not model.is_moe or wanted is act or (wanted is Dtype.FP8 and load_device(device).peak_flop_per_s.fp8 is None):
        return model
    return model.model_copy(update={"storage": storage.model_copy(update={"expert_activation": wanted})})


def stack_for(key: str, stacks: Mapping[str, StackParams]) -> StackParams:
    """A stack's own parameters, else its backend's, else the common ones."""
    return stacks.get(key) or stacks.get(key.partition("_")[0]) or stacks.get("default", DEFAULT_STACK)
