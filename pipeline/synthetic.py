"""Data without a data set: generated images, to try the machinery and for tests."""

import numpy as np

from pipeline.cifar10.facts import CLASSES, KNOWN
from pipeline.split import Split

BLOCK = 1024  # images that are made at a time, which takes 60 MB


def load(part: str, train: int, test: int) -> Split:
    """A part of a generated data set of so many images each."""
    return generated(train, part) if part == "train" else generated(test, part, seed=1)


def generated(count: int, name: str = "generated", seed: int = 0) -> Split:
    """Easy images in CIFAR-10's form: in noise a coloured bar each, its colour and angle the class."""
    rng = np.random.default_rng([seed, count])
    labels = rng.integers(0, len(CLASSES), count, dtype=np.uint8)
    angles = labels * np.pi / len(CLASSES)
    centres = rng.integers(-5, 6, (2, count, 1, 1))
    images = rng.integers(0, 100, (count, 32, 32, 3), dtype=np.uint8) // 2
    for start in range(0, count, BLOCK):
        angle = angles[start : start + BLOCK]
        y, x = np.mgrid[-16:16, -16:16][:, None] - centres[:, start : start + BLOCK]
        bar = np.abs(x * np.cos(angle)[:, None, None] + y * np.sin(angle)[:, None, None]) < 4
        colour = np.stack([np.cos(2 * angle + shift) for shift in (0, 2, 4)], 1) * 60 + 128
        images[start : start + BLOCK] += np.where(bar[..., None], colour[:, None, None], 40).astype(np.uint8)
    return Split(images=images, labels=labels.astype(np.int64), name=name, **KNOWN)
