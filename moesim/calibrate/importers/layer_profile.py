"""Import per-layer kernel profiles of vLLM: one folder per model, ``meta.yaml``, and ``tp<k>/{dense,attention,moe}.csv`` in us.

`dense.csv` (layer, tokens, time_us), `attention.csv` (prefill_chunk, kv_prefill, n_decode, kv_decode, time_us) and `moe.csv`
(tokens, activated_experts, time_us). Layer sizes come from the model's architecture.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesim.calibrate.importers.user_csv import read_csv
from moesim.calibrate.tables import MeasurementTable, concat
from moesim.errors import InputError
from moesim.specs.load import read_yaml
from moesim.specs.model import DenseFfn, GqaAttention, ModelSpec, MoeFfn

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["import_layer_profile"]

_US = 1e-6


def import_layer_profile(
    folder: str | Path, model: ModelSpec, device: str, version: str, kernel: str = "", stack: str = "vllm"
) -> MeasurementTable:
    """Measurements of the GEMM, pure prefill, pure decode and MoE rows of one profiled model.

    Args:
        folder: the model's folder, with ``tp1``, ``tp2``, ... inside.
        model: its architecture; projections and head counts are divided by the tensor-parallel size.
        device: our name of the device it was profiled on.
        version: version of the stack; the one in ``meta.yaml`` if empty.
        kernel: what to call the kernels.
        stack: name of the stack.

    Assumes: bf16 weights and cache; loads of a MoE row spread evenly over its activated experts.

    Raises:
        InputError: no profile there, a column missing, the profile of another model, or an architecture that is not
            grouped-query attention.
    """
    folder = Path(folder)
    about = _about(folder, model)
    version = version or about.get("vllm_version", "")
    fixed = {"device": device, "stack": stack, "version": version, "kernel": kernel, "dtype": "bf16"}
    fixed["source"] = f"layer profile {folder.name}"
    frames = []
    for path in sorted(folder.glob("tp*/*.csv")):
        tp_size = int(path.parent.name.removeprefix("tp"))
        read = {"dense": _dense, "attention": _attention, "moe": _moe}.get(path.stem)
        if read is not None:
            frame = read(_columns(path), model, tp_size)
            if len(frame):
                frames.append(MeasurementTable.of(frame.assign(**fixed), str(path)))
    if not frames:
        raise InputError("holds no layer profile", file=str(folder), hint="give the folder with tp1/dense.csv inside")
    return concat(frames)


def _about(folder: Path, model: ModelSpec) -> dict[str, str]:
    """Texts of ``meta.yaml``, if there is one; a profile of another model is refused."""
    path = folder / "meta.yaml"
    if not path.is_file():
        return {}
    about = {name: value for name, value in read_yaml(path).items() if isinstance(value, str)}
    profiled = about.get("model", "").rpartition("/")[2].lower()
    names = [n.rpartition("/")[2].lower() for n in (model.name, model.hf_id or "") if n]
    if profiled and not any(profiled == n or profiled.startswith(f"{n}-") for n in names):
        raise InputError("profile of another model", str(path), field="model", value=about["model"], allowed=model.name)
    return about


def _columns(path: Path) -> pd.DataFrame:
    needed = {
        "dense": ("layer", "tokens", "time_us"),
        "attention": ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us"),
        "moe": ("tokens", "activated_experts", "time_us"),
    }
    raw = read_csv(path)
    for column in needed.get(path.stem, ()):
        if column not in raw.columns:
            raise InputError("table lacks a needed column", file=str(path), field=column)
    return raw


def _dense(raw: pd.DataFrame, model: ModelSpec, tp_size: int) -> pd.DataFrame:
    import pandas as pd

    attention, hidden = _attention_of(model), model.hidden_size
    heads, kv_heads = attention.n_heads / tp_size, max(1.0, attention.n_kv_heads / tp_size)
    sizes = {
        "qkv_proj": ((heads + 2 * kv_heads) * attention.head_dim, hidden),
        "o_proj": (hidden, heads * attention.head_dim),
    }
    ffn = model.layers[0].ffn
    if isinstance(ffn, DenseFfn):
        width = ffn.intermediate_size / tp_size
        sizes |= {"gate_up_proj": (2 * width, hidden), "down_proj": (hidden, width)}
    rows = raw[raw["layer"].isin(sizes)]
    n, k = (rows["layer"].map({name: size[i] for name, size in sizes.items()}) for i in range(2))
    return pd.DataFrame({"op_kind": "gemm", "m": rows["tokens"], "n": n, "k": k, "measured_s": rows["time_us"] * _US})


def _attention_of(model: ModelSpec) -> GqaAttention:
    attention = model.layers[0].attention
    if not isinstance(attention, GqaAttention):
        raise InputError("layer profiles are read for grouped-query attention only", field="model", value=model.name)
    return attention


def _attention(raw: pd.DataFrame, model: ModelSpec, tp_size: int) -> pd.DataFrame:
    import pandas as pd

    a = _attention_of(model)
    decode = raw[(raw["prefill_chunk"] == 0) & (raw["n_decode"] > 0)]
    prefill = raw[(raw["prefill_chunk"] > 0) & (raw["n_decode"] == 0)]
    heads: dict[str, Any] = {
        "n_heads": a.n_heads / tp_size, "n_kv_heads": max(1.0, a.n_kv_heads / tp_size),
        "qk_head_dim": a.head_dim, "v_head_dim": a.v_head_dim, "window": a.sliding_window or 0, "kv_dtype": "bf16",
    }  # fmt: skip
    parts = [
        pd.DataFrame({"op_kind": "attention_decode", "batch": decode["n_decode"], "q_len": 1, "kv_len": decode["kv_decode"] + 1,
                      "measured_s": decode["time_us"] * _US}),
        pd.DataFrame({"op_kind": "attention_prefill", "batch": 1, "q_len": prefill["prefill_chunk"],
                      "kv_len": prefill["prefill_chunk"] + prefill["kv_prefill"], "measured_s": prefill["time_us"] * _US}),
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True).assign(**heads)


def _moe(raw: pd.DataFrame, model: ModelSpec, tp_size: int) -> pd.DataFrame:
    import pandas as pd

    ffn = next((layer.ffn for layer in model.layers if isinstance(layer.ffn, MoeFfn)), None)
    if ffn is None:
        raise InputError("a MoE profile of a model without experts", field="model", value=model.name)
    pairs = raw["tokens"] * ffn.num_experts_per_tok
    hit = raw["activated_experts"]
    if (hit > ffn.n_routed_experts).any() or (hit > pairs).any():
        allowed = f"at most {ffn.n_routed_experts}, and {ffn.num_experts_per_tok} per token"
        problem = "experts that the model does not have: profile of another model"
        raise InputError(problem, field="activated_experts", value=int(hit.max()), allowed=allowed)
    shape = (model.hidden_size, ffn.moe_intermediate_size, ffn.n_routed_experts, ffn.num_experts_per_tok)
    return pd.DataFrame(
        {
            "op_kind": "moe", "model_shape": "-".join(map(str, shape)), "n_tokens": raw["tokens"], "n_assignments": pairs,
            "n_experts_hit": hit, "max_expert_tokens": -(-pairs // hit), "n_local_experts": ffn.n_routed_experts,
            "hidden_size": model.hidden_size, "inter_size": ffn.moe_intermediate_size / tp_size,
            "top_k": ffn.num_experts_per_tok, "gated": float(ffn.gated), "measured_s": raw["time_us"] * _US,
        }
    )  # fmt: skip
