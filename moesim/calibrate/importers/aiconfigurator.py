"""Import the measured kernel tables that ship inside the PyPI package ``aiconfigurator-core`` (read as files, pinned to 0.12.0).

Units and traps: `latency` is ms; `message_size` counts elements; `num_tokens` is global to the expert-parallel group. Left out,
because the times are not those of the kernel: vLLM 0.24.0 block-fp8 GEMM (host-bound: 55-230 us at any size).
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moesim.calibrate.importers.synthetic_loads import (
    LoadSummary,
    balanced,
    group_limit,
    power_law,
    rank_load,
    summarise,
)
from moesim.calibrate.tables import MeasurementTable, concat
from moesim.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PINNED_VERSION", "SYSTEMS", "import_aiconfigurator", "package_data_dir"]

PINNED_VERSION = "0.12.0"
SYSTEMS = {
    "a100_sxm": "a100_sxm", "h100_sxm": "h100_sxm", "h200_sxm": "h200_sxm", "b200_sxm": "b200_sxm", "l40s": "l40s",
    "rtx_pro_6000": "rtx_pro_6000_server", "b300_sxm": "b300_sxm", "gb200": "gb200", "gb300": "gb300",
}  # fmt: skip
_SOURCE = f"aiconfigurator-core {PINNED_VERSION} (PyPI, Apache-2.0)"
_DATE = "2026"

#: moe_dtype or gemm_dtype -> (stored weights, activations)
_DTYPES = {
    "bfloat16": ("bf16", "bf16"), "fp8": ("fp8", "fp8"), "fp8_block": ("fp8_block", "fp8_block"), "nvfp4": ("nvfp4", "nvfp4"),
    "int4_wo": ("int4", "bf16"), "int8_wo": ("int8", "bf16"), "sq": ("int8", "int8"), "w4afp8": ("int4", "fp8"),
    "w4a16_mxfp4": ("mxfp4", "bf16"), "w4a8_mxfp4_mxfp8": ("mxfp4", "fp8"),
}  # fmt: skip

#: Nemotron-3 models (squared ReLU, no gate): hidden, width, experts, top-k.
_NOT_GATED = {
    (2688, 1856, 128, 6), (1024, 2688, 512, 22), (2048, 5120, 512, 22), (4096, 2688, 512, 22), (8192, 5120, 512, 22),
}  # fmt: skip
_DEEPSEEK_V3 = (7168, 2048, 256, 8)
_N_DRAWS = 12


@dataclass(frozen=True, slots=True)
class _Files:
    kind: str
    family: str
    name: str


_TABLES = (
    _Files("gemm", "gemm", "gemm_perf"),
    _Files("moe", "moe", "moe_perf"),
    _Files("attention_prefill", "attention", "context_attention_perf"),
    _Files("attention_decode", "attention", "generation_attention_perf"),
    _Files("mla_attention_prefill", "mla", "context_mla_perf"),
    _Files("mla_attention_decode", "mla", "generation_mla_perf"),
    _Files("linear_attention", "linear_attention", "gdn_perf"),
    _Files("linear_attention", "kda", "kda_perf"),
    _Files("nccl", "comm", "nccl_perf"),
    _Files("custom_all_reduce", "comm", "custom_allreduce_perf"),
)


def package_data_dir() -> Path:
    """Folder of the measured tables of the installed package, found without importing it.

    Raises:
        MissingExtraError: the package is not installed.
    """
    spec = importlib.util.find_spec("aiconfigurator_core")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(f"aiconfigurator-core=={PINNED_VERSION}", "tables")
    return Path(next(iter(spec.submodule_search_locations))) / "systems" / "data"


def import_aiconfigurator(
    source: str | Path | None = None,
    device: str = "h100_sxm",
    kinds: tuple[str, ...] | None = None,
    stacks: tuple[str, ...] | None = None,
    latest_only: bool = True,
) -> MeasurementTable:
    """Measurements of one device.

    Args:
        source: the package's folder or its ``systems/data`` folder; the installed package if None.
        device: our name of the device, see `SYSTEMS`.
        kinds: ``gemm``, ``moe``, ``attention_prefill``, ``nccl``, ...; all if None.
        stacks: ``vllm``, ``sglang``, ``trtllm``, ``nccl``; all if None.
        latest_only: of each table only the newest version of a stack.

    Raises:
        InputError: an unknown device, or no tables there.
        MissingExtraError: no source given and the package is not installed.
    """
    if device not in SYSTEMS:
        raise InputError("no tables for this device", field="device", value=device, allowed=", ".join(SYSTEMS))
    root = package_data_dir() if source is None else _data_dir(Path(source))
    tables = []
    for files in _TABLES:
        if kinds is not None and files.kind not in kinds:
            continue
        for path in _paths(root / SYSTEMS[device] / files.family, files.name, stacks, latest_only):
            table = _read(path, files.kind, device)
            if table is not None:
                tables.append(table)
    if not tables:
        raise InputError("no measured tables found", file=str(root), hint="give the folder that holds systems/data")
    return concat(tables)


def _data_dir(source: Path) -> Path:
    for inner in ("aiconfigurator_core/systems/data", "systems/data", "."):
        if (source / inner / "h100_sxm").is_dir():
            return source / inner
    raise InputError("holds no aiconfigurator tables", file=str(source), hint="give the folder that holds systems/data")


def _paths(folder: Path, name: str, stacks: tuple[str, ...] | None, latest_only: bool) -> list[Path]:
    by_stack: dict[str, list[Path]] = {}
    for path in folder.glob(f"*/*/{name}.parquet"):
        if stacks is None or path.parts[-3] in stacks:
            by_stack.setdefault(path.parts[-3], []).append(path)
    found = []
    for paths in by_stack.values():
        paths.sort(key=lambda p: _version(p.parts[-2]))
        found += _newest_full(paths) if latest_only else paths
    return found


def _newest_full(paths: list[Path]) -> list[Path]:
    """The newest version whose table is not a small supplement of an older one."""
    sizes = [p.stat().st_size for p in paths]
    full = [p for p, size in zip(paths, sizes, strict=True) if 4 * size >= max(sizes)]
    return full[-1:]


def _version(text: str) -> tuple[int, ...]:
    digits = "".join(c if c.isdigit() else " " for c in text).split()
    return tuple(int(d) for d in digits)


def _read(path: Path, kind: str, device: str) -> MeasurementTable | None:
    import pandas as pd

    raw = pd.read_parquet(path)
    stack, version = path.parts[-3:-1]
    raw = raw[raw["latency"] > 0.0]
    if kind == "gemm":
        frame = _gemm(raw, stack, version)
    elif kind == "moe":
        frame = _moe(raw, stack, version)
    elif kind == "linear_attention":
        frame = _linear_attention(raw)
    elif "attention" in kind:
        frame = _attention(raw, kind)
    elif kind == "nccl":
        frame = _nccl(raw, version)
    else:
        frame = _custom_all_reduce(raw)
    if frame.empty:
        return None
    frame["measured_s"] = raw.loc[frame.index, "latency"] * 1e-3
    keys = [c for c in frame.columns if c != "measured_s"]
    frame = frame.groupby(keys, dropna=False, sort=False)["measured_s"].median().reset_index()
    fixed = {"device": device, "stack": stack, "version": version, "date": _DATE}
    frame = frame.assign(**fixed, source=f"{_SOURCE}, {'/'.join(path.parts[-5:])}")
    return MeasurementTable.of(frame, str(path))


def _formats(column: pd.Series[str]) -> dict[str, pd.Series[str]]:
    return {"dtype": column.map(lambda d: _DTYPES[d][0]), "act_dtype": column.map(lambda d: _DTYPES[d][1])}


def _gemm(raw: pd.DataFrame, stack: str, version: str) -> pd.DataFrame:
    import pandas as pd

    if stack == "vllm" and version == "0.24.0":
        raw = raw[raw["gemm_dtype"] != "fp8_block"]
    sizes = {c: raw[c] for c in ("m", "n", "k")}
    return pd.DataFrame(
        {"op_kind": "gemm", **_formats(raw["gemm_dtype"]), "kernel": raw["kernel_source"].map(_short), **sizes}
    )


def _short(kernel: str) -> str:
    """Kernel names without the builder's path."""
    return kernel.rsplit("/", 1)[-1]


def _moe(raw: pd.DataFrame, stack: str, version: str) -> pd.DataFrame:
    import pandas as pd

    shapes = list(zip(raw["hidden_size"], raw["inter_size"], raw["num_experts"], raw["topk"], strict=True))
    raw = raw.assign(
        limited=_is_group_limited(raw, shapes, stack, version),
        slots=(stack == "sglang" and version == "0.5.10") & (raw["moe_ep_size"] > 1),
    )
    loads = _loads(raw)
    gated = ~raw["kernel_source"].str.contains("nongated") & pd.Series([s not in _NOT_GATED for s in shapes], raw.index)
    return pd.DataFrame(
        {
            "op_kind": "moe",
            **_formats(raw["moe_dtype"]),
            "kernel": raw["kernel_source"],
            "model_shape": ["-".join(map(str, s)) for s in shapes],
            "n_tokens": raw["num_tokens"],
            **loads,
            "n_local_experts": raw["num_experts"] / raw["moe_ep_size"],
            "hidden_size": raw["hidden_size"],
            "inter_size": raw["inter_size"] / raw["moe_tp_size"],
            "top_k": raw["topk"],
            "gated": gated.astype(float),
        }
    )


def _is_group_limited(
    raw: pd.DataFrame, shapes: list[tuple[int, int, int, int]], stack: str, version: str
) -> pd.Series[bool]:
    """Rows timed with DeepSeek-V3's routing (4 of 8 groups), where the label's loads did not run.

    TensorRT-LLM's minimum-latency rows use it for every model (said in its collector); SGLang 0.5.14 and vLLM 0.24.0 build the
    model's own router for DeepSeek-V3 (seen in the times: halving the experts per rank leaves them unchanged).
    """
    import pandas as pd

    own = (stack == "sglang" and version == "0.5.14") or (stack == "vllm" and version == "0.24.0")
    is_deepseek = pd.Series([s == _DEEPSEEK_V3 for s in shapes], raw.index)
    return (raw["kernel_source"] == "moe_torch_flow_min_latency") | (is_deepseek & own)


def _loads(raw: pd.DataFrame) -> dict[str, np.ndarray]:
    keys = ["num_tokens", "num_experts", "topk", "moe_ep_size", "distribution", "limited", "slots"]
    known: dict[tuple[object, ...], LoadSummary] = {}
    rows = list(raw[keys].itertuples(index=False, name=None))
    for row in set(rows):
        known[row] = _load(*row)
    found = [known[row] for row in rows]
    return {
        "n_assignments": np.asarray([s.n_assignments for s in found]),
        "n_experts_hit": np.asarray([s.n_experts_hit for s in found]),
        "max_expert_tokens": np.asarray([s.max_expert_load for s in found]),
    }


def _load(
    n_tokens: int, n_experts: int, topk: int, ep_size: int, distribution: str, limited: bool, slots: bool
) -> LoadSummary:
    if distribution == "balanced":
        routings = [balanced(n_tokens, n_experts, topk)]
    elif distribution.startswith("power_law_"):
        exponent = float(distribution.removeprefix("power_law_"))
        rng = np.random.default_rng([n_tokens, n_experts, topk, ep_size])
        routings = [power_law(n_tokens, n_experts, topk, ep_size, exponent, rng) for _ in range(_N_DRAWS)]
    else:
        raise InputError("unknown load distribution", field="distribution", value=distribution)
    if limited and n_experts % 8 == 0:
        routings = [group_limit(r, n_experts, 8, 4) for r in routings]
    return summarise([rank_load(r, n_experts // ep_size, slots) for r in routings])


def _attention(raw: pd.DataFrame, kind: str) -> pd.DataFrame:
    import pandas as pd

    is_mla, is_decode = kind.startswith("mla"), kind.endswith("decode")
    dtype = raw["mla_dtype" if is_mla else "attn_dtype"].map(lambda d: _DTYPES[d][0])
    if is_mla:
        sizes: tuple[Any, ...] = (1, 576, 512, 0.0) if is_decode else (raw["num_heads"], 192, 128, 0.0)
    else:
        window = raw["window_size"].fillna(0) if "window_size" in raw else 0
        sizes = raw["num_key_value_heads"], raw["head_dim"], raw["head_dim"], window
    kv_heads, qk, v, window = sizes
    return pd.DataFrame(
        {
            "op_kind": kind,
            "dtype": dtype,
            "act_dtype": dtype,
            "kv_dtype": raw["kv_cache_dtype"].map(lambda d: _DTYPES[d][0]),
            "kernel": raw["kernel_source"],
            "batch": raw["batch_size"],
            "q_len": 1 if is_decode else raw["isl"],
            "kv_len": raw["step"] + (1 if is_decode else raw["isl"]),
            "n_heads": raw["num_heads"],
            "n_kv_heads": kv_heads,
            "qk_head_dim": qk,
            "v_head_dim": v,
            "window": window,
            "is_mla": float(is_mla),
        }
    )


#: The kernels that carry the state; the short convolutions before them are rows of their own and left out.
_STATE_KERNELS = "gated_delta_rule|kda"


def _linear_attention(raw: pd.DataFrame) -> pd.DataFrame:
    """Rows of the state's kernel, without those that check drafted tokens (phase `verify`)."""
    import pandas as pd

    raw = raw[raw["kernel_source"].str.contains(_STATE_KERNELS) & raw["phase"].isin(["context", "generation"])]
    is_decode = raw["phase"] == "generation"
    return pd.DataFrame(
        {
            "op_kind": is_decode.map({True: "linear_attention_decode", False: "linear_attention_prefill"}),
            "dtype": "bf16",
            "kernel": raw["op_name"] + " " + raw["kernel_source"].map(_short),
            "batch": raw["batch_size"],
            "q_len": raw["seq_len"].where(~is_decode, 1),
            "n_heads": raw["num_v_heads"],
            "n_kv_heads": raw["num_k_heads"],
            "qk_head_dim": raw["head_k_dim"],
            "v_head_dim": raw["head_v_dim"],
        }
    )


def _nccl(raw: pd.DataFrame, version: str) -> pd.DataFrame:
    import pandas as pd

    width = raw["nccl_dtype"].map({"half": 2, "int8": 1})
    kinds = raw["op_name"].replace({"alltoall": "all_to_all"})
    return pd.DataFrame(
        {
            "op_kind": kinds, "dtype": "bf16", "kernel": f"nccl {version} " + raw["nccl_dtype"].astype(str),
            "n_ranks": raw["num_gpus"], "message_bytes": raw["message_size"] * width,
        }
    )  # fmt: skip


def _custom_all_reduce(raw: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(
        {
            "op_kind": "all_reduce", "dtype": "bf16", "kernel": raw["kernel_source"],
            "n_ranks": raw["num_gpus"], "message_bytes": raw["message_size"] * 2,
        }
    )  # fmt: skip
