"""One large block of random numbers that all weights are cut from, so that layers cost nothing to build and caches do not lie.

Cuts follow each other through the block and start again at its front when it is used up. A block several times larger than the
last-level cache, and several copies of a layer used in turn, make every timed call find its weights in memory, as in a model
whose other layers ran in between.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from moesim.errors import InputError

__all__ = ["Pool"]

_ALIGN = 64


class Pool:
    """Random weights to cut from."""

    def __init__(self, n_bytes: float, dtype: torch.dtype, device: torch.device, seed: int) -> None:
        generator = torch.Generator(device=device).manual_seed(seed)
        n = max(_ALIGN, int(n_bytes) // dtype.itemsize)
        self.block = torch.empty(n, dtype=dtype, device=device).normal_(0.0, 0.02, generator=generator)
        self.device = device
        self.dtype = dtype
        self._next = 0

    @property
    def n_bytes(self) -> int:
        """Size of the block."""
        return self.block.numel() * self.block.element_size()

    def cut(self, *shape: int) -> Tensor:
        """The next part of the block, in this shape.

        Raises:
            InputError: the block is smaller than the shape.
        """
        n = math.prod(shape)
        if n > self.block.numel():
            raise InputError(
                "a layer is larger than the block of weights", value=shape, allowed=f"{self.block.numel()}"
            )
        if self._next + n > self.block.numel():
            self._next = 0
        part = self.block[self._next : self._next + n].view(shape)
        self._next += -(-n // _ALIGN) * _ALIGN
        return part
