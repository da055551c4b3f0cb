"""Number formats: the bytes of a stored element with its scales, and the arithmetic that can run on it."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from moesim.specs.base import Frozen

__all__ = ["ARITHMETIC", "ELEMENT_BYTES", "Dtype", "Storage"]


class Dtype(StrEnum):
    """A format that tensors are computed or stored in."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    FP8 = "fp8"
    FP8_BLOCK = "fp8_block"
    INT8 = "int8"
    INT4 = "int4"
    MXFP4 = "mxfp4"
    NVFP4 = "nvfp4"


#: Bytes of one element without scales.
ELEMENT_BYTES: dict[Dtype, float] = {
    Dtype.FP32: 4.0,
    Dtype.BF16: 2.0,
    Dtype.FP16: 2.0,
    Dtype.FP8: 1.0,
    Dtype.FP8_BLOCK: 1.0,
    Dtype.INT8: 1.0,
    Dtype.INT4: 0.5,
    Dtype.MXFP4: 0.5,
    Dtype.NVFP4: 0.5,
}

#: (elements that share one scale, bytes of that scale). fp8_block: 128 x 128 block, fp32 scale (DeepSeek-V3 report,
#: section 3.3); MXFP4: 32 elements, e8m0 scale (OCP Microscaling 1.0); NVFP4: 16 elements, e4m3 scale (NVIDIA, 2025);
#: int4: groups of 128 with an fp16 scale (GPTQ and AWQ default); int8 and fp8: one scale per channel or tensor, left out.
SCALE_GROUPS: dict[Dtype, tuple[int, float]] = {
    Dtype.FP8_BLOCK: (128 * 128, 4.0),
    Dtype.MXFP4: (32, 1.0),
    Dtype.NVFP4: (16, 1.0),
    Dtype.INT4: (128, 2.0),
}

#: The arithmetic a stored format can feed, best first; a device runs the first one it has a peak rate for.
#: Weight-only formats fall back to 16-bit arithmetic after being unpacked.
ARITHMETIC: dict[Dtype, tuple[str, ...]] = {
    Dtype.FP32: ("fp32",),
    Dtype.BF16: ("bf16", "fp32"),
    Dtype.FP16: ("bf16", "fp32"),
    Dtype.FP8: ("fp8", "bf16", "fp32"),
    Dtype.FP8_BLOCK: ("fp8", "bf16", "fp32"),
    Dtype.INT8: ("int8", "bf16", "fp32"),
    Dtype.INT4: ("bf16", "fp32"),
    Dtype.MXFP4: ("fp4", "fp8", "bf16", "fp32"),
    Dtype.NVFP4: ("fp4", "fp8", "bf16", "fp32"),
}


class Storage(Frozen):
    """How a tensor is stored: element format and the scales that go with it.

    `weight_only` marks narrow weights that are unpacked before they meet inputs of 16 bits (W4A16).
    """

    dtype: Dtype
    scale_group_size: int | None = Field(default=None, ge=1)
    scale_bytes: float | None = Field(default=None, ge=0)
    weight_only: bool = False

    @property
    def arithmetic(self) -> Dtype:
        """The format that products run in: 16 bits where only the weights are narrow and the inputs stay wide."""
        return Dtype.BF16 if self.weight_only else self.dtype

    @property
    def bytes_per_element(self) -> float:
        """Stored bytes of one element, its share of the scales included.

        >>> Storage(dtype=Dtype.MXFP4).bytes_per_element
        0.53125
        """
        group, scale = SCALE_GROUPS.get(self.dtype, (1, 0.0))
        group = self.scale_group_size if self.scale_group_size is not None else group
        scale = self.scale_bytes if self.scale_bytes is not None else scale
        return ELEMENT_BYTES[self.dtype] + scale / group
