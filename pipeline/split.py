"""A split: the images of one part of a data set, their labels, and what is known of them."""

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

UInt8 = npt.NDArray[np.uint8]
Images = Any
"""n images in memory, (n, S, S, 3) uint8 RGB; or pipeline.packed.PackedPictures, of which np.asarray makes these."""
Int64 = npt.NDArray[np.int64]
Channels = tuple[float, ...]
SAMPLE = 5_000  # images that stand for all where each must be decoded
LEAST_DEVIATION = 4 / 255  # by which a channel of one level all over, or nearly, is divided


@dataclass(frozen=True, eq=False, kw_only=True)
class Split:
    """n images of S x S pixels; the arrays are not to be written to."""

    images: Images  # n of S x S
    labels: Int64  # (n,) indices into `classes`
    name: str  # "train", "test", "training" (what is left of "train") or "validation"
    classes: tuple[str, ...]
    files: tuple[str, ...] = ()  # where each image comes from, for a folder of pictures; else empty
    contents: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))
    """(n,) the first 8 bytes of the SHA-256 of each of these files; else empty."""
    disputed: tuple[int, ...] = ()  # the images about whose label annotators disagree, if known
    shuffled: bool = False  # the order says nothing of the class: any run of images is a fair sample
    known_statistics: tuple[Channels, Channels] | None = None  # which then need not be computed

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def side(self) -> int:
        """S, in pixels."""
        return self.images.shape[1]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """(n,) the files, or "test image 0" and so on."""
        return self.files or tuple(f"{self.name} image {i}" for i in range(len(self)))

    @property
    def sizes(self) -> Int64 | None:
        """(n, 2) height and width of packed pictures; None of pixels."""
        return None if isinstance(self.images, np.ndarray) else self.images.sizes

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the images' bytes and then the labels', in as few bytes each as the largest needs."""
        images = self.images if isinstance(self.images, np.ndarray) else np.array(self.images.digest, "S")
        return sha256(images, self.labels.astype(np.min_scalar_type(self.labels.max(initial=0))))

    @cached_property
    def statistics(self) -> tuple[Channels, Channels]:
        """Mean and standard deviation of each channel, in units of 0..1: the known or the own ones."""
        images = self.images if isinstance(self.images, np.ndarray) else self.images[self._spread(SAMPLE)]
        mean, deviation = self.known_statistics or channel_statistics(images)
        return mean, tuple(max(channel, LEAST_DEVIATION) for channel in deviation)

    @property
    def mean_colour(self) -> tuple[int, ...]:
        """The mean of each channel as a colour, 0..255."""
        return tuple(round(255 * channel) for channel in self.statistics[0])

    def sample(self, count: int) -> UInt8:
        """At most `count` images that stand for all: the first ones, or evenly spaced if not shuffled."""
        return np.asarray(self.images[self._spread(count)])

    def _spread(self, count: int) -> slice | Int64:
        if self.shuffled or len(self) <= count:
            return slice(count)
        return np.linspace(0, len(self) - 1, count).astype(np.int64)

    def take(self, indices: slice | Int64, name: str) -> "Split":
        """The images of these indices, in that order; a slice copies nothing."""
        old = np.arange(len(self))[indices]
        return replace(
            self,
            images=self.images[indices],
            labels=self.labels[indices],
            name=name,
            files=tuple(self.files[i] for i in old) if self.files else (),
            contents=self.contents[old] if len(self.contents) else self.contents,
            disputed=tuple(np.flatnonzero(np.isin(old, self.disputed)).tolist()),
        )


def channel_statistics(images: Images) -> tuple[Channels, Channels]:
    """Mean and standard deviation of each channel over all pixels, in units of 0..1, exactly."""
    counts = np.zeros((3, 256))
    for start in range(0, len(images), 1000):
        block = np.asarray(images[start : start + 1000])
        for channel in range(3):
            counts[channel] += np.bincount(block[..., channel].ravel(), minlength=256)
    levels = np.arange(256) / 255
    weights = counts / counts.sum(axis=1, keepdims=True)
    mean = weights @ levels
    deviation = np.sqrt((weights * (levels - mean[:, None]) ** 2).sum(axis=1))
    return tuple(mean.tolist()), tuple(deviation.tolist())


def sha256(*arrays: npt.NDArray[np.generic]) -> str:
    """SHA-256, in hexadecimal, of the bytes of arrays one after the other, in C order."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()
