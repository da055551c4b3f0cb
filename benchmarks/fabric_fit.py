"""Fit the fabric files under hardware/calibrations/fabrics from published DeepEP measurements, with errors on left-out data.

Run: python benchmarks/fabric_fit.py AICONFIGURATOR_FOLDER   (writes the files; needs ../shared for the H800)
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from fabric_rows import NODE_SIZE, aiconfigurator_rows, h20_rows, h800_rows
from scipy.optimize import least_squares

from moesim.cost.fabric import ExchangeRates, busy_s, latency_s
from moesim.specs.fabric import ExchangeFit

P = 4.0
FOLDER = Path(__file__).resolve().parents[1] / "hardware/calibrations/fabrics"
START = {
    "base_s": 1e-5, "crossing_s": 1e-5, "doubling_s": 3e-6, "expert_s": 1e-8, "up_bytes_per_s": 2.5e11, "half_bytes": 300.0,
    "expert_bytes_per_s": 4e9, "sm_bytes_per_s": 2e10, "token_weight": 1.0, "fill_s": 1e-5, "nic": 4.7e10,
}  # fmt: skip
LOW = {"base_s": 1e-6, "crossing_s": 1e-9, "doubling_s": 1e-9, "expert_s": 1e-11, "up_bytes_per_s": 5e9, "half_bytes": 1.0,
       "expert_bytes_per_s": 1e8, "sm_bytes_per_s": 5e8, "token_weight": 1e-3, "fill_s": 1e-9, "nic": 5e9}  # fmt: skip
HIGH = {"base_s": 2e-4, "crossing_s": 1e-4, "doubling_s": 3e-5, "expert_s": 1e-7, "up_bytes_per_s": 2e12, "half_bytes": 8e3,
        "expert_bytes_per_s": 1e12, "sm_bytes_per_s": 1e12, "token_weight": 20.0, "fill_s": 3e-4, "nic": 1e11}  # fmt: skip
#: Structure set beforehand: weight of a NIC byte on compute units, filling across domains, growth per doubling of domains.
FIXED_NORMAL = {
    "dispatch": {"nic_weight": 2.0, "crossing_fill_ratio": 3.0, "doubling_s": 5e-6},
    "combine": {"nic_weight": 4.0, "crossing_fill_ratio": 3.0, "doubling_s": 5e-6},
}
LL_FREE = ("base_s", "expert_s", "up_bytes_per_s", "expert_bytes_per_s")
LL_CROSS = ("crossing_s", "doubling_s", "nic")
NORMAL_FREE = ("base_s", "up_bytes_per_s", "half_bytes", "sm_bytes_per_s", "token_weight", "fill_s")


def predict(rows: pd.DataFrame, values: dict[str, float]) -> np.ndarray:
    """Seconds of every row under parameters, without the exchange of counts."""
    v = dict(values)
    nic = v.pop("nic", 4.7e10)
    fit = ExchangeFit(**v)
    rates = ExchangeRates(fit, nic, P, 1.0)
    r = {c: rows[c].to_numpy(dtype=float) for c in ("up", "nic", "m", "own", "n_domains", "experts", "sms")}
    rates = ExchangeRates(fit, nic, P, r["sms"])  # type: ignore[arg-type]
    busy = busy_s(rates, r["up"], r["nic"], r["m"], r["experts"], r["own"], r["n_domains"])
    return np.asarray(latency_s(rates, r["n_domains"], r["experts"], notify=False) + busy)


def fit(rows: pd.DataFrame, free: Sequence[str], fixed: dict[str, float]) -> dict[str, float]:
    """Least absolute-like log errors; each (node count, system, version) weighs the same per square root of its rows."""
    weight = 1.0 / np.sqrt(rows.groupby(["n_domains", "system", "version"])["time_s"].transform("size").to_numpy())
    low, high = np.log([LOW[n] for n in free]), np.log([HIGH[n] for n in free])
    start = np.clip(np.log([START[n] for n in free]), low + 1e-6, high - 1e-6)
    measured = rows["time_s"].to_numpy()

    def residual(x: np.ndarray) -> np.ndarray:
        values = {**fixed, **dict(zip(free, np.exp(x), strict=True))}
        return np.asarray(weight * np.log(predict(rows, values) / measured))

    found = least_squares(residual, start, bounds=(low, high), loss="soft_l1", f_scale=0.1 * float(weight.mean()))
    return {**fixed, **dict(zip(free, np.exp(found.x).tolist(), strict=True))}


def errors(rows: pd.DataFrame, values: dict[str, float]) -> np.ndarray:
    return np.abs(predict(rows, values) / rows["time_s"].to_numpy() - 1.0)


def summary(mode: str, what: str, e: np.ndarray) -> dict[str, Any]:
    return {"mode": mode, "what": what, "n_points": len(e), "median_frac": round(float(np.median(e)), 4),
            "p90_frac": round(float(np.quantile(e, 0.9)), 4), "worst_frac": round(float(e.max()), 4)}  # fmt: skip


def left_out(
    rows: pd.DataFrame, by: str, free: Sequence[str], fixed: dict[str, float], values: Sequence[Any],
    beside: pd.DataFrame | None = None,
) -> np.ndarray:  # fmt: skip
    """Errors on each group when the others were fitted; rows `beside` them only help to fit, and leave out the same."""
    seen = rows if beside is None else pd.concat([rows, beside])
    parts = [errors(rows[rows[by] == v], fit(seen[seen[by] != v], free, fixed)) for v in values]
    return np.concatenate(parts)


def sound(rows: pd.DataFrame) -> pd.DataFrame:
    """Without the congested 8-node rows of normal mode."""
    return rows[~((rows["mode"] == "normal") & (rows["n_domains"] == 8))].copy()


def with_shapes(rows: pd.DataFrame) -> pd.DataFrame:
    """Sound rows that say which (hidden size, experts, top-k) they are of."""
    rows = sound(rows)
    rows["shape"] = rows["hidden"].astype(str) + "/" + rows["experts"].astype(str) + "/" + rows["top_k"].astype(str)
    return rows


def fit_nvidia(
    name: str, rows: pd.DataFrame, cross: dict[str, dict[str, float]] | None, beside: pd.DataFrame | None = None
) -> tuple[dict, list, float]:
    """All four fits of one system; `cross` lends what only several nodes can tell where a table has one.

    Rows `beside` them, of the same chip and links with more ranks in a domain, are fitted along in normal mode.
    """
    fits: dict[str, dict[str, float]] = {}
    held: list[dict[str, Any]] = []
    multi = rows["n_domains"].max() > 1
    rows = with_shapes(rows)
    by = {(m, k): g for (m, k), g in rows.groupby(["mode", "kind"])}
    ll = [("low_latency", "dispatch"), ("low_latency", "combine")]
    free = (*LL_FREE, *LL_CROSS) if multi else LL_FREE
    first = {k: fit(by[m, k], free, {} if multi else {"nic": 4.7e10}) for m, k in ll}
    nic = float(np.mean([first["dispatch"]["nic"], first["combine"]["nic"]]))
    pools: dict[str, list[np.ndarray]] = {}
    for mode, kind in by:
        r = by[mode, kind]
        others = r.iloc[:0]
        if beside is not None and mode == "normal":
            others = beside[(beside["mode"] == mode) & (beside["kind"] == kind)]
        if mode == "low_latency":
            f, fixed = (*LL_FREE, "crossing_s", "doubling_s") if multi else LL_FREE, {"nic": nic}
        else:
            f, fixed = (*NORMAL_FREE, "crossing_s") if multi else NORMAL_FREE, {**FIXED_NORMAL[kind], "nic": nic}
        fits[f"{mode}_{kind}"] = fit(pd.concat([r, others]), f, fixed)
        if not multi and cross:
            fits[f"{mode}_{kind}"].update({n: cross[f"{mode}_{kind}"][n] for n in ("crossing_s", "doubling_s")})
        print(name, mode, kind, summary(mode, "fitted", errors(r, fits[f"{mode}_{kind}"])))
        print("   ", {n: float(f"{v:.4g}") for n, v in fits[f"{mode}_{kind}"].items()})
        if multi:
            nodes = [n for n in sorted(r["n_domains"].unique()) if n > 1]
            free_nic = (*f, "nic") if mode == "low_latency" else f
            pools.setdefault(f"{mode}|node counts", []).append(left_out(r, "n_domains", free_nic, fixed, nodes))
            for n in nodes:
                e = errors(r[r.n_domains == n], fit(r[r.n_domains != n], free_nic, fixed))
                print("    without", n, "nodes:", summary(mode, "x", e))
        one = r[r.n_domains == 1]
        shapes = sorted(one["shape"].unique())
        if len(shapes) > 3:
            base = [n for n in f if n not in LL_CROSS]
            pools.setdefault(f"{mode}|one node", []).append(left_out(one, "shape", base, fixed, shapes, others))
    words = {"node counts": "two and more nodes, each node count left out in turn",
             "one node": "one node, each (hidden size, experts, top-k) left out in turn"}  # fmt: skip
    for key, parts in sorted(pools.items()):
        mode, what = key.split("|")
        held.append(summary(mode, words[what], np.concatenate(parts)))
        print("  HELD OUT", held[-1])
    return fits, held, nic


def h800_values(x: Sequence[float], of_h100: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """The H800's fits: kernels and NIC as on the H100, and two of its own: a constant, and scale-up ports in normal mode."""
    constant, up = x
    values = {name: dict(fit) for name, fit in of_h100.items()}
    for kind in ("dispatch", "combine"):
        low = values[f"low_latency_{kind}"]
        # 160 GB/s is DeepEP's own statement of what the H800's NVLink gives
        low.update(base_s=low["base_s"] + constant, up_bytes_per_s=1.6e11)
        values[f"normal_{kind}"].update(up_bytes_per_s=up)
    return values


def fit_h800(rows: pd.DataFrame, of_h100: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Two parameters on the rows at hand."""
    start = np.log([1e-5, 1.4e11])

    def residual(x: np.ndarray) -> np.ndarray:
        values = h800_values(np.exp(x).tolist(), of_h100)
        parts = [
            np.log(predict(g, values[f"{m}_{k}"]) / g["time_s"].to_numpy())
            for (m, k), g in rows.groupby(["mode", "kind"])
        ]
        # weak pull to the start, so that what the rows do not tell stays there
        return np.concatenate([*parts, 0.02 * (x - start)])

    found = least_squares(residual, start, loss="soft_l1", f_scale=0.1)
    return h800_values(np.exp(found.x).tolist(), of_h100)


def h800_errors(rows: pd.DataFrame, values: dict[str, dict[str, float]]) -> pd.Series:
    parts = [
        pd.Series(predict(g, values[f"{m}_{k}"]) / g["time_s"].to_numpy() - 1.0, index=g.index)
        for (m, k), g in rows.groupby(["mode", "kind"])
    ]
    return pd.concat(parts)


def number(v: float, unit: str) -> str:
    scale, text = {"s": (1e6, "us"), "B/s": (1e-9, "GB/s"), "": (1.0, "")}[unit]
    return f"{v * scale:.4g} {text}".strip()


def yaml_of(spec: dict[str, Any]) -> str:
    """The file's text; figures carry units."""
    lines = ["# Fitted by benchmarks/fabric_fit.py; what the letters mean: docs/fabric.md", f"name: {spec['name']}"]
    lines += [f"devices: [{', '.join(spec['devices'])}]", f"scale_up_links: [{', '.join(spec['links'])}]"]
    lines += [f"software: {spec['software']}"]
    lines += [
        f"up_peak_bytes_per_s: {number(spec['up_peak'], 'B/s')}",
        f"nic_peak_bytes_per_s: {number(spec['nic_peak'], 'B/s')}",
    ]
    lines += [f"nic_bytes_per_s: {number(spec['nic'], 'B/s')}", f"sharpness: {P:g}", f"n_sms: {spec['n_sms']}"]
    for key, values in spec["fits"].items():
        lines.append(f"{key}:")
        for n, v in values.items():
            if n == "nic":
                continue
            unit = "s" if n.endswith("_s") and "bytes" not in n else "B/s" if n.endswith("bytes_per_s") else ""
            lines.append(f"  {n}: {number(v, unit)}")
    lines.append("held_out:")
    for h in spec["held"]:
        lines.append(
            "  - {" + ", ".join(f"{k}: {v if k != 'what' else chr(39) + v + chr(39)}" for k, v in h.items()) + "}"
        )
    lines.append("interval_frac: {" + ", ".join(f"{k}: {v:.3g}" for k, v in spec["interval"].items()) + "}")
    lines += [f"note: >-\n  {spec['note']}", "sources:"]
    for origin, text, covers in spec["sources"]:
        lines += [f"  - origin: {origin}", f"    text: >-\n      {text}", f"    covers: [{', '.join(covers)}]"]
    return "\n".join(lines) + "\n"


ALL_FITS = ("low_latency_dispatch", "low_latency_combine", "normal_dispatch", "normal_combine")
BORROWED = [*ALL_FITS, "nic_bytes_per_s"]
CROSSING = [f"{name}.{field}" for name in ALL_FITS for field in ("crossing_s", "doubling_s")]
NOTIFY = [f"normal_{kind}.{field}" for kind in ("dispatch", "combine") for field in ("notify_s", "notify_doubling_s")]
STRUCTURE = [
    "sharpness",
    *(f"normal_{k}.{f}" for k in ("dispatch", "combine") for f in ("nic_weight", "crossing_fill_ratio")),
]
FORM = "Shape of the form, set beforehand; nic_weight after the copies that a two-hop kernel makes."
AIC = "DeepEP tables that ship with the PyPI package aiconfigurator-core 0.12.0 (Apache-2.0)"
#: Medians of the H100's separate notification times at 2 and 4 nodes (20 and 24 compute units).
NOTIFY_VALUES = {"notify_s": 3.5e-5, "notify_doubling_s": 2.3e-5}


def interval(held: Sequence[dict[str, Any]]) -> dict[str, float]:
    return {m: max(h["p90_frac"] for h in held if h["mode"] == m) for m in ("low_latency", "normal")}


def with_notify(fits: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    return {n: {**v, **(NOTIFY_VALUES if n.startswith("normal") else {})} for n, v in fits.items()}


def common_sources(own: str, borrowed: bool) -> list[tuple[str, str, list[str]]]:
    rest = [("assumption", FORM, STRUCTURE),
            ("datasheet", "Peaks as in hardware/links and hardware/devices.", ["up_peak_bytes_per_s", "nic_peak_bytes_per_s"]),
            ("paper", "DeepEP, Buffer.num_sms, the default of normal mode.", ["n_sms"]),
            ("fitted", "Medians of the H100's notification times at 2 and 4 nodes in the same tables.", NOTIFY)]  # fmt: skip
    if borrowed:
        rest.append(("assumption", "Across nodes as on the H100 with ConnectX-7, scaled by the NIC's peak; not measured here.",
                     [*CROSSING, "nic_bytes_per_s"]))  # fmt: skip
    covers = [*ALL_FITS, "held_out", "interval_frac", *([] if borrowed else ["nic_bytes_per_s"])]
    return [("fitted", own, covers), *rest]


#: Systems whose tables hold four ranks only, and the one with the same chip, links and eight: normal mode is fitted to both.
BESIDE = {"gb200": "b200_sxm", "gb300": "b300_sxm"}
SYSTEMS = {
    "h100_sxm": ("h100_cx7", ["nvlink4"], 450e9, 50e9), "h200_sxm": ("h200_cx7", ["nvlink4"], 450e9, 50e9),
    "b200_sxm": ("b200_cx7", ["nvlink5"], 900e9, 50e9), "b300_sxm": ("b300_cx8", ["nvlink5"], 900e9, 100e9),
    "gb200": ("gb200_nvl72", ["nvlink5_nvl72"], 900e9, 50e9), "gb300": ("gb300_nvl72", ["nvlink5_nvl72"], 900e9, 100e9),
}  # fmt: skip


def main(root: Path) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    of_h100: dict[str, dict[str, float]] = {}
    nic = 0.0
    for system, (name, links, up_peak, nic_peak) in SYSTEMS.items():
        versions = ("0.5.6.post2", "0.5.12") if system == "h100_sxm" else ("0.5.12",)
        rows = pd.concat([aiconfigurator_rows(root, system, v) for v in versions], ignore_index=True)
        beside = with_shapes(aiconfigurator_rows(root, BESIDE[system], "0.5.12")) if system in BESIDE else None
        fits, held, own_nic = fit_nvidia(system, rows, of_h100 or None, beside)
        if system == "h100_sxm":
            of_h100, nic = fits, own_nic
        own = f"{AIC}, {system}, SGLang {' and '.join(versions)}; nodes of {NODE_SIZE.get(system, 8)} GPUs."
        if system in BESIDE:
            own += f" Normal mode also on {BESIDE[system]}, 8 GPUs (the same chip and links), counting as much."
        note = ("Normal mode at 8 nodes was congested in the source and is left out; its NIC rate is that of low-latency mode."
                if system == "h100_sxm" else "One node was measured; figures across nodes are borrowed.")  # fmt: skip
        spec = {"name": name, "devices": [system], "links": links, "software": "DeepEP under SGLang", "up_peak": up_peak,
                "nic_peak": nic_peak, "nic": nic * nic_peak / 50e9, "n_sms": 20, "fits": with_notify(fits), "held": held,
                "interval": interval(held), "note": note, "sources": common_sources(own, system != "h100_sxm")}  # fmt: skip
        (FOLDER / f"{name}.yaml").write_text(yaml_of(spec), encoding="utf-8")
    write_h800(of_h100)
    write_h20(of_h100, nic)


def write_h20(of_h100: dict[str, dict[str, float]], nic: float) -> None:
    """The H100's fits for another board with the same chip, links and kernels, held against figures that others published."""
    off: dict[str, list[float]] = {"low_latency": [], "normal": []}
    for row, seconds in h20_rows():
        values = {**of_h100[f"{row['mode']}_{row['kind']}"], "nic": nic}
        off[str(row["mode"])].append(abs(float(predict(pd.DataFrame([row]), values)[0]) / seconds - 1))
    what = {"low_latency": "EP8 to EP64 as published (DeepEP, pull request 173), nothing fitted",
            "normal": "EP8, 24 units, as published (DeepEP, issue 138), nothing fitted"}  # fmt: skip
    held = [summary(mode, what[mode], np.array(e)) for mode, e in off.items()]
    print("H20", held)
    borrowed = "As fitted on the H100 (h100_cx7): the same kernels, links and NICs, a chip with fewer units."
    sources = [("assumption", borrowed, BORROWED),
               ("paper", "DeepEP, pull request 173 and issue 138: measured on H20.", ["held_out", "interval_frac"]),
               *[s for s in common_sources("", False)[1:] if s[2] != NOTIFY]]  # fmt: skip
    spec = {"name": "h20_cx7", "devices": ["h20_sxm"], "links": ["nvlink4"], "software": "DeepEP", "up_peak": 450e9,
            "nic_peak": 50e9, "nic": nic, "n_sms": 20, "fits": with_notify(of_h100), "held": held, "sources": sources,
            "interval": {"low_latency": held[0]["p90_frac"], "normal": 0.234},
            "note": "Three rows of normal mode are too few for an interval; it is the H100's."}  # fmt: skip
    (FOLDER / "h20_cx7.yaml").write_text(yaml_of(spec), encoding="utf-8")


def write_h800(of_h100: dict[str, dict[str, float]]) -> None:
    rows = h800_rows()
    fits = fit_h800(rows, of_h100)
    print("H800 fitted", {n: fits["low_latency_dispatch"][n] for n in ("base_s", "nic")}, fits["low_latency_combine"]["base_s"],
          fits["normal_dispatch"]["up_bytes_per_s"])  # fmt: skip
    out = pd.concat(
        [
            h800_errors(rows[rows.n_ranks == n], fit_h800(rows[rows.n_ranks != n], of_h100))
            for n in sorted(rows.n_ranks.unique())
        ]
    )
    rows["left_out"], rows["fitted"] = out, h800_errors(rows, fits)
    print(rows[["mode", "kind", "n_ranks", "time_s", "fitted", "left_out"]].round(4).to_string())
    held = [
        summary(m, "each EP size left out in turn", g["left_out"].abs().to_numpy()) for m, g in rows.groupby("mode")
    ]
    print(held)
    note = "Two parameters on 20 rows: a constant more than the H100 in low-latency mode, NVLink in normal mode."
    own = "DeepEP's published H800 table (V1, docs/legacy.md), 128 tokens per rank in low-latency and 4096 in normal mode."
    kernel = "As fitted on the H100 (h100_cx7): the same kernels on the same GPU, and the same NIC."
    paths = ["low_latency_dispatch.base_s", "low_latency_combine.base_s", "normal_dispatch.up_bytes_per_s",
             "normal_combine.up_bytes_per_s", "held_out", "interval_frac"]  # fmt: skip
    sources = [s for s in common_sources(own, False)[1:] if s[2] != NOTIFY]
    sources = [("fitted", own, paths), ("paper", "DeepEP README, NVLink of the H800 gives about 160 GB/s.",
                [f"low_latency_{k}.up_bytes_per_s" for k in ("dispatch", "combine")]), ("assumption", kernel, BORROWED),
               *sources]  # fmt: skip
    spec = {"name": "h800_cx7", "devices": ["h800_sxm"], "links": ["nvlink4_h800"], "software": "DeepEP V1", "up_peak": 200e9,
            "nic_peak": 50e9, "nic": fits["low_latency_dispatch"]["nic"], "n_sms": 20, "fits": with_notify(fits), "held": held,
            "interval": interval(held), "sources": sources,
            "note": note}  # fmt: skip
    (FOLDER / "h800_cx7.yaml").write_text(yaml_of(spec), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
