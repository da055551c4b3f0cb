"""What moesim understood of a model or of hardware, as records to print."""

from __future__ import annotations

from moesim.memory import kv_bytes_per_sequence, rank_weights
from moesim.specs.base import Frozen
from moesim.specs.hardware import Hardware
from moesim.specs.model import LinearAttention, ModelSpec
from moesim.specs.parallel import ParallelSpec
from moesim.study.provenance import hardware_origins
from moesim.units import show

__all__ = ["HardwareSummary", "ModelSummary", "summarize_hardware", "summarize_model"]

KV_CONTEXT = 8192


class LayerKind(Frozen):
    """Layers of equal shape: how many, and what they hold together."""

    kind: str
    n_layers: int
    n_params: int
    n_active_params: int


class ModelSummary(Frozen):
    """A model in numbers, MTP layers counted apart. `kv_bytes_per_token` is at `kv_context` tokens (windows cap it)."""

    name: str
    hf_id: str | None
    n_params: int
    n_active_params: int
    n_mtp_params: int
    weight_bytes: float
    kv_bytes_per_token: float
    kv_context: int
    state_bytes_per_sequence: float
    hidden_size: int
    vocab_size: int
    max_position_embeddings: int | None
    n_layers: int
    n_moe_layers: int
    n_routed_experts: int | None
    num_experts_per_tok: int | None
    n_shared_experts: int | None
    weight_dtypes: dict[str, str]
    layer_kinds: tuple[LayerKind, ...]
    note: str | None


class HardwareRow(Frozen):
    """One figure with where it comes from."""

    what: str
    value: str
    origin: str
    source: str


class HardwareSummary(Frozen):
    """A device or cluster in numbers, SI base units."""

    name: str
    device: str
    n_devices: int
    memory_bytes: float
    memory_bytes_per_s: float
    peak_flop_per_s: dict[str, float]
    ridge_flop_per_byte: float
    scale_up_link: str | None
    scale_up_bytes_per_s: float | None
    scale_up_domain_size: int
    scale_out_link: str | None
    nic_bytes_per_s: float | None
    host_memory_bytes: float | None
    host_link_bytes_per_s: float | None
    board_power_w: float | None
    price_usd_per_device_h: float | None
    note: str | None
    rows: tuple[HardwareRow, ...]


def summarize_model(model: ModelSpec) -> ModelSummary:
    """Parameters, bytes and layers of a model on one rank."""
    whole = ParallelSpec()
    weights = rank_weights(model, whole, range(len(model.layers)), first=True, last=True)
    linear = [i for i, layer in enumerate(model.layers) if isinstance(layer.attention, LinearAttention)]
    cached = [i for i in range(len(model.layers)) if i not in linear]
    state = kv_bytes_per_sequence(model, whole, 1.0, linear) if linear else 0.0
    ffn, s = model.moe_ffn, model.storage
    dtypes = {"attention": s.attention.dtype.value, "cache": s.kv_cache.dtype.value}
    dtypes |= {"experts": s.routed_experts.dtype.value} if ffn else {"ffn": s.dense_ffn.dtype.value}
    return ModelSummary(
        name=model.name, hf_id=model.hf_id, n_params=model.n_params, n_active_params=model.n_active_params,
        n_mtp_params=model.n_mtp_params, weight_bytes=weights.total,
        kv_bytes_per_token=kv_bytes_per_sequence(model, whole, float(KV_CONTEXT), cached) / KV_CONTEXT, kv_context=KV_CONTEXT,
        state_bytes_per_sequence=state, hidden_size=model.hidden_size, vocab_size=model.vocab_size,
        max_position_embeddings=model.max_position_embeddings, n_layers=len(model.layers), n_moe_layers=len(model.moe_layers),
        n_routed_experts=ffn.n_routed_experts if ffn else None, num_experts_per_tok=ffn.num_experts_per_tok if ffn else None,
        n_shared_experts=ffn.n_shared_experts if ffn else None, weight_dtypes=dtypes,
        layer_kinds=tuple(
            LayerKind(
                kind=layer.kind, n_layers=n, n_params=n * layer.n_params(model.hidden_size),
                n_active_params=n * layer.n_active_params(model.hidden_size),
            )
            for layer, n in model.layer_kinds
        ),
        note=model.note,
    )  # fmt: skip


def summarize_hardware(hardware: Hardware) -> HardwareSummary:
    """Figures of a cluster's device and links."""
    d = hardware.device
    up, out = hardware.scale_up, hardware.scale_out
    rows = [
        HardwareRow(what=r.what, value=r.value, origin=r.origin.value, source=r.source)
        for r in hardware_origins(hardware)
    ]
    ridge = HardwareRow(
        what="ridge point, bf16",
        value=f"{d.ridge_flop_per_byte:.0f} FLOP/B",
        origin="derived",
        source="peak over bandwidth",
    )
    domain = HardwareRow(
        what="scale-up domain",
        value=f"{hardware.scale_up_domain_size} devices",
        origin="",
        source=up.name if up else "none",
    )
    extra = [ridge, domain]
    if hardware.nic_bytes_per_s:
        nic = show(hardware.nic_bytes_per_s, "B/s")
        extra.append(HardwareRow(what="NIC per device", value=nic, origin="", source=out.name if out else "device"))
    if hardware.spine_oversubscription > 1:
        spine = f"NICs over spine {hardware.spine_oversubscription:g} to 1"
        extra.append(HardwareRow(what="spine", value=spine, origin="", source=f"{hardware.n_rails or 'no'} rails"))
    return HardwareSummary(
        name=hardware.name, device=d.name, n_devices=hardware.n_devices, memory_bytes=d.memory_bytes,
        memory_bytes_per_s=d.memory_bytes_per_s,
        peak_flop_per_s={k: v for k, v in d.peak_flop_per_s.model_dump().items() if v is not None},
        ridge_flop_per_byte=d.ridge_flop_per_byte, scale_up_link=up.name if up else None,
        scale_up_bytes_per_s=up.bytes_per_s if up else None, scale_up_domain_size=hardware.scale_up_domain_size,
        scale_out_link=out.name if out else None, nic_bytes_per_s=hardware.nic_bytes_per_s,
        host_memory_bytes=hardware.host_memory_bytes_per_device, host_link_bytes_per_s=d.host_link_bytes_per_s,
        board_power_w=d.board_power_w, price_usd_per_device_h=hardware.price_usd_per_device_h, note=d.note,
        rows=tuple(rows + extra),
    )  # fmt: skip
