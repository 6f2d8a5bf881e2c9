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


def class_scores(matrix: Ints) -> dict[str, npt.NDArray[Any]]:
    """Figures of each of C classes, by a `confusion_matrix`; NaN where nothing is counted.

    images (C,); predicted (C,), images taken for it; precision, recall and f1 (C,), and of each
    NAME_interval (C, 2): Wilson's, of the images taken for it, and of its own. F1 is no share, but
    rises with one: of the images of the class or taken for it J are both, and F1 = 2J / (1 + J)
    (Hand, Christen and Kirielle 2021, Machine Learning 110, who call J F*). So its interval is
    Wilson's for J, brought through the same function.
    """
    images, taken, right = matrix.sum(1), matrix.sum(0), np.diag(matrix)
    scores: dict[str, npt.NDArray[Any]] = {"images": images, "predicted": taken}
    of = {"precision": taken, "recall": images, "f1": images + taken - right}
    with np.errstate(divide="ignore", invalid="ignore"):
        for name, count in of.items():
            three = np.stack([right / count, *wilson(right, count)], 1)  # (C, 3)
            three = 2 * three / (1 + three) if name == "f1" else three
            scores |= {name: three[:, 0], f"{name}_interval": three[:, 1:]}
    return scores


def share(hits: Bools) -> tuple[float, tuple[float, float]]:
    """The share of the images (N,), one at least, that are hits, and its interval."""
    count, total = int(hits.sum()), len(hits)
    return count / total, wilson(count, total)


def ranks(scores: Floats, labels: Ints) -> Ints:
    """(N,) place of the true class by scores (N, C), from 1; of equals the first comes first."""
    own = np.take_along_axis(scores, labels[:, None], 1)
    before = np.arange(scores.shape[1]) < labels[:, None]
    return 1 + ((scores > own) | ((scores == own) & before)).sum(1)
