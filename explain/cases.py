"""The images that are explained, and their heatmaps: the errors of a data set, or pictures of one's own.

A picture of one's own has no label: there `Cases.rival` is the runner-up, not the true class, so
that the margin says why this class and not the next.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ground.mistake import Mistake
from pipeline.split import UInt8

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False, kw_only=True)
class Cases:
    """E of the `total` images that a model of C classes has seen; every array starts with E."""

    name: str  # of the set that they are from, such as "test"
    total: int
    classes: tuple[str, ...]
    index: Ints  # (E,) place in the set
    labels: Ints | None  # (E,) true classes, or None of pictures without labels
    logits: Tensor  # (E, C) float32
    class_maps: Tensor  # (E, C, h, w) float32, raw maps of the last stage
    inputs: Tensor  # (E, 3, R, R) uint8, as the model saw them
    pictures: UInt8  # (E, S, S, 3), the same to look at
    files: tuple[str, ...] = ()  # (E,) where they come from, if they are files
    disputed: Bools  # (E,) annotators, or a model that has not seen it, doubt the label
    badge: str = "label disputed"  # what these are marked with
    questioned: bool = False  # the labels are what is looked at, and may be wrong

    def __len__(self) -> int:
        return len(self.index)

    @cached_property
    def order(self) -> Ints:
        """(E, C) classes, the likeliest first."""
        return self.logits.argsort(dim=1, descending=True, stable=True).numpy()

    @property
    def predicted(self) -> Ints:
        return self.order[:, 0]

    @property
    def rival(self) -> Ints:
        """(E,) the true class, or the runner-up where there are no labels."""
        return self.order[:, 1] if self.labels is None else self.labels

    @property
    def rival_is(self) -> str:
        """What `rival` holds: the "true", "labelled" or "second" class."""
        return "second" if self.labels is None else "labelled" if self.questioned else "true"

    @cached_property
    def probabilities(self) -> Floats:
        """(E, C) softmax."""
        return self.logits.double().softmax(1).numpy()

    @cached_property
    def loss(self) -> Floats:
        """(E,) cross-entropy of the rival class in nats."""
        return F.cross_entropy(self.logits.double(), torch.from_numpy(self.rival), reduction="none").numpy()

    @cached_property
    def rank(self) -> Ints:
        """(E,) place of the rival class in `order`, from 1."""
        return 1 + (self.order == self.rival[:, None]).argmax(1)

    def probability(self, classes: Ints) -> Floats:
        """(E,) probability of the given class of each image."""
        return np.take_along_axis(self.probabilities, classes[:, None], 1)[:, 0]

    def title(self, position: int) -> str:
        """What a person calls the image: its file, or its place in the set."""
        return self.files[position] if self.files else f"{self.name} image {self.index[position]}"

    def every(self, name: str) -> Ints:
        """(E,) the class of that name. Raises Mistake where the model has none."""
        if name not in self.classes:
            raise Mistake(f"class {name!r} is unknown: it is none of the model's {len(self.classes)} classes")
        return np.full(len(self), self.classes.index(name))

    def likeliest(self, count: int, always: Ints) -> Ints:
        """(E, K) the `count` likeliest classes in order, `always` (E, T) among them."""
        if len(self.classes) <= count:  # all, in their own order
            return np.tile(np.arange(len(self.classes)), (len(self), 1))
        wanted = np.zeros(self.probabilities.shape, bool)
        np.put_along_axis(wanted, always, True, 1)
        kept = np.argsort(-self.probabilities - wanted, axis=1, kind="stable")[:, :count]
        order = np.argsort(-np.take_along_axis(self.probabilities, kept, 1), axis=1, kind="stable")
        return np.take_along_axis(kept, order, 1)

    def select(self, sort: str = "loss", true: str = "any", predicted: str = "any", seed: int = 0) -> Ints:
        """Positions of the images of these classes, sorted. Raises Mistake where there are none."""
        keys: dict[str, npt.NDArray[Any]] = {
            "loss": -self.loss,
            "confidence": -self.probability(self.predicted),
            "index": self.index,
            "random": np.random.default_rng(seed).permutation(len(self)),
        }
        keep = np.ones(len(self), bool)
        for name, classes in ((true, self.rival), (predicted, self.predicted)):
            if name != "any":
                keep &= classes == self.every(name)
        if len(self) and not keep.any():
            what = "pictures is of" if self.labels is None else f"errors is of true class {true} and"
            raise Mistake(f"none of the {len(self)} {what} predicted class {predicted}")
        order = np.argsort(keys[sort], kind="stable")
        return order[keep[order]]


@dataclass(frozen=True, eq=False)
class Maps:
    """Raw, signed heatmaps of all cases, of T classes each."""

    cases: Cases
    layer: str
    method: str
    target: str  # "pred", "true", "margin" (predicted minus rival) or the name of a class
    classes: Ints  # (E, T) whose maps they are, predicted, rival and target among them
    values: Tensor  # (E, T, h, w) float32

    @property
    def computed(self) -> int:
        """How many were computed: at layer4 those of all classes of all images."""
        return self.cases.total * len(self.cases.classes) if self.layer == "layer4" else self.classes.size

    def of(self, classes: Ints) -> Tensor:
        """(E, h, w), the map of the given class of each image."""
        return self.values[np.arange(len(classes)), (self.classes == classes[:, None]).argmax(1)]

    @property
    def predicted(self) -> Tensor:
        return self.of(self.cases.predicted)

    @property
    def rival(self) -> Tensor:
        return self.of(self.cases.rival)

    @property
    def margin(self) -> Tensor:
        """Why this class and not that one."""
        return self.predicted - self.rival

    @property
    def chosen(self) -> Tensor:
        """The map of `target`."""
        named = {"pred": self.predicted, "true": self.rival, "margin": self.margin}
        return named[self.target] if self.target in named else self.of(self.cases.every(self.target))
