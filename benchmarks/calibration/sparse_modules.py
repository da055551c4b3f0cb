"""Predicted times of whole attention modules (DeepSeek-V3 to V4, GLM-5, MiniMax-M3) against measured ones that no fit saw.

Needs the published tables: `pip install aiconfigurator-core==0.12.0` (82 MB, Linux), or its unpacked folder as --source.

    python benchmarks/calibration/sparse_modules.py --source FOLDER [--device b200_sxm] [--sample 1500]

A row is one module (projections, norms, index, scores, output) of one layer on one rank: vLLM 0.24, and SGLang 0.5.14 where
said so. Each is lowered as the simulator lowers it, all-reduces left out, and priced with the device's tables of that stack.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from moesim.cost.estimate import CostModel
from moesim.lowering.attention import lower_attention
from moesim.lowering.common import Context, Pass
from moesim.ops import OpKind, Phase
from moesim.specs.attention import Attention, CompressedAttention, GqaAttention, MlaAttention
from moesim.specs.catalog import load_hardware, load_model
from moesim.specs.dtypes import Dtype, Storage
from moesim.specs.model import ModelSpec
from moesim.specs.parallel import ParallelSpec
from moesim.study.calibrated import calibration_for

CLUSTERS = {"b200_sxm": "hgx_b200", "h200_sxm": "hgx_h200", "h100_sxm": "hgx_h100"}
MODELS = {
    "deepseek-ai/DeepSeek-V3": "deepseek-v3",
    "deepseek-ai/DeepSeek-V3.2": "deepseek-v3.2",
    "sgl-project/DeepSeek-V4-Flash-FP8": "deepseek-v4-flash",
    "sgl-project/DeepSeek-V4-Pro-FP8": "deepseek-v4-pro",
    "deepseek-ai/DeepSeek-V4-Pro": "deepseek-v4-pro",
    "zai-org/GLM-5": "glm-5",
    "zai-org/GLM-5-FP8": "glm-5",
    "MiniMaxAI/MiniMax-M3": "minimax-m3",
}
TABLES = {
    "DeepSeek-V4, 4 tokens a row": ("sparse_attention", "dsv4_csa"),
    "DeepSeek-V4, 128 tokens a row": ("sparse_attention", "dsv4_hca"),
    "MiniMax-M3": ("msa", "msa"),
    "DeepSeek-V3.2, GLM-5": ("sparse_attention", "dsa"),
    "DeepSeek-V3.2, GLM-5 (SGLang)": ("sparse_attention", "dsa"),
    "DeepSeek-V3": ("mla", "mla"),
}


#: Formats of weights and cache that are served together, and how the tables name them.
SERVED = {
    ("bfloat16", "bfloat16"): (Storage(dtype=Dtype.BF16), Storage(dtype=Dtype.BF16)),
    ("fp8_block", "fp8"): (Storage(dtype=Dtype.FP8_BLOCK, scale_group_size=128 * 128), Storage(dtype=Dtype.FP8)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--device", action="append", choices=CLUSTERS)
    parser.add_argument("--only", action="append", choices=TABLES)
    parser.add_argument("--sample", type=int, default=1500, help="rows of each table, drawn with seed 0; 0 takes all")
    settings = parser.parse_args()
    print("| module | device | pass | rows | mean error | median error | bias (median) |")
    print("|---|---|---|---|---|---|---|")
    for name in settings.only or TABLES:
        folder, prefix = TABLES[name]
        for device in settings.device or CLUSTERS:
            for kind in ("generation", "context"):
                stack, version = ("sglang", "0.5.14") if "SGLang" in name else ("vllm", "0.24.0")
                where = settings.source / "systems/data" / device / folder / stack / version
                path = where / f"{prefix}_{kind}_module_perf.parquet"
                if path.is_file():
                    table = pd.read_parquet(path)
                    print(line(name, device, kind, ratios(table, device, kind, settings.sample, stack)))


def line(name: str, device: str, kind: str, found: np.ndarray) -> str:
    off = np.abs(found - 1.0)
    what = "decode" if kind == "generation" else "prefill"
    numbers = f"{off.mean():.0%} | {np.median(off):.0%} | {np.median(found) - 1.0:+.0%}"
    return f"| {name} | {device} | {what} | {len(found):,} | {numbers} |"


def ratios(table: pd.DataFrame, device: str, kind: str, sample: int, stack: str) -> np.ndarray:
    """Predicted over measured for the rows of shapes that a model has, in the formats that it is served in."""
    if "compress_ratio" not in table:
        same = [(g, c) in SERVED for g, c in zip(table.gemm_type, table.kv_cache_dtype, strict=True)]
        table = table[np.asarray(same) & table.num_heads.isin([8, 16, 32, 64, 128])]
    # an index may be left out where a layer takes another's
    table = table[table.model.isin(MODELS) & ~table.op_name.str.contains("skip")]
    if sample and len(table) > sample:
        table = table.sample(sample, random_state=0)
    cost = CostModel.of(load_hardware(CLUSTERS[device]), calibration_for(f"{stack}:tables", device))
    found = []
    for row in table.itertuples():
        for model, attention, n_ranks in shapes(row):
            step = _step(row, kind)
            ops = lower_attention(Context.of(model, ParallelSpec(tp_size=n_ranks), step), attention)
            inside = [op for op in ops if op.kind is not OpKind.ALL_REDUCE and op.name != "attention_norm"]
            found.append(sum(float(np.max(c.time_s)) for c in cost.costs(inside)) / (row.latency * 1e-3))
    return np.asarray(found)


def shapes(row: Any) -> Iterator[tuple[ModelSpec, Attention, int]]:
    """The model, layer and split that a row is of; nothing for heads that none has."""
    model = load_model(MODELS[row.model])
    if not hasattr(row, "compress_ratio"):
        weights, cache = SERVED[row.gemm_type, row.kv_cache_dtype]
        storage = model.storage.model_copy(update={"attention": weights, "kv_cache": cache})
        model = model.model_copy(update={"storage": storage})
    for layer, _ in model.layer_kinds:
        a = layer.attention
        if isinstance(a, GqaAttention) and a.index_topk and a.n_heads % row.num_heads == 0:
            yield model, a, a.n_heads // row.num_heads
            return
        if isinstance(a, MlaAttention) and a.n_heads % row.num_heads == 0:
            yield model, a, a.n_heads // row.num_heads
            return
        if isinstance(a, CompressedAttention) and a.compress_ratio == row.compress_ratio:
            if row.num_heads * row.tp_size == a.n_heads:
                yield model, a, int(row.tp_size)
            return


def _step(row: Any, kind: str) -> Pass:
    if kind == "generation":
        return Pass(Phase.DECODE, float(row.batch_size), 1.0, float(row.step))
    return Pass(Phase.PREFILL, float(row.batch_size), float(row.isl), float(row.step))


if __name__ == "__main__":
    main()
