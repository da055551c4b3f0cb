"""A base scenario for the tests of sweeps, and a sweep over it."""

from typing import Any

from moesim.specs.sweep import SweepSpec

BASE: dict[str, Any] = {
    "title": "DeepSeek-V3 and a dense model",
    "hardware": "h200_x2_nodes",
    "systems": [
        {"name": "MoE", "kind": "moe", "model": "deepseek-v3", "parallel": {"dp_size": 16, "ep_size": 16}},
        {"name": "dense", "kind": "dense", "model": "llama-3.1-70b", "parallel": {"tp_size": 4}},
    ],
    "workload": {"input_tokens": 1024, "output_tokens": 256, "concurrency": [256]},
}


def make(axes: list[dict[str, Any]], base: dict[str, Any] | None = None, **fields: Any) -> SweepSpec:
    """A sweep over `axes` of the base with some fields changed."""
    data = {"title": "test", "base": {**BASE, **(base or {})}, "axes": axes, **fields}
    return SweepSpec.model_validate(data)
