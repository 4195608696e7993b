"""Images and labels as uint8 tensors: where they come from, their order, their augmentation."""

from __future__ import annotations

from collections.abc import Mapping

from demilune.data import cifar, cifar_c, imagenette, mnist, svhn
from demilune.data.augment import crop_flip as augment
from demilune.data.base import Data
from demilune.data.cifar import CIFAR10, CIFAR100
from demilune.data.cifar_c import CIFAR10C, CIFAR100C
from demilune.data.digits import Digits
from demilune.data.extra import Extra
from demilune.data.folder import Folder
from demilune.data.imagenette import ImageNette
from demilune.data.mnist import MNIST
from demilune.data.order import order
from demilune.data.published import Supply
from demilune.data.split import Dataset, Split
from demilune.data.svhn import SVHN

DATA: Mapping[str, type[Data]] = {
    "digits": Digits,
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "svhn": SVHN,
    "mnist": MNIST,
    "imagenette": ImageNette,
    "folder": Folder,
}

CORRUPTED: Mapping[str, type[CIFAR10C] | type[CIFAR100C]] = {"cifar10": CIFAR10C, "cifar100": CIFAR100C}
"""The official corrupted test images, by the data they are of."""

SUPPLIES: Mapping[str, Supply] = {
    "cifar10": Supply(cifar.download, cifar.status),
    "cifar100": Supply(cifar.download, cifar.status),
    "svhn": Supply(svhn.download, svhn.status),
    "mnist": Supply(mnist.download, mnist.status),
    "imagenette": Supply(imagenette.download, imagenette.status),
    "cifar10-c": Supply(cifar_c.download, cifar_c.status),
    "cifar100-c": Supply(cifar_c.download, cifar_c.status),
}
"""Those that can be downloaded; the others come along, or are the user's own."""

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "CORRUPTED",
    "DATA",
    "MNIST",
    "SUPPLIES",
    "SVHN",
    "Data",
    "Dataset",
    "Digits",
    "Extra",
    "Folder",
    "ImageNette",
    "Split",
    "Supply",
    "augment",
    "order",
]
