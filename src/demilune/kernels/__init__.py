"""Convolutions of our own for processors, in float32: compiled on first use, and never needed."""

from demilune.kernels.build import Kernels, compiler, load
from demilune.kernels.conv import Packing, winograd

__all__ = ["Kernels", "Packing", "compiler", "load", "winograd"]
