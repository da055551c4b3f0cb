"""What a fabric achieves in expert exchanges: fitted parameters with their source, one set per kind of node and NIC."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from moesim.specs.base import BytesPerS, Count, Frozen, Number, Seconds, Sourced

__all__ = ["ExchangeFit", "FabricSpec", "HeldOut", "Mode"]

Mode = Literal["low_latency", "normal"]


class ExchangeFit(Frozen):
    """Parameters of one direction (dispatch or combine) in one mode; `cost.fabric` holds the formula and its letters.

    `base_s` inside a domain, `crossing_s` more where domains are crossed, `doubling_s` for each doubling of domains beyond two,
    `expert_s` per expert of the layer. `up_bytes_per_s` is what a scale-up port achieves, `half_bytes` the message at which half
    of that is left, `expert_bytes_per_s` what the workers of one expert move. Kernels that borrow compute units move
    `sm_bytes_per_s` with each; a byte over the NIC weighs `nic_weight`, a byte of a token at its source `token_weight`.
    `fill_s` is a pipeline's filling, `crossing_fill_ratio` times as long across domains; `notify_s` an exchange of counts
    before normal-mode dispatch and combine across domains, with `notify_doubling_s`.
    """

    base_s: Seconds
    crossing_s: Seconds = 0.0
    doubling_s: Seconds = 0.0
    expert_s: Seconds = 0.0
    up_bytes_per_s: BytesPerS
    half_bytes: Number = Field(default=0.0, ge=0)
    expert_bytes_per_s: BytesPerS | None = None
    sm_bytes_per_s: BytesPerS | None = None
    nic_weight: Number = Field(default=0.0, ge=0)
    token_weight: Number = Field(default=0.0, ge=0)
    fill_s: Seconds = 0.0
    crossing_fill_ratio: Number = Field(default=1.0, gt=0)
    notify_s: Seconds = 0.0
    notify_doubling_s: Seconds = 0.0


class HeldOut(Frozen):
    """Errors on data that the fit did not see: |predicted / measured - 1|."""

    mode: Mode
    what: str = Field(min_length=4)
    n_points: Count
    median_frac: Number = Field(ge=0)
    p90_frac: Number = Field(ge=0)
    worst_frac: Number = Field(ge=0)


class FabricSpec(Sourced):
    """A fabric as devices of some kind see it; used for hardware whose device and scale-up link it names.

    Rates hold at the peaks `up_peak_bytes_per_s` and `nic_peak_bytes_per_s` and scale with the hardware's own.
    `n_sms` compute units are taken by normal mode. `interval_frac` is the half-width of the 90% interval.
    """

    name: str
    devices: tuple[str, ...] = Field(min_length=1)
    scale_up_links: tuple[str, ...] = Field(min_length=1)
    software: str
    up_peak_bytes_per_s: BytesPerS
    nic_peak_bytes_per_s: BytesPerS
    nic_bytes_per_s: BytesPerS
    sharpness: Number = Field(ge=1)
    n_sms: Count
    low_latency_dispatch: ExchangeFit
    low_latency_combine: ExchangeFit
    normal_dispatch: ExchangeFit
    normal_combine: ExchangeFit
    held_out: tuple[HeldOut, ...] = ()
    interval_frac: dict[Mode, Number]
    note: str | None = None

    @model_validator(mode="after")
    def _both_modes(self) -> Self:
        if set(self.interval_frac) != {"low_latency", "normal"}:
            raise ValueError("interval_frac: needs low_latency and normal")
        return self

    def exchange(self, mode: Mode, combine: bool) -> ExchangeFit:
        """The parameters of one mode and direction."""
        if mode == "low_latency":
            return self.low_latency_combine if combine else self.low_latency_dispatch
        return self.normal_combine if combine else self.normal_dispatch
