"""What a source of data is: a frozen value that loads it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import final

from demilune.data.extra import Extra
from demilune.data.split import Dataset, sha256


class Data(ABC):
    """A source of data: a frozen value whose fields are its configuration."""

    __slots__ = ()

    extra: Extra

    @abstractmethod
    def load(self) -> Dataset:
        """Read the data into CPU tensors; raise :class:`DemiluneError` where they are missing or broken."""

    @final
    def mixed(self) -> Dataset:
        """Return what :meth:`load` does, with the extra images to train on: an evaluation does not need them."""
        dataset = self.load()
        extra = self.extra.read(dataset)
        if extra is None:
            return dataset
        found = sha256(extra.images.numpy(), len(dataset.classes), extra.labels.numpy())
        return replace(dataset, extra=extra, extra_share=self.extra.share, extra_sha256=found)
