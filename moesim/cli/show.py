"""``moesim model``, ``moesim hardware`` and ``moesim list``: what was understood."""

from __future__ import annotations

from moesim.calibrate.store import calibration_names
from moesim.cli.table import print_json, table
from moesim.errors import InputError, nearest
from moesim.specs.catalog import load_hardware, load_model, names
from moesim.specs.hardware import Hardware
from moesim.specs.model import ModelSpec
from moesim.study.understood import HardwareSummary, ModelSummary, summarize_hardware, summarize_model
from moesim.units import show

__all__ = ["hardware_command", "list_command", "model_command"]

KINDS = {
    "devices": "device", "links": "link", "clusters": "cluster", "models": "model", "routers": "router",
    "scenarios": "scenario", "serving": "serving", "sweeps": "sweep",
}  # fmt: skip

#: Measured, so not among what the catalog states.
CALIBRATIONS = "calibrations"


def model_command(name: str, as_json: bool) -> None:
    """Print a model."""
    model: ModelSpec = load_model(name)
    summary: ModelSummary = summarize_model(model)
    if as_json:
        print_json(summary.model_dump(mode="json"))
        return
    for line in _model_lines(summary):
        print(line)
    rows = [
        (k.kind, str(k.n_layers), f"{k.n_params / 1e9:.3f}B", f"{k.n_active_params / 1e9:.3f}B")
        for k in summary.layer_kinds
    ]
    table(("layer kind", "layers", "parameters", "active"), rows)
    if summary.note:
        print(summary.note)


def _model_lines(s: ModelSummary) -> list[str]:
    mtp = f", and {s.n_mtp_params / 1e9:.2f}B in MTP layers" if s.n_mtp_params else ""
    state = f", and {show(s.state_bytes_per_sequence, 'B')} of state per sequence" if s.state_bytes_per_sequence else ""
    dtypes = ", ".join(f"{kind} {dtype}" for kind, dtype in s.weight_dtypes.items())
    lines = [
        s.name if s.hf_id is None else f"{s.name} ({s.hf_id})",
        f"parameters   {s.n_params / 1e9:.2f}B, {s.n_active_params / 1e9:.2f}B active per token{mtp}",
        f"weights      {s.weight_bytes / 1e9:.2f} GB ({dtypes})",
        f"cache        {show(s.kv_bytes_per_token, 'B')} per token at {s.kv_context} tokens{state}",
    ]
    if s.n_routed_experts:
        per_token = f"{s.num_experts_per_tok} of {s.n_routed_experts} per token, {s.n_shared_experts} shared"
        lines.append(f"experts      {per_token}, in {s.n_moe_layers} of {s.n_layers} layers")
    return lines


def hardware_command(name: str, as_json: bool) -> None:
    """Print a device or cluster."""
    hardware: Hardware = load_hardware(name)
    summary: HardwareSummary = summarize_hardware(hardware)
    if as_json:
        print_json(summary.model_dump(mode="json"))
        return
    print(f"{summary.name}: {summary.n_devices} x {summary.device}")
    rows = [(row.what, row.value, row.origin, row.source) for row in summary.rows]
    table(("what", "value", "origin", "source"), rows, text=("origin", "source"))


def list_command(kind: str, as_json: bool) -> None:
    """Print names of the catalog."""
    known = (*KINDS, CALIBRATIONS, "all")
    if kind not in known:
        close = nearest(kind, known)
        hint = f"did you mean {close[0]!r}?" if close else None
        raise InputError("not known", field="kind", value=kind, allowed=", ".join(known), hint=hint)
    wanted = {title: what for title, what in KINDS.items() if kind in ("all", title)}
    found = {title: list(names(what)) for title, what in wanted.items()}
    if kind in ("all", CALIBRATIONS):
        found[CALIBRATIONS] = list(calibration_names())
    if as_json:
        print_json(found)
        return
    for title, members in found.items():
        print(f"{title} ({len(members)})")
        for member in members:
            print(f"  {member}")
