"""How good predictions are: plain functions of NumPy arrays, N images and C classes, all shares 0..1.

An interval is where the true share lies in 95 of 100 cases, where the images are a fair sample.
"""

from dataclasses import dataclass

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
    """Calibration of N predicted classes, of which so many are right (Guo et al. 2017, arXiv 1706.04599)."""
    place = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    images = np.bincount(place, minlength=bins)
    sums = [np.bincount(place, values, bins) for values in (confidence, right)]
    means = [total / np.maximum(images, 1) for total in sums]
    error = float((images * np.abs(means[1] - means[0])).sum() / images.sum())
    return Calibration(error, images, *means)


@dataclass(frozen=True, eq=False)
class ClassScores:
    """Of each class; NaN where there is nothing to divide by."""

    images: Ints  # (C,)
    predicted: Ints  # (C,) images that were taken for it
    precision: Floats  # (C,) of those taken for it: which share is of it
    recall: Floats  # (C,) of its own images: which share was recognised
    f1: Floats  # (C,) harmonic mean of the two
    precision_interval: Floats  # (C, 2)
    recall_interval: Floats  # (C, 2)
    f1_interval: Floats  # (C, 2)


def class_scores(labels: Ints, predicted: Ints, classes: int) -> ClassScores:
    """Precision, recall and F1 of each of so many classes, by labels and predictions (N,).

    The intervals of precision and recall are Wilson's. F1 is no share of a sample, but a rising function of one: of the
    images that are of the class or taken for it, J are both, and F1 = 2J / (1 + J) (Hand, Christen and Kirielle
    2021, Machine Learning 110, who call J F*). So its interval is Wilson's for J, brought through the same function.
    """
    images, taken, right = (
        np.bincount(some, minlength=classes) for some in (labels, predicted, labels[labels == predicted])
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        either = images + taken - right
        precision, recall = (np.stack(wilson(right, count), 1) for count in (taken, images))
        both = np.stack([right / either, *wilson(right, either)], 1)
        f1 = 2 * both / (1 + both)
        return ClassScores(
            images, taken, right / taken, right / images, f1[:, 0], precision, recall, f1[:, 1:]
        )


def share(hits: npt.NDArray[np.bool_]) -> tuple[float, list[float]]:
    """The share of the images (N,), one at least, that are hits, and its interval."""
    count, total = int(hits.sum()), len(hits)
    return count / total, list(wilson(count, total))


def ranks(logits: Floats, labels: Ints) -> Ints:
    """(N,) place of the true class among those of logits (N, C), from 1; of equals the first has the better one."""
    own = np.take_along_axis(logits, labels[:, None], 1)
    before = np.arange(logits.shape[1]) < labels[:, None]
    return 1 + ((logits > own) | ((logits == own) & before)).sum(1)
