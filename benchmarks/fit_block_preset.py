"""Block weights, spreads and prompts' dispersion of a router preset, from expert counts as SGLang's recorder writes them.

`python benchmarks/fit_block_preset.py prefill_in4096.json [prefill_in2048.json ...]` prints depths, `lognormal_sigma` and
`block_weights` of the layers with counts (a later file adds layers that earlier ones lack). With `--dispersion A.json P B.json`
the variance between the shares of A, counted over P prompts, and of B, over many more, becomes a dispersion per prompt. The
files that `scenarios/routing/deepseek-v3-sharegpt.yaml` was fitted to are attached to sgl-project/sglang issue 6017.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moesim.routing.groups import limited_inclusion

Floats = NDArray[np.float64]
TOP_K, N_GROUP, TOPK_GROUP, N_DENSE = 8, 8, 4, 3
#: Blocks of 8 consecutive experts: what a rank of 32 holds in order, a quarter of a group.
N_BLOCK = 32


def counts_of(path: Path) -> dict[int, Floats]:
    """Counts per expert by model layer; layers without any are left out."""
    rows = np.array(json.loads(path.read_text())["logical_count"], dtype=np.float64)
    return {layer: row for layer, row in enumerate(rows) if row.sum() > 0}


def weights_of(counts: Floats) -> Floats:
    """Selection weights under which the expected load of each expert is the counted one, [n_rows, E]."""
    wanted = counts / counts.sum(axis=1, keepdims=True) * TOP_K
    weights = wanted / TOP_K
    for _ in range(12):
        weights = weights * wanted / limited_inclusion(weights, TOP_K, N_GROUP, TOPK_GROUP)
        weights /= weights.sum(axis=1, keepdims=True)
    return weights


def block_fit(counts: Floats) -> tuple[Floats, Floats]:
    """Spread of log weight inside blocks [n_rows], and what blocks weigh over their mean [n_rows, blocks]."""
    by_block = weights_of(counts).reshape(len(counts), N_BLOCK, -1)
    sigma = np.sqrt(np.log(by_block).var(axis=2, ddof=1).mean(axis=1))
    return sigma, by_block.sum(axis=2) * N_BLOCK


def dispersion(few: Floats, n_prompts: float, many: Floats, least: float = 0.4) -> float:
    """D of one layer: P times the variance of log load between `few`, over P prompts, and `many`, over many more.

    What padding adds to each expert of `many` is fitted as a constant and taken off. Experts below `least` of the mean load are
    left out, since theirs is not normal.
    """
    weight = 1.0 / few
    scale, padding = np.linalg.lstsq(np.stack([few, np.ones_like(few)], axis=1) * weight[:, None], many * weight)[0]
    apart = np.log(few * scale / (many - padding))[few > least * few.mean()]
    return float(apart.var() * n_prompts)


def main() -> None:
    """Print the fit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("counts", nargs="*", type=Path)
    parser.add_argument("--dispersion", nargs=3, metavar=("FEW", "PROMPTS", "MANY"))
    args = parser.parse_args()
    found: dict[int, Floats] = {}
    for path in args.counts:
        found = counts_of(path) | found
    if found:
        layers = np.array(sorted(found))
        sigma, blocks = block_fit(np.stack([found[layer] for layer in layers]))
        depths = (layers - N_DENSE) / max(1, layers.max() - N_DENSE)
        print("depths:", depths.round(4).tolist())
        print("lognormal_sigma:", sigma.round(3).tolist())
        print("block_weights:", *blocks.round(2).tolist(), sep="\n  - ")
    if args.dispersion:
        few, many = (counts_of(Path(args.dispersion[i])) for i in (0, 2))
        each = {layer: dispersion(few[layer], float(args.dispersion[1]), many[layer]) for layer in few if layer in many}
        print("prompt_dispersion by layer:", {layer: round(value, 2) for layer, value in each.items()})


if __name__ == "__main__":
    main()
