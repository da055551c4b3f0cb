"""Paths and columns as people say them, with the way their numbers are written."""

from __future__ import annotations

from typing import Any

__all__ = ["COLUMN_WORDS", "column_words", "number_text", "path_words", "settings_words", "value_text"]

_PATHS = {
    "model": "model", "model.n_routed_experts": "experts", "model.num_experts_per_tok": "top-k",
    "model.moe_intermediate_size": "expert width", "model.split": "split of experts", "model.n_layers": "layers",
    "model.hidden_size": "hidden size", "model.vocab_size": "vocabulary", "model.n_shared_experts": "shared experts",
    "model.shared_intermediate_size": "width of shared experts", "workload.concurrency": "requests in flight",
    "workload.input_tokens": "input tokens", "workload.output_tokens": "output tokens",
    "workload.cached_prefix_tokens": "cached prefix", "workload.max_pass_tokens": "tokens per pass", "hardware": "hardware",
    "n_devices": "devices", "network.scale": "link speed", "network.up_scale": "scale-up link speed",
    "network.nic_scale": "NIC speed", "parallel": "split", "parallel.tp_size": "TP", "parallel.dp_size": "DP",
    "parallel.ep_size": "EP", "parallel.pp_size": "PP", "parallel.cp_size": "CP",
    "parallel.redundant_experts": "redundant experts", "routing.skew": "skew", "routing.family": "routing",
    "routing.placement.kind": "placement", "weight_dtype": "weight format", "kv_dtype": "cache format", "overlap": "overlap",
    "price_usd_per_device_h": "price per device-hour", "dp_prefill": "prefill rule", "training.compute_flop": "training compute",
    "serving.arrivals.rate_per_s": "requests per second",
}  # fmt: skip

#: Result column: words, unit, factor from the SI base unit.
COLUMN_WORDS: dict[str, tuple[str, str, float]] = {
    "usd_per_million_output_tokens": ("cost", "$/M output tokens", 1.0),
    "against_usd_per_million_output_tokens": ("cost of the other", "$/M output tokens", 1.0),
    "output_tokens_per_s": ("throughput", "tok/s", 1.0),
    "output_tokens_per_s_per_device": ("throughput per device", "tok/s", 1.0),
    "output_tokens_per_s_per_user": ("speed per user", "tok/s", 1.0), "tpot_s": ("TPOT", "ms", 1000.0),
    "ttft_s": ("TTFT", "ms", 1000.0), "decode_step_s": ("decode step", "ms", 1000.0),
    "energy_j_per_output_token": ("energy", "J/token", 1.0), "memory_bytes": ("memory per rank", "GB", 1e-09),
    "n_params": ("parameters", "B", 1e-09), "n_active_params": ("active parameters", "B", 1e-09),
    "n_experts": ("experts", "", 1.0), "top_k": ("top-k", "", 1.0), "expert_width": ("expert width", "", 1.0),
    "concurrency": ("requests in flight", "", 1.0), "train_tokens": ("training tokens", "T", 1e-12),
    "loss": ("loss", "nats", 1.0), "other_loss": ("loss by the other law", "nats", 1.0), "n_instances": ("instances", "", 1.0),
    "exposed_comm_frac": ("exposed communication", "%", 100.0),
    "rank_imbalance_ratio": ("fullest expert rank", "x mean", 1.0), "error_frac": ("interval", "±%", 100.0),
    "usd_ratio": ("cost, other / this", "x", 1.0), "tpot_ratio": ("TPOT, other / this", "x", 1.0),
    "ttft_ratio": ("TTFT, other / this", "x", 1.0), "ttft_p99_s": ("TTFT p99", "ms", 1000.0),
    "tpot_p99_s": ("TPOT p99", "ms", 1000.0), "goodput_requests_per_s": ("goodput", "requests/s", 1.0),
    "good_frac": ("requests in time", "%", 100.0),
}  # fmt: skip


def path_words(path: str) -> str:
    """A path in words; the system's index is dropped where the rest says enough.

    >>> path_words("systems.0.parallel.tp_size"), path_words("routing.layer_coupling")
    ('TP', 'routing layer coupling')
    """
    short = path.split(".", 2)[2] if path.startswith("systems.") and path.count(".") >= 2 else path
    return _PATHS.get(short, short.replace(".", " ").replace("_", " "))


def column_words(name: str) -> str:
    """A result column in words with its unit."""
    words, unit, _ = COLUMN_WORDS.get(name, (name.replace("_", " "), "", 1.0))
    return f"{words} ({unit})" if unit and unit not in ("x",) else words


def number_text(value: float) -> str:
    """Three digits, without an exponent up to a million.

    >>> number_text(1234.5), number_text(0.01234), number_text(1e24)
    ('1,234', '0.0123', '1e+24')
    """
    if value != value:
        return "–"
    if abs(value) >= 1e7:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def value_text(value: Any) -> str:
    """A setting's value."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return str(value) if isinstance(value, int) and abs(value) < 10**6 else number_text(float(value))
    if value is None:
        return "none"
    return str(value)


def settings_words(settings: dict[str, Any]) -> str:
    """Settings in a sentence.

    >>> settings_words({"model.n_routed_experts": 64, "network.scale": 0.5})
    'experts 64, link speed 0.5'
    """
    return ", ".join(f"{path_words(path)} {value_text(value)}" for path, value in settings.items())
