"""Data sets by name, each as the images to train on and the images to report on.

    train, reported = open_dataset("cifar10").splits(validate=False)
"""

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ground.mistake import Mistake
from pipeline import folder, synthetic
from pipeline.cifar10 import cache
from pipeline.pictures import Fit
from pipeline.split import Int64, Split

VALIDATION = "10/10"  # the fold that is held out to choose settings by


@dataclass(frozen=True)
class DataSet:
    """Two parts, of which each is read only when it is asked for."""

    name: str
    """As `--data` gives it."""
    load: Callable[[str], Split]
    """The "train" or the "test" part. Raises OSError or ValueError where it cannot be had."""
    own_validation: Callable[[], bool] = lambda: False
    """Whether there is a "validation" part too."""

    def splits(self, validate: bool, fold: str = "") -> tuple[Split, Split]:
        """The images to train on and those to report on: "train" and "test".

        With `validate` the second is "validation"; where there is none, and with a `fold`, the two are what `hold_out`
        makes of "train". The test images are not opened then.
        """
        train = self.load("train")
        if fold:
            return hold_out(train, fold)
        if validate:
            return (train, self.load("validation")) if self.own_validation() else hold_out(train, VALIDATION)
        return train, self.load("test")

    def validation(self) -> Split | None:
        """The "validation" part, if there is one: neither trained on nor test images."""
        return self.load("validation") if self.own_validation() else None

    def reported(self, validate: bool, fold: str = "") -> Split:
        """The second of `splits`, without reading more than it takes."""
        return self.splits(validate, fold)[1] if validate or fold else self.load("test")


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
    root = Path(os.path.expanduser(name))
    if name and (root.is_dir() or (root.is_file() and root.suffix.lower() == ".csv")):
        return DataSet(name, *folder.loader(root, size, fit))
    raise Mistake(
        f"--data is {name}: it must be cifar10, generated, generated:TRAIN/TEST (numbers of images), a folder of "
        "pictures, or a CSV file, and there is no such folder or file"
    )


def hold_out(train: Split, fold: str) -> tuple[Split, Split]:
    """The images to train on and those of a fold, such as "2/5", the second of five: "training", "validation".

    Raises:
        ValueError: no image is in that fold.
    """
    chosen = places(train, fold)
    if train.shuffled and chosen[-1] == len(train) - 1:  # the end of it: neither needs a copy
        return train.take(slice(chosen[0]), "training"), train.take(slice(chosen[0], None), "validation")
    held = np.zeros(len(train), bool)
    held[chosen] = True
    return train.take(np.flatnonzero(~held), "training"), train.take(np.flatnonzero(held), "validation")


def places(train: Split, fold: str) -> Int64:
    """Those of the images of a fold, rising; together the folds hold every image once.

    Neighbours, if the images are shuffled. Else of each class neighbours by the hashes of their pixels: the same images
    whatever their order, and copies of one image stay together. A class's only image is in no fold.

    Raises:
        ValueError: there are none.
    """
    number, folds = map(int, fold.split("/"))

    def part(count: int) -> slice:
        return slice(count * (number - 1) // folds, count * number // folds)

    found = np.arange(len(train))[part(len(train))]
    if not train.shuffled:
        hashes = np.array([hashlib.sha256(image.tobytes()).hexdigest() for image in train.images])
        chosen = np.zeros(len(train), bool)
        for label in np.unique(train.labels):
            own = np.flatnonzero(train.labels == label)
            distinct = np.unique(hashes[own])
            if len(distinct) > 1:
                chosen[own] = np.isin(hashes[own], distinct[part(len(distinct))])
        found = np.flatnonzero(chosen)
    if not len(found):
        raise Mistake(f"no image to hold out: of {len(train)} images none is in fold {fold}")
    return found
