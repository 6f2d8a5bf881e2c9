"""Data sets by name, each as the images to train on and the images to report on.

    train, reported = open_dataset("cifar10").splits(validate=False)
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np

from ground.data import GENERATED, kind_of
from ground.mistake import Mistake
from pipeline import folder, store, synthetic
from pipeline.cifar10 import cache as cifar10
from pipeline.layout import Layout
from pipeline.listing import identity
from pipeline.pictures import Fit
from pipeline.split import Int64, Split, sha256
from pipeline.store import say
from pipeline.table import SUFFIXES

VALIDATION = "10/10"  # the fold that is held out to choose settings by


@dataclass(frozen=True)
class DataSet:
    """Two parts, of which each is read only when it is asked for."""

    load: Callable[[str], Split]  # "train" or "test"; raises OSError or Mistake where it cannot be had
    has_validation: Callable[[], bool] = lambda: False  # whether there is a "validation" part too
    identity: Callable[[], str] = lambda: ""  # the same for the same pictures, whatever their names and place
    root: Path | None = None  # the folder of pictures, or the table

    def splits(self, validate: bool, fold: str = "") -> tuple[Split, Split]:
        """The images to train on and those to report on: "train" and "test".

        With `validate` the second is "validation"; where there is none, and with a `fold`, the two are what
        `hold_out` makes of "train". The test images are not opened then.
        """
        train = self.load("train")
        if fold:
            return hold_out(train, fold)
        if validate:
            return (train, self.load("validation")) if self.has_validation() else hold_out(train, VALIDATION)
        return train, self.load("test")

    def validation(self) -> Split | None:
        """The "validation" part, if there is one: neither trained on nor test images."""
        return self.load("validation") if self.has_validation() else None

    def reported(self, validate: bool, fold: str = "") -> Split:
        """The second of `splits`, without reading more than it takes."""
        return self.splits(validate, fold)[1] if validate or fold else self.load("test")


def open_dataset(name: str, size: int = 0, fit: Fit = "crop", layout: Layout = "auto") -> DataSet:
    """The data set that `--data` names; nothing is read yet.

    "cifar10"; "generated", which is 2,048 and 512 images, or "generated:TRAIN/TEST"; or a folder of
    pictures, or a table that names some: pipeline.folder.prepare tells of `size`, `fit` and `layout`.
    """
    root = Path(os.path.expanduser(name))
    if kind_of(name) != "pictures":
        if root.is_dir():
            say(f"--data {name} is not the folder of that name: call that ./{name}")
        counts = GENERATED.fullmatch(name)
        if not counts:
            return DataSet(cifar10.load, identity=lambda: name)
        train, test = (int(count or usual) for count, usual in zip(counts.groups(), (2048, 512), strict=True))
        return DataSet(partial(synthetic.load, train=train, test=test), identity=lambda: name)
    if name and (root.is_dir() or (root.is_file() and root.suffix.lower() in SUFFIXES)):
        prepared = cache(partial(folder.prepare, root, size, fit, layout))
        return DataSet(
            lambda part: folder.part_of(root, *prepared(), part),
            lambda: any(picture.part == "validation" for picture in prepared()[0].pictures),
            lambda: identity(prepared()[0]),
            root,
        )
    raise Mistake(
        f"--data is {name}: it must be cifar10, generated, generated:TRAIN/TEST (numbers of images), a folder of "
        "pictures, or a table of them (.csv, .tsv or .txt), and there is no such folder or file"
    )


def require_known(name: str, source: str) -> None:
    """Raises Mistake where `source`, maybe a stranger's file, names pictures never read here."""
    root = Path(os.path.expanduser(name))
    if kind_of(name) == "pictures" and not (root.exists() and store.index_path(root).exists()):
        where = "were not read on this machine before" if root.exists() else "are not there"
        raise Mistake(f"{source} names the pictures in {name}, which {where}: say by --data where they lie")


def hold_out(train: Split, fold: str) -> tuple[Split, Split]:
    """The images to train on and those of a fold: "2/5" is the second of five."""
    held = fold_indices(train, fold)
    if train.shuffled and held[-1] == len(train) - 1:  # the end of it: neither needs a copy
        return train.take(slice(held[0]), "training"), train.take(slice(held[0], None), "validation")
    kept = np.delete(np.arange(len(train)), held)
    return train.take(kept, "training"), train.take(held, "validation")


def fold_indices(train: Split, fold: str) -> Int64:
    """Indices (k,) of the images of a fold, rising; all folds together hold every image once.

    Neighbours, if the images are shuffled. Else of each class neighbours by the hashes of their files: the
    same images whatever their order and size, and copies stay together. A class's only image is in no fold.
    """
    number, folds = map(int, fold.split("/"))

    def share(count: int) -> slice:  # of 10, fold 2/4:  0 1 [2 3 4] 5 6 7 8 9
        return slice(count * (number - 1) // folds, count * number // folds)

    if train.shuffled:
        indices = np.arange(len(train))[share(len(train))]
    else:
        by_pixels = not len(train.contents)
        hashes = np.array([sha256(image) for image in np.asarray(train.images)]) if by_pixels else train.contents
        held = np.zeros(len(train), bool)
        for label in np.unique(train.labels):
            members = np.flatnonzero(train.labels == label)
            distinct = np.unique(hashes[members])  # sorted
            if len(distinct) > 1:
                held[members] = np.isin(hashes[members], distinct[share(len(distinct))])
        indices = np.flatnonzero(held)
    if not len(indices):
        raise Mistake(f"no image to hold out: of {len(train)} images none is in fold {fold}")
    return indices
