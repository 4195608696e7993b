"""What a network costs in convolutions: counted by hand, and layer by layer from the network itself.

A convolution of k×k from C_in to C_out channels makes 2 · C_in · k² · C_out · H · W operations for each image, where
H × W is its output. Batch norm, activations and the linear layer are left out (a linear layer of 512 to 10 is
0.002 % of PreActResNet-18). A gradient in the input or in the weights costs the same again.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from demilune.models import Architecture, PreActResNet18, WideResNet


class Layer(NamedTuple):
    """A convolution as a pass meets it: its input of one image (C, H, W), and what it does."""

    given: tuple[int, int, int]
    out: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    @property
    def flops(self) -> int:
        """Operations of one image's forward pass."""
        channels, height, width = self.given
        high, wide = (
            (side + 2 * pad - gap * (k - 1) - 1) // step + 1
            for side, pad, gap, k, step in zip(
                (height, width), self.padding, self.dilation, self.kernel, self.stride, strict=True
            )
        )
        return 2 * channels // self.groups * self.kernel[0] * self.kernel[1] * self.out * high * wide


def layers(model: nn.Module, channels: int, side: int) -> list[Layer]:
    """Return every convolution of a network in the order of a forward pass, as hooks see them."""
    found = list[Layer]()

    def note(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.Conv2d) and not isinstance(module.padding, str)
        shape = tuple(given[0].shape[1:])
        pairs = (module.kernel_size, module.stride, module.padding, module.dilation)
        found.append(Layer(shape, module.out_channels, *pairs, module.groups))  # type: ignore[arg-type]

    hooks = [one.register_forward_pre_hook(note) for one in model.modules() if isinstance(one, nn.Conv2d)]
    mode, weight = model.training, next(model.parameters())
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, channels, side, side, device=weight.device))
    finally:
        model.train(mode)
        for hook in hooks:
            hook.remove()
    return found


def by_hand(net: Architecture, channels: int, side: int) -> int | None:
    """Return the operations of one image's forward pass by the closed formula; None for a net that has none here.

    Sides must halve to whole numbers, as 32 and 8 do.
    """
    if isinstance(net, PreActResNet18) and net.stem == 1:
        return preact_resnet18(net.width, channels, side)
    if isinstance(net, WideResNet):
        return wide_resnet(net.depth, net.factor, channels, side)
    return None


def preact_resnet18(width: int, channels: int, side: int) -> int:
    """Return 2 s² (9 c w + 132 w²).

    The stem takes 9 c w for each of the s² places. Where width doubles and the side halves, w² s² stays as it is: the
    first stage is four 3×3 convolutions, 36 w²; each of the three others a strided one of half the channels, 9/2,
    its 1×1 shortcut, 1/2, and three whole ones, 27: 32 w² each.
    """
    return 2 * side**2 * (9 * channels * width + (36 + 3 * 32) * width**2)


def wide_resnet(depth: int, factor: int, channels: int, side: int) -> int:
    """Return 2 s² (9 c 16 + [9 · 16 w + 9 w² + 16 w] + 2 [9/2 + 9 + 1/2] w² + 3 (n - 1) 18 w²), w = 16k, n = (d - 4)/6.

    The stem; the first block of the first stage with its shortcut (which a net of k = 1 lacks); those of the two
    other stages; and the n - 1 other blocks of each stage, of two convolutions.
    """
    n, w = (depth - 4) // 6, 16 * factor
    first = 9 * 16 * w + 9 * w**2 + (16 * w if factor > 1 else 0)
    return 2 * side**2 * (9 * channels * 16 + first + 2 * 14 * w**2 + 3 * (n - 1) * 18 * w**2)


def attack(forward: int, steps: int) -> int:
    """Return the operations of K steps of PGD on an image: forward, and back to the image."""
    return steps * 2 * forward


def sat(forward: int, first: int, steps: int) -> int:
    """Return those of a SAT step: the attack, forward, back to the first layer's output, and the weights' gradients.

    ``first`` is the first convolution's forward pass: nobody needs the gradient in its input there.
    """
    return attack(forward, steps) + 3 * forward - first
