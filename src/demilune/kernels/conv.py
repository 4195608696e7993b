"""The Winograd convolution as torch sees it: with gradients of any order, in place of torch's own inside a context."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from demilune.kernels.build import Kernels

CHANNELS = 16
TILES = 4

State = tuple[int, torch.Size, tuple[int, ...]]


@final
@dataclass(frozen=True, slots=True)
class Packing:
    """Transformed filters, kept while their weight lives and has the values they were made of.

    They take four times a weight's bytes, and as much again for gradients. The values themselves are looked at: version
    counters miss what fused optimisers, ``weight.data`` and numpy write.
    """

    kernels: Kernels
    held: WeakTensorKeyDictionary = field(default_factory=WeakTensorKeyDictionary)

    def state(self, weight: Tensor) -> State | None:
        """Return what a weight's transformed filters depend on, or None where they cannot be kept."""
        mark = self.kernels.fingerprint(weight)
        return None if mark is None else (mark, weight.shape, weight.stride())

    def of(self, weight: Tensor, turned: bool, state: State | None) -> Tensor:
        """Return the transformed filters of a weight [K,C,3,3] in this state."""
        if state is None:
            return self.kernels.pack(weight, turned)
        kept: dict[bool, tuple[State, Tensor]] = self.held.setdefault(weight, {})
        found = kept.get(turned)
        if found is None or found[0] != state:
            found = kept[turned] = (state, self.kernels.pack(weight.detach(), turned))
        return found[1]

    def clear(self) -> None:
        """Forget all."""
        self.held.clear()


class Convolution(torch.autograd.Function):
    """The convolution of x [B,C,H,W] by w [K,C,3,3], or, ``turned``, its adjoint from [B,K,H,W] to [B,C,H,W].

    Each is the other's gradient with respect to x, so that gradients of any order are at hand.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, turned: bool, packing: Packing, state: State | None) -> Tensor:
        """Return the convolution."""
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        ctx.turned, ctx.packing, ctx.state = turned, packing, state
        return packing.kernels.convolve(x, packing.of(weight, turned, state), weight.shape[1 if turned else 0])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        """Return the gradients with respect to x and the weight; the latter is torch's own."""
        (grad,) = grads
        x, weight = ctx.saved_tensors
        to_x = to_weight = None
        if ctx.needs_input_grad[0]:
            to_x = Convolution.apply(grad, weight, not ctx.turned, ctx.packing, ctx.state)  # type: ignore[no-untyped-call]
        if ctx.needs_input_grad[1]:
            # <grad, turned(x)> = <convolution(grad), x>: the two change places.
            output, images = (x, grad) if ctx.turned else (grad, x)
            to_weight = torch.ops.aten.convolution_backward(
                output, images, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [False, True, False]
            )[1]
        return to_x, to_weight, None, None, None


def convolution(x: Tensor, weight: Tensor, turned: bool, packing: Packing) -> Tensor:
    """Return the convolution of float32 x [B,C,H,W] by w [K,C,3,3], stride 1, padding 1, or, ``turned``, its adjoint.

    Raises DemiluneError where channels are no multiples of ``packing.kernels.lanes``, or do not fit.
    """
    y: Tensor = Convolution.apply(x, weight, turned, packing, packing.state(weight))  # type: ignore[no-untyped-call]
    return y


class Intercepted(TorchFunctionMode):
    """The context in which torch's fitting convolutions are ours."""

    def __init__(self, packing: Packing) -> None:
        self.packing = packing

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer torch.conv2d where it fits; let all else pass."""
        if func is torch.conv2d:
            y = _answer(self.packing, *args, **(kwargs or {}))
            if y is not None:
                return y
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def winograd(packing: Packing) -> Iterator[None]:
    """Let convolutions inside be Winograd's, where it fits and pays; all others are torch's own.

    It fits ``torch.conv2d`` (so ``nn.Conv2d`` and every network) of 3×3 filters with stride 1, padding 1, one group, in
    float32 on a processor, without autocast or function transforms, channels both being multiples of the vector and
    at least 16. Outputs differ from torch's by some 3e-6 of the largest: fit to search with, not for a verdict.
    Images too small or too few for it to pay (``pays``) are left to torch. Transformed filters stay in ``packing``.
    """
    with Intercepted(packing):
        yield


def _answer(
    packing: Packing,
    input: Tensor,  # noqa: A002 (torch's own names, by which a caller may give them)
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    """Return the convolution with its bias, or None where torch should make it."""
    if not (_is_one(stride) and (padding == "same" or _is_one(padding)) and _is_one(dilation) and groups == 1):
        return None
    if not (bias is None or (bias.dtype == torch.float32 and bias.shape == weight.shape[:1])):
        return None
    if not (_plain(input) and _plain(weight) and _fits(packing.kernels, input, weight)):
        return None
    if torch.is_autocast_enabled("cpu") or torch._C._are_functorch_transforms_active():
        return None
    if forward_ad._current_level >= 0 or torch.compiler.is_compiling():
        return None
    y = convolution(input, weight, False, packing)
    return y if bias is None else y + bias.view(1, -1, 1, 1)


def _is_one(value: Any) -> bool:
    return value in (1, (1,), (1, 1)) or value in ([1], [1, 1])


def _plain(x: Tensor) -> bool:
    return (
        type(x) in (Tensor, nn.Parameter)
        and x.dim() == 4
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and x.layout == torch.strided
        and not x.is_neg()
    )


def _fits(kernels: Kernels, x: Tensor, weight: Tensor) -> bool:
    outputs, inputs = weight.shape[:2]
    if not kernels.threaded and torch.get_num_threads() > 2:  # one thread of ours is worth two or three of torch's
        return False
    channels = inputs % kernels.lanes == outputs % kernels.lanes == 0 and min(inputs, outputs) >= CHANNELS
    return weight.shape[2:] == (3, 3) and channels and x.shape[1] == inputs and pays(*x.shape[0:1], *x.shape[2:])


def pays(images: int, height: int, width: int) -> bool:
    """Say whether it is worth it: tiles of 4×4 pixels must be mostly full, and share the reading of the filters."""
    tiles = images * -(-height // 4) * -(-width // 4)
    return tiles >= TILES and 2 * images * height * width >= 16 * tiles
