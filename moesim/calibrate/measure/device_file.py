"""A description of the measured machine as a device, with the best rates that were seen as its peaks. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["device_text"]


def device_text(facts: Mapping[str, Any]) -> str | None:
    """YAML of a device (see hardware/devices), or None if products and memory were not measured.

    The name is that of the tables, so that a fit of them accepts it. Peaks are measured, not a data sheet's: the fractions that
    a fit finds are then relative to the best product and the largest triad on this machine.
    """
    if not {"best_gemm_flop_per_s", "memory_triad_bytes_per_s"} <= facts.keys():
        return None
    is_cpu = "compute_capability" not in facts
    flops, memory = facts["best_gemm_flop_per_s"] / 1e9, facts["memory_triad_bytes_per_s"] / 1e9
    units = facts["n_threads"] if is_cpu else facts["n_compute_units"]
    arithmetic = "fp32" if facts["dtype"] == "fp32" else "bf16"
    how = f"{facts['device_name']}, PyTorch {facts['torch_version']}, {facts['n_threads']} thread(s)"
    lines = [
        f"name: {facts['device']}",
        "vendor: measured",
        f"year: {facts['date'][:4]}",
        f"form: {'CPU' if is_cpu else 'GPU'}",
        f"memory_bytes: {facts['memory_bytes'] / 2**30:.1f} GiB",
        "memory_kind: unknown",
        f"memory_bytes_per_s: {memory:.4g} GB/s",
        "peak_flop_per_s:",
        f"  {arithmetic}: {flops:.4g} GFLOP/s",
        f"n_compute_units: {units}",
        f"l2_bytes: {facts['last_level_cache_bytes'] / 2**20:.0f} MiB",
        "sources:",
        "  - origin: measured",
        f"    text: 'moesim calibrate profile, {how}, {facts['date']}: best matrix product, largest triad, system facts.'",
        "    covers: [year, scale_up_domain_size, memory_bytes, memory_bytes_per_s, peak_flop_per_s, n_compute_units, l2_bytes]",
    ]
    return "\n".join(lines) + "\n"
