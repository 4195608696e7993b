"""Images and labels as uint8 tensors: where they come from, their order, their augmentation."""

from __future__ import annotations

from collections.abc import Mapping

from demilune.data.augment import crop_flip as augment
from demilune.data.cifar import CIFAR10, CIFAR100
from demilune.data.digits import Digits
from demilune.data.folder import Folder
from demilune.data.order import order
from demilune.data.split import Data, Dataset, Split

DATA: Mapping[str, type[Data]] = {
    "digits": Digits,
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "folder": Folder,
}

__all__ = ["CIFAR10", "CIFAR100", "DATA", "Data", "Dataset", "Digits", "Folder", "Split", "augment", "order"]
