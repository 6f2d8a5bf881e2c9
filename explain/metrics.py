"""How good predictions are: functions of NumPy arrays, of N images and C classes; shares are 0..1.

An interval is where the true share lies in 95 of 100 cases, where the images are a fair sample.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from explain.cases import Bools, Floats, Ints
from ground.interval import wilson


@dataclass(frozen=True, eq=False)
class Calibration:
    """Confidence against accuracy in equal bins of confidence; empty bins hold 0."""

    error: float  # expected, 0..1: |accuracy - confidence|, weighted by the bins' images
    images: Ints
    confidence: Floats
    accuracy: Floats


def confusion_matrix(labels: Ints, predicted: Ints, classes: int) -> Ints:
    """(C, C) counts: row the true class, column the predicted one."""
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def top_confusions(matrix: Ints, count: int = 5) -> list[tuple[int, int, int]]:
    """The `count` most frequent confusions (true, predicted, images), most frequent first, none of 0 images."""
    wrong = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    pairs = zip(*(part.tolist() for part in np.unravel_index(order, wrong.shape)), strict=True)
    return [(true, predicted, int(wrong[true, predicted])) for true, predicted in pairs if wrong[true, predicted]]


def calibration(logits: Tensor, labels: Ints) -> Calibration:
    """Calibration of the predicted classes of logits (N, C)."""
    return calibrated(logits.double().softmax(1).numpy().max(1), logits.argmax(1).numpy() == labels)


def calibrated(confidence: Floats, right: Bools, bins: int = 15) -> Calibration:
    """Calibration of predictions (N,), right or not (N,) (Guo et al. 2017, arXiv 1706.04599)."""
    place = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    images = np.bincount(place, minlength=bins)
    sums = [np.bincount(place, values, bins) for values in (confidence, right)]
    means = [total / np.maximum(images, 1) for total in sums]
    error = float((images * np.abs(means[1] - means[0])).sum() / images.sum())
    return Calibration(error, images, *means)


def class_scores(labels: Ints, predicted: Ints, classes: int) -> dict[str, npt.NDArray[Any]]:
    """Figures of each of C classes, by labels and predictions (N,); NaN where nothing is counted.

    images (C,); predicted (C,), images taken for it; precision, recall and f1 (C,), and of each
    NAME_interval (C, 2): Wilson's, of the images taken for it, and of its own. F1 is no share, but
    rises with one: of the images of the class or taken for it J are both, and F1 = 2J / (1 + J)
    (Hand, Christen and Kirielle 2021, Machine Learning 110, who call J F*). So its interval is
    Wilson's for J, brought through the same function.
    """
    counted = labels, predicted, labels[labels == predicted]
    images, taken, right = (np.bincount(some, minlength=classes) for some in counted)
    scores: dict[str, npt.NDArray[Any]] = {"images": images, "predicted": taken}
    of = {"precision": taken, "recall": images, "f1": images + taken - right}
    with np.errstate(divide="ignore", invalid="ignore"):
        for name, count in of.items():
            three = np.stack([right / count, *wilson(right, count)], 1)  # (C, 3)
            three = 2 * three / (1 + three) if name == "f1" else three
            scores |= {name: three[:, 0], f"{name}_interval": three[:, 1:]}
    return scores


def confusions(
    labels: Ints, predicted: Ints, classes: int, most: int = 1000
) -> list[tuple[int, ...]]:
    """(true class, predicted class, images) of what is wrong, most frequent first; without a table
    of all pairs, of which there may be too many."""
    wrong = labels != predicted
    pairs, counts = np.unique(labels[wrong] * classes + predicted[wrong], return_counts=True)
    order = np.argsort(-counts, kind="stable")[:most]
    columns = *np.divmod(pairs[order], classes), counts[order]
    return list(zip(*(column.tolist() for column in columns), strict=True))


def share(hits: Bools) -> tuple[float, tuple[float, float]]:
    """The share of the images (N,), one at least, that are hits, and its interval."""
    count, total = int(hits.sum()), len(hits)
    return count / total, wilson(count, total)


def ranks(logits: Floats, labels: Ints) -> Ints:
    """(N,) place of the true class by logits (N, C), from 1; of equals the first comes first."""
    own = np.take_along_axis(logits, labels[:, None], 1)
    before = np.arange(logits.shape[1]) < labels[:, None]
    return 1 + ((logits > own) | ((logits == own) & before)).sum(1)
