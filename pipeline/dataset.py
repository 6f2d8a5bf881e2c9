"""Data sets by name, each as the images to train on and the images to report on.

    train, reported = open_dataset("cifar10").splits(validate=False)
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from pipeline import folder, synthetic
from pipeline.cifar10 import cache
from pipeline.pictures import Fit
from pipeline.split import Split

HELD_OUT = 10  # one image in so many


@dataclass(frozen=True)
class DataSet:
    """Two parts, of which each is read only when it is asked for."""

    name: str
    """As `--data` gives it."""
    load: Callable[[str], Split]
    """The "train" or the "test" part. Raises OSError or ValueError where it cannot be had."""
    own_validation: Callable[[], bool] = lambda: False
    """Whether there is a "validation" part too."""

    def splits(self, validate: bool) -> tuple[Split, Split]:
        """The images to train on and those to report on: "train" and "test".

        With `validate` the second is "validation", where there is none, the two are what `hold_out` makes of "train";
        the test images are not opened.
        """
        if validate and self.own_validation():
            return self.load("train"), self.load("validation")
        train = self.load("train")
        return hold_out(train) if validate else (train, self.load("test"))

    def validation(self) -> Split | None:
        """The "validation" part, if there is one: neither trained on nor test images."""
        return self.load("validation") if self.own_validation() else None

    def reported(self, validate: bool) -> Split:
        """The second of `splits`, without reading more than it takes."""
        return self.splits(validate)[1] if validate else self.load("test")


def open_dataset(name: str, size: int = 0, fit: Fit = "crop") -> DataSet:
    """The data set that `--data` names; nothing is read yet.

    Args:
        name: "cifar10"; "generated" for 2,048 and 512 generated images, or "generated:TRAIN/TEST" for other numbers; or
            a folder of pictures, or a CSV file that names some: see pipeline.folder.
        size, fit: how such pictures become squares: see pipeline.folder.prepare and pipeline.pictures.

    Raises:
        ValueError: there is no data set of that name.
    """
    if name == "cifar10":
        return DataSet(name, cache.load)
    if generated := re.fullmatch(r"generated(?::([1-9]\d{0,6})/([1-9]\d{0,6}))?", name):
        train, test = generated.groups()
        return DataSet(name, partial(synthetic.load, train=int(train or 2048), test=int(test or 512)))
    root = Path(name).expanduser()
    if name and (root.is_dir() or (root.is_file() and root.suffix.lower() == ".csv")):
        return DataSet(name, *folder.loader(root, size, fit))
    raise ValueError(
        f"--data is {name}: it must be cifar10, generated, generated:TRAIN/TEST (numbers of images), a folder of "
        "pictures, or a CSV file, and there is no such folder or file"
    )


def hold_out(train: Split) -> tuple[Split, Split]:
    """A tenth of the training images apart, for choosing settings without the test images: "training", "validation".

    The last tenth if the images are shuffled. Else of each class those whose pixels have the smallest hashes, one at
    least of a class of two: the same images whatever their order, and copies of one image stay together.
    """
    if train.shuffled:
        cut = len(train) - len(train) // HELD_OUT
        return train.take(slice(cut), "training"), train.take(slice(cut, None), "validation")
    hashes = np.array([hashlib.sha256(image.tobytes()).hexdigest() for image in train.images])
    held = np.zeros(len(train), bool)
    for label in np.unique(train.labels):
        own = np.flatnonzero(train.labels == label)
        count = max(len(own) // HELD_OUT, int(len(own) > 1))
        if count:
            held[own] = hashes[own] <= np.sort(hashes[own])[count - 1]
    return train.take(np.flatnonzero(~held), "training"), train.take(np.flatnonzero(held), "validation")
