"""Training as the released scripts of the field write it: the loop that ours is measured against.

float32, NCHW, a ``DataLoader`` that crops and flips image by image in a worker process, the network switched to eval
mode for the attack and back, its weights requiring gradients throughout, ``loss.item()`` after every step. Two forms of
the inner attack are in use: ``loss.backward()`` and the input's ``.grad``, which also makes weight gradients nobody
asked for (Rice et al., Wong et al.), and ``torch.autograd.grad`` to the input (TRADES and what is built on it). Images
are cropped as tensors, which takes less time than the PIL images of those scripts do.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from benchmarks import ours
from benchmarks.setting import BALL, CLASSES, STEP, STEPS, Setting

Item = tuple[Tensor, int]
Inner = Literal["backward", "grad"]


class Augmented(Dataset[Item]):
    """Images uint8 [N,C,H,W], each padded by 4, cropped and flipped at random when it is asked for."""

    def __init__(self, images: Tensor, labels: Tensor, pad: int = 4) -> None:
        self.images, self.labels, self.pad = images, labels.tolist(), pad

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Item:
        image, pad = self.images[index], self.pad
        height, width = image.shape[1:]
        top, left = (int(torch.randint(0, 2 * pad + 1, (1,))) for _ in range(2))
        image = F.pad(image, (pad, pad, pad, pad))[:, top : top + height, left : left + width]
        if torch.rand(1) < 0.5:
            image = image.flip(-1)
        return image.float().div(255), self.labels[index]


def loader(setting: Setting, workers: int) -> DataLoader[Item]:
    """Return the loader of the same images that ours trains on."""
    data = ours.dataset(setting, ours.loaded(setting)).train.to("cpu")
    return DataLoader(
        Augmented(data.images, data.labels), setting.batch, shuffle=True, num_workers=workers, drop_last=True,
        pin_memory=setting.place.type == "cuda", persistent_workers=workers > 0,
    )  # fmt: skip


def endless(batches: DataLoader[Item]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches, epoch after epoch."""
    while True:
        yield from batches


def attack(model: nn.Module, x: Tensor, y: Tensor, inner: Inner, path: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return x'_K of PGD, and append (x'_t, logits) for t = 0 … K-1."""
    model.eval()
    x_adv = torch.clamp(x + torch.empty_like(x).uniform_(-BALL.eps, BALL.eps), 0.0, 1.0)
    for _ in range(STEPS):
        x_adv.requires_grad_()
        logits = model(x_adv)
        loss = F.cross_entropy(logits, y)
        if inner == "backward":
            loss.backward()
            gradient = x_adv.grad
            assert gradient is not None
        else:
            gradient = torch.autograd.grad(loss, [x_adv])[0]
        path.append((x_adv.detach(), logits.detach()))
        x_adv = x_adv.detach() + STEP * torch.sign(gradient.detach())
        x_adv = torch.min(torch.max(x_adv, x - BALL.eps), x + BALL.eps)
        x_adv = torch.clamp(x_adv, 0.0, 1.0)
    model.train()
    return x_adv.detach()


def region(x: Tensor, y: Tensor, end: Tensor, path: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return RAT's two points per image [2n,…] and their soft labels [2n,C] (Eqs. 5 to 7), S = 2, β from 1 to 0.1."""
    first, found = end.clone(), torch.zeros_like(y, dtype=torch.bool)
    for point, logits in path[1:]:
        new = (logits.argmax(dim=1) != y) & ~found
        first[new] = point[new]
        found |= new
    points, labels = [], []
    for _ in range(2):
        position = torch.rand(len(x), 1, 1, 1, device=x.device)
        scale = torch.randint(0, 21, (len(x), 1, 1, 1), device=x.device).float() / 10
        middle = position * first + (1 - position) * end
        points.append(torch.clamp(x + scale * (middle - x), 0.0, 1.0))
        mass = 1.0 - scale.view(-1, 1) * 0.9 / 2
        hard = F.one_hot(y, CLASSES).float()
        labels.append(mass * hard + (1 - hard) * (1 - mass) / (CLASSES - 1))
    return torch.cat(points), torch.cat(labels)


class Loop:
    """The loop, step by step."""

    def __init__(self, setting: Setting, method: Literal["sat", "rat"], inner: Inner) -> None:
        self.method, self.inner, self.device = method, inner, setting.place
        self.model = ours.network(setting).train()
        self.batches = endless(loader(setting, setting.workers))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9, weight_decay=2e-4)
        self.loss = 0.0

    def __call__(self) -> None:
        """Take one step."""
        chosen, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True  # as the scripts have it
        x, y = (given.to(self.device) for given in next(self.batches))
        path: list[tuple[Tensor, Tensor]] = []
        end = attack(self.model, x, y, self.inner, path)
        if self.method == "sat":
            loss = F.cross_entropy(self.model(end), y)
        else:
            points, labels = region(x, y, end, path)
            loss = -(labels * F.log_softmax(self.model(points), dim=1)).sum(dim=1).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.loss = loss.item()
        torch.backends.cudnn.benchmark = chosen
