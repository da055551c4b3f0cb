"""Published exchange times as rows with the bytes that each rank's ports moved, through moesim's own traffic model.

Sources: DeepEP's published tables (a CSV beside the checkout) and the DeepEP tables in the PyPI package
aiconfigurator-core 0.12.0 (an unpacked copy; its folder is an argument).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from moesim.lowering.load import ExpertLayout, uniform_load

SHARED = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
#: GPUs that one "node" of a system's tables holds.
NODE_SIZE = {"gb200": 4, "gb300": 4}
MESSAGE_BYTES = {"dispatch": lambda d: d * (1 + 4 / 128) + 16, "combine": lambda d: d * 2.0 + 16}


def traffic(
    n_ranks: int, domain: int, tokens: float, experts: int, top_k: int, mode: str, kind: str, hidden: int, groups: int = 1,
    limit: int = 1, row_bytes: float | None = None,
) -> dict[str, float]:  # fmt: skip
    """Bytes per rank under even routing; rows are DeepEP's (8 bits and scales out, bf16 back) unless `row_bytes` says."""
    layout = ExpertLayout(n_ranks, n_ranks, 1, domain, False, mode == "normal", n_ranks, groups, limit)
    load = uniform_load(float(tokens * n_ranks), float(experts), float(top_k), layout, float(tokens), balanced=True)
    m = MESSAGE_BYTES[kind](hidden) if row_bytes is None else row_bytes
    return {
        "up": float(load.up_out_copies) * m, "nic": float(load.nic_out_copies) * m, "m": m, "own": tokens * m,
        "n_domains": max(1, n_ranks // domain), "experts": experts, "tokens": tokens, "n_ranks": n_ranks, "hidden": hidden,
        "top_k": top_k, "mode": mode, "kind": kind,
    }  # fmt: skip


def _limits(n_domains: int) -> tuple[int, int]:
    """DeepEP's benchmark across nodes limits a token to 4 node groups."""
    return (n_domains, min(n_domains, 4)) if n_domains > 1 else (1, 1)


def aiconfigurator_rows(root: Path, system: str, version: str) -> pd.DataFrame:
    """DeepEP rows of one system under one SGLang version."""
    folder = root / "aiconfigurator_core/systems/data" / system / "comm/sglang" / version
    rows: list[dict[str, Any]] = []
    for mode, file in (("low_latency", "wideep_deepep_ll_perf"), ("normal", "wideep_deepep_normal_perf")):
        path = folder / f"{file}.parquet"
        if not path.exists():
            continue
        domain = NODE_SIZE.get(system, 8)
        for r in pd.read_parquet(path).itertuples():
            groups, limit = _limits(r.node_num) if mode == "normal" else (1, 1)
            for kind in ("dispatch", "combine"):
                time_us = getattr(r, f"{kind}_avg_t_us" if mode == "low_latency" else f"{kind}_transmit_us")
                row = traffic(r.node_num * domain, domain, r.num_token, r.num_experts, r.num_topk, mode, kind,
                              r.hidden_size, groups, limit)  # fmt: skip
                sms = 1 if mode == "low_latency" else getattr(r, f"{kind}_sms")
                rows.append({**row, "time_s": time_us * 1e-6, "sms": sms, "system": system, "version": version})
    return pd.DataFrame(rows)


def h800_rows(path: Path = SHARED / "ep_alltoall_published.csv") -> pd.DataFrame:
    """DeepEP's own H800 tables; normal mode's logical bandwidth (own rank or node counted) becomes a time."""
    rows: list[dict[str, Any]] = []
    for r in pd.read_csv(path).itertuples():
        if r.version != "V1" or r.gpu != "H800":
            continue
        groups, limit = _limits(r.nodes) if r.mode == "normal" else (1, 1)
        row = traffic(r.ep, 8, r.tokens_per_rank, 256, r.topk, r.mode, r.op, r.hidden, groups, limit)
        row.update(sms=20 if r.mode == "normal" else 1, system="h800_sxm", version="V1", bw=r.bw_GBps)
        if r.mode == "normal":
            row["logical"] = logical_bytes(row, 8)
            row["time_s"] = row["logical"] / (r.bw_GBps * 1e9)
        else:
            row["time_s"] = r.latency_us * 1e-6
        rows.append(row)
    return pd.DataFrame(rows)


#: DeepEP, pull request 173: H20, low latency with NVLink inside nodes, 128 tokens; EP size: us of dispatch and combine.
H20_LOW_LATENCY = {8: (37.0, 59.0), 16: (119.0, 199.0), 32: (157.0, 280.0), 64: (176.0, 318.0)}
#: DeepEP, issue 138: H20, one node, 4096 tokens, 24 units; logical GB/s by direction and bytes of a row (None: 8 bits out).
H20_NORMAL = (("dispatch", None, 326.56), ("dispatch", 7168 * 2.0 + 16, 344.45), ("combine", None, 332.57))


def h20_rows() -> list[tuple[dict[str, Any], float]]:
    """Rows and seconds that others published for H20."""
    rows = []
    for n, times in H20_LOW_LATENCY.items():
        for kind, us in zip(("dispatch", "combine"), times, strict=True):
            rows.append(({**traffic(n, 8, 128, 256, 8, "low_latency", kind, 7168), "sms": 1}, us * 1e-6))
    for kind, row_bytes, bandwidth in H20_NORMAL:
        row = {**traffic(8, 8, 4096, 256, 8, "normal", kind, 7168, row_bytes=row_bytes), "sms": 24}
        rows.append((row, logical_bytes(row, 8) / (bandwidth * 1e9)))
    return rows


def logical_bytes(row: dict[str, Any], domain: int) -> float:
    """What DeepEP divides by the time: copies to ranks (inside a node) or to nodes, the own one included."""
    n = row["n_domains"]
    if n == 1:
        return float(row["up"] * domain / (domain - 1))
    return float(row["nic"] * n / (n - 1))
