"""Randomness that is addressed, not consumed.

A draw is a pure function of its address: the seed and keys of its :class:`Stream`, the purpose, the image id
of the row and the position inside the row. Nothing has a state, so a draw added in one place shifts no other,
and neither the batch size, nor an image's place in the batch, nor the number of processes, nor the device
changes any. The bits come from SplitMix64 (Steele, Lea, Flood 2014), a counter-based generator of integer
operations alone, hence the same on every device; normal draws pass through log and cos and may differ
between devices in the last bit.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

Key = str | int


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


_GAMMA = _signed(0x9E3779B97F4A7C15)
_MIX1 = _signed(0xBF58476D1CE4E5B9)
_MIX2 = _signed(0x94D049BB133111EB)


def _shift(bits: Tensor, by: int) -> Tensor:
    """Shift int64 right as if it were unsigned."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _mix(bits: Tensor) -> Tensor:
    """Scramble int64 in place of a state: the output function of SplitMix64."""
    bits = (bits ^ _shift(bits, 30)) * _MIX1
    bits = (bits ^ _shift(bits, 27)) * _MIX2
    return bits ^ _shift(bits, 31)


@final
@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """A place in the space of addresses, from which tensors are drawn.

    ``key`` is the address so far, ``ids`` [N] the images whose rows are drawn (None: draws that all images
    share), ``device`` where results are made.
    """

    key: tuple[Key, ...]
    ids: Tensor | None = None
    device: torch.device | str = "cpu"

    @classmethod
    def of(cls, seed: int, *key: Key, device: torch.device | str = "cpu") -> Stream:
        """Return the stream at the root address ``(seed, *key)``."""
        return cls((seed, *key), None, device)

    def sub(self, *key: Key) -> Stream:
        """Return the stream one address further down."""
        return replace(self, key=self.key + key)

    def images(self, ids: Tensor | None) -> Stream:
        """Return the stream whose draws have one row per image id (None: shared draws)."""
        return replace(self, ids=None if ids is None else ids.to(self.device))

    def take(self, rows: Tensor) -> Stream:
        """Return the stream of some of the rows: it draws the same for them as the whole would."""
        return self if self.ids is None else replace(self, ids=self.ids[rows.to(self.ids.device)])

    def seed(self, purpose: Key) -> int:
        """Return 63 bits for a foreign generator (the model's own dropout)."""
        text = repr((*self.key, purpose)).encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1

    def _bits(self, purpose: Key, shape: Sequence[int]) -> Tensor:
        """Return int64 [*shape] of 64 random bits; with ids, shape[0] must be their number."""
        root = _signed(self.seed(purpose) << 1)
        if self.ids is None:
            count = math.prod(shape)
            bits = torch.arange(1, count + 1, dtype=torch.int64, device=self.device).mul_(_GAMMA).add_(root)
            return _mix(bits).reshape(tuple(shape))
        if shape[0] != len(self.ids):
            raise ValueError(f"a stream of {len(self.ids)} images cannot draw the shape {tuple(shape)}")
        rows = _mix((self.ids + 1) * _GAMMA + root)  # one start per image, far from every other
        inner = torch.arange(1, math.prod(shape[1:]) + 1, dtype=torch.int64, device=self.device).mul_(_GAMMA)
        return _mix(rows[:, None] + inner[None, :]).reshape(tuple(shape))

    def uniform(
        self,
        purpose: Key,
        shape: Sequence[int],
        low: float = 0.0,
        high: float = 1.0,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Draw U[low, high) on a grid of 2^24 steps, the same values in every precision that holds them."""
        exact = torch.promote_types(dtype, torch.float32)  # float16 would overflow
        unit = _shift(self._bits(purpose, shape), 40).to(exact).mul_(2.0**-24)
        return unit.mul_(high - low).add_(low).to(dtype)

    def normal(self, purpose: Key, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw N(0, 1) by Box and Muller from 24 + 24 bits."""
        bits = self._bits(purpose, shape)
        work = torch.float64 if dtype == torch.float64 else torch.float32
        radius = _shift(bits, 40).to(work).add_(1.0).mul_(2.0**-24).log_().mul_(-2.0).sqrt_()
        angle = (bits & ((1 << 24) - 1)).to(work).mul_(2.0 * math.pi * 2.0**-24)
        return (radius * angle.cos_()).to(dtype)

    def integers(self, purpose: Key, shape: Sequence[int], low: int, high: int) -> Tensor:
        """Draw integers uniform on {low, …, high - 1}, int64 (bias below 2^-32 · range)."""
        return ((_shift(self._bits(purpose, shape), 32) * (high - low)) >> 32) + low

    def permutation(self, purpose: Key, size: int) -> Tensor:
        """Draw a permutation of 0 … size - 1, int64 [size]; shared, whatever the ids."""
        return torch.argsort(replace(self, ids=None)._bits(purpose, (size,)), stable=True)
