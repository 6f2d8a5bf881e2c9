"""Pictures that are nearly another one: saved again, at another size, a little turned, or the next frame of a film.

Where such a pair has one picture to train on and one to test with, the accuracy is too good. Copies byte for byte are
kept together (pipeline.parts); these are only told of, by `python -m pipeline`.
"""

import numpy as np
from PIL import Image

from pipeline.split import UInt8

ALIKE = 0.97
"""Correlation from which on two pictures are likely one. Measured on five public sets: of 61 validation and test
pictures of two of them that reach it all but one are copies, by eye; in the other three the highest is 0.960."""
SIDE = 16  # pixels that are compared
BLOCK = 4096  # pictures


def nearest(images: UInt8, others: UInt8) -> tuple[np.ndarray, np.ndarray]:
    """For each of the images (N, S, S, 3) the most alike of the others (M, S, S, 3).

    Returns:
        (N,) float32: correlation of the two at SIDE x SIDE pixels, from -1 to 1; (N,) int64: which of the others it is.
    """
    rows = _standardised(images)
    likeness, which = np.full(len(images), -1, np.float32), np.zeros(len(images), np.int64)
    for start in range(0, len(others), BLOCK):
        correlations = rows @ _standardised(others[start : start + BLOCK]).T  # (N, BLOCK)
        best = correlations.argmax(1)
        highest = correlations[np.arange(len(rows)), best]
        which = np.where(highest > likeness, start + best, which)
        likeness = np.maximum(highest, likeness)
    return likeness, which


def _standardised(images: UInt8) -> np.ndarray:
    """(N, 3 SIDE^2) float32, each of length 1 and of mean 0 in each channel; of one colour all over: zeros."""
    small = [np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BOX)) for image in images]
    pixels = np.stack(small).astype(np.float32)
    rows = (pixels - pixels.mean((1, 2), keepdims=True)).reshape(len(images), -1)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
