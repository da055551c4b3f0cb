"""`quantization_config` and `torch_dtype` to how each kind of weight is stored.

By default a quantiser converts the linear layers and leaves embedding, head, router and norms in 16 bits; lists of modules
not to convert keep further kinds of weights out. Experts of gpt-oss checkpoints alone are converted by ``mxfp4``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from moesim.specs.dtypes import Dtype, Storage
from moesim.specs.hf.fields import Fields
from moesim.specs.hf.modules import named_kinds
from moesim.specs.model import LayerSpec, WeightStorage

__all__ = ["read_storage"]

_PLAIN = {"float32": Dtype.FP32, "bfloat16": Dtype.BF16, "float16": Dtype.FP16, "fp32": Dtype.FP32, "bf16": Dtype.BF16,
          "fp16": Dtype.FP16, "half": Dtype.FP16, "float": Dtype.FP32, "auto": Dtype.BF16}  # fmt: skip
_EXPERTS = {"fp4": Dtype.MXFP4, "mxfp4": Dtype.MXFP4, "nvfp4": Dtype.NVFP4, "fp8": Dtype.FP8_BLOCK, "int4": Dtype.INT4}
_LINEAR = ("attention", "dense_ffn", "routed_experts", "shared_experts")
_IGNORE_KEYS = ("modules_to_not_convert", "ignore", "ignored_layers", "exclude_modules", "llm_int8_skip_modules")


@dataclass(frozen=True, slots=True)
class _Scheme:
    """What a quantiser makes of a linear layer; `only` limits it to some kinds."""

    weights: Storage
    activation: Dtype | None = None
    only: tuple[str, ...] = _LINEAR

    def narrowed(self, kinds: frozenset[str]) -> _Scheme:
        """The same for some kinds, those outside the linear layers (such as a head that a list names) among them."""
        return replace(self, only=tuple(sorted(kinds)))


@dataclass(frozen=True, slots=True)
class _Modules:
    """What the names of a quantiser's lists are looked up in."""

    layers: Sequence[LayerSpec]
    hidden_size: int

    def named(self, patterns: Sequence[str], field: str) -> frozenset[str]:
        """The kinds that `patterns` mean."""
        return named_kinds(patterns, self.layers, self.hidden_size, field)


def read_storage(fields: Fields, layers: Sequence[LayerSpec], hidden_size: int) -> WeightStorage:
    """How the checkpoint that the config describes stores its weights; bf16 where the config is silent.

    Raises:
        InputError: a dtype or a quantisation that is not understood.
    """
    plain = _plain_dtype(fields)
    config = fields.data.get("quantization_config") or fields.outer.get("quantization_config")
    config = config or fields.data.get("quantization") or fields.outer.get("quantization")  # hf_quant_config.json
    wide = Storage(dtype=plain)
    kinds = dict.fromkeys((*_LINEAR, "router", "embedding", "lm_head", "norm", "kv_cache"), wide)
    activation = expert_activation = plain
    if config is not None:
        path = fields.name("quantization_config") if "quantization_config" in fields.data else "quantization_config"
        if not isinstance(config, Mapping):
            raise Fields({"quantization_config": config}).refuse("quantization_config", "must be an object")
        quant = Fields(config, path)
        own: dict[str, Dtype] = {}
        for scheme in _schemes(quant, _Modules(layers, hidden_size)):
            kinds.update(dict.fromkeys(scheme.only, scheme.weights))
            own.update(dict.fromkeys(scheme.only, scheme.activation or plain))
        expert_activation = own.get("routed_experts", plain)
        activation = own.get("attention", own.get("dense_ffn", plain))
        kinds["kv_cache"] = _kv_cache(quant, wide)
    if fields.has("expert_dtype") and not (isinstance(config, Mapping) and config.get("moe_quant_algo")):
        name = fields.text("expert_dtype", "")
        if name not in _EXPERTS:
            raise fields.refuse("expert_dtype", "is not a format this tool knows", f"known: {', '.join(_EXPERTS)}")
        kinds["routed_experts"] = Storage(dtype=_EXPERTS[name])
    return WeightStorage(**kinds, activation=activation, expert_activation=expert_activation)


def _plain_dtype(fields: Fields) -> Dtype:
    name = fields.inherited("dtype") or fields.inherited("torch_dtype") or "bfloat16"
    known = _PLAIN.get(str(name).removeprefix("torch."))
    if known is None:
        key = "dtype" if fields.data.get("dtype") else "torch_dtype"
        raise fields.refuse(key, "is not a format this tool knows", f"known: {', '.join(_PLAIN)}")
    return known


def _schemes(quant: Fields, modules: _Modules) -> list[_Scheme]:
    """What the quantiser does, a scheme per set of kinds; later ones hold where two name the same kind.

    A list of layers with a format each (ModelOpt's mixed precision) says all that it converts, except beside an fp8 checkpoint,
    where it says what is no longer fp8. Otherwise groups of modules or one scheme, less the modules that are left alone.
    """
    mixed = _per_layer(quant, modules)
    if mixed:
        is_fp8 = quant.any("quant_method") == "fp8" and quant.has("weight_block_size")
        return [_scheme(quant), *mixed] if is_fp8 else mixed
    found = _groups(quant, modules) if quant.has("config_groups") else [_scheme(quant)]
    patterns: list[str] = []
    for key in _IGNORE_KEYS:
        patterns.extend(quant.sequence(key) or ())
    kept = modules.named(patterns, quant.name("modules_to_not_convert")) if patterns else frozenset()
    return [scheme.narrowed(frozenset(scheme.only) - kept) for scheme in found]


def _per_layer(quant: Fields, modules: _Modules) -> list[_Scheme]:
    """The schemes of `quantized_layers`, which gives a format for each module by name."""
    formats = quant.sub("quantized_layers")
    by_scheme: dict[_Scheme, list[str]] = {}
    for name in formats.data:
        one = formats.sub(str(name))
        by_scheme.setdefault(_modelopt(one, str(one.any("quant_algo", ""))), []).append(str(name))
    field = quant.name("quantized_layers")
    return [scheme.narrowed(modules.named(names, field)) for scheme, names in by_scheme.items()]


def _scheme(quant: Fields) -> _Scheme:
    method = quant.any("quant_method") or quant.any("quant_algo") or ("bitsandbytes" if _is_bnb(quant) else None)
    match str(method).lower():
        case "fp8" | "fbgemm_fp8" | "float8":
            block = quant.sequence("weight_block_size")
            return _Scheme(_fp8(quant, block), None if quant.any("activation_scheme") == "none" else Dtype.FP8)
        case "mxfp4":
            return _Scheme(Storage(dtype=Dtype.MXFP4), None, ("routed_experts",))
        case "awq" | "gptq" | "auto-round":
            bits = quant.count("bits", "w_bit", default=4)
            return _Scheme(_integer(quant, "bits", bits, quant.any("group_size", quant.any("q_group_size", 128))))
        case "modelopt" | "modelopt_fp4" | "nvfp4":
            return _modelopt(quant, str(quant.any("quant_algo", "NVFP4")))
        case "bitsandbytes":
            four = quant.flag("load_in_4bit") or quant.flag("_load_in_4bit")
            nf4 = Storage(dtype=Dtype.INT4, scale_group_size=64, scale_bytes=4.0)
            return _Scheme(nf4 if four else Storage(dtype=Dtype.INT8))
    raise quant.refuse("quant_method", "is not a quantisation this tool knows")


def _is_bnb(quant: Fields) -> bool:
    return bool(quant.any("load_in_4bit") or quant.any("load_in_8bit"))


def _fp8(quant: Fields, block: Sequence[Any] | None) -> Storage:
    if block is None:
        return Storage(dtype=Dtype.FP8)
    if len(block) != 2 or not all(isinstance(n, int) and n > 0 for n in block):
        raise quant.refuse("weight_block_size", "must be two sizes")
    return Storage(dtype=Dtype.FP8_BLOCK, scale_group_size=block[0] * block[1])


def _modelopt(quant: Fields, algorithm: str) -> _Scheme:
    match algorithm.upper():
        case "NVFP4":
            group = quant.count("group_size", default=16)
            return _Scheme(Storage(dtype=Dtype.NVFP4, scale_group_size=group), Dtype.NVFP4)
        case "FP8":
            return _Scheme(Storage(dtype=Dtype.FP8), Dtype.FP8)
        case "W4A16_NVFP4":
            group = quant.count("group_size", default=16)
            return _Scheme(Storage(dtype=Dtype.NVFP4, scale_group_size=group, weight_only=True))
        case "MXFP8":
            return _Scheme(Storage(dtype=Dtype.FP8_BLOCK, scale_group_size=32, scale_bytes=1.0), Dtype.FP8)
        case "W4A16_AWQ":
            return _Scheme(_integer(quant, "quant_algo", 4, quant.any("group_size", 128)))
    known = "known: NVFP4, W4A16_NVFP4, FP8, MXFP8, W4A16_AWQ"
    raise quant.refuse("quant_algo", "is not a quantisation this tool knows", known)


def _integer(quant: Fields, key: str, bits: int, group: Any) -> Storage:
    """Integers of 4 or 8 bits with one fp16 scale per group (-1: per channel)."""
    if bits not in (4, 8):
        raise quant.refuse(key, "must be 4 or 8 bits")
    if isinstance(group, bool) or not isinstance(group, int) or (group < 1 and group != -1):
        raise quant.refuse("group_size", "must be a whole number")
    dtype = Dtype.INT4 if bits == 4 else Dtype.INT8
    if group == -1:
        return Storage(dtype=dtype, scale_bytes=0.0)
    return Storage(dtype=dtype, scale_group_size=group, scale_bytes=2.0)


def _groups(quant: Fields, modules: _Modules) -> list[_Scheme]:
    """Groups of compressed-tensors or ModelOpt: formats of weights and of the inputs they meet, for the modules they target.

    A group that targets a class (``Linear``) converts every linear layer.
    """
    groups = quant.sub("config_groups")
    found = []
    for key in groups.data:
        group = groups.sub(str(key))
        scheme, targets = _group(group), group.sequence("targets") or ()
        names = [t for t in targets if not isinstance(t, str) or "." in t or ":" in t or t.islower()]
        by_class = len(names) < len(targets) or not targets
        found.append(scheme if by_class else scheme.narrowed(modules.named(names, group.name("targets"))))
    if not found:
        raise quant.refuse("config_groups", "holds no group")
    if any(scheme != found[0] for scheme in found if scheme.only == _LINEAR):
        raise quant.refuse("config_groups", "several formats for the same layers are not modelled")
    return found


def _group(group: Fields) -> _Scheme:
    weights = group.sub("weights")
    bits = weights.count("num_bits")
    kind = weights.text("type", "int")
    size = weights.any("group_size", -1)
    if kind == "int":
        storage = _integer(weights, "num_bits", bits, size)
    elif bits == 8:
        storage = _fp8(weights, weights.sequence("block_structure"))
    elif bits == 4 and size in (16, 32):
        storage = Storage(dtype=Dtype.NVFP4 if size == 16 else Dtype.MXFP4)
    else:
        raise weights.refuse("num_bits", "floats of this many bits in such groups are not known")
    inputs = group.sub("input_activations")
    if not inputs.data:
        floats_alone = storage.dtype in (Dtype.NVFP4, Dtype.MXFP4)
        return _Scheme(storage.model_copy(update={"weight_only": True}) if floats_alone else storage)
    floats = inputs.text("type", "int") == "float"
    formats = {(8, True): Dtype.FP8, (4, True): storage.dtype, (8, False): Dtype.INT8, (4, False): Dtype.INT4}
    found = formats.get((inputs.count("num_bits"), floats))
    if found is None:
        raise inputs.refuse("num_bits", "activations of this many bits are not modelled")
    return _Scheme(storage, found)


def _kv_cache(quant: Fields, wide: Storage) -> Storage:
    scheme = quant.any("kv_cache_scheme") or quant.any("kv_cache_quant_algo")
    if scheme is None:
        return wide
    if isinstance(scheme, Mapping):
        nested = quant.sub("kv_cache_scheme")
        floats = nested.text("type", "float") == "float"
        name = f"{'FP' if floats else 'INT'}{nested.count('num_bits')}"
    else:
        name = str(scheme).upper()
    known = {"FP8": Dtype.FP8, "INT8": Dtype.INT8, "NVFP4": Dtype.NVFP4, "FP4": Dtype.NVFP4}
    if name not in known:
        raise quant.refuse("kv_cache_scheme", "is not a format this tool knows", f"known: {', '.join(known)}")
    return Storage(dtype=known[name])
