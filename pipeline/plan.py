"""What each training batch holds: a pure function of (seed, epoch, iteration, rank, world).

The pipeline only carries a plan out. So a run can stop anywhere and go on exactly, and all ranks together
see in a step what one process would see.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Self

import numpy as np

from ground.mistake import Mistake
from pipeline.split import Split

TRIES = 10  # regions of a picture


@dataclass(frozen=True)
class Draws:
    """One rank's part of a batch, of B images: what to do with each.

    The window is cut out of the padded image as `flip` turns it, then the square is filled; of a packed picture the
    window is what becomes the image, and then that is turned.
    """

    indices: np.ndarray  # (B,) int64: positions in the data set
    crop: np.ndarray  # (B, 4) int32: top, left, height and width of the window
    flip: np.ndarray  # (B,) int64: 1 mirrored left to right, 2 upside down, 3 both, 0 neither
    cutout: np.ndarray  # (B, 4) int32: top, left, bottom, right of the square, clipped; or empty


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The batches of every epoch. Raises Mistake where the images are too few or too small."""

    count: int  # images in the data set
    side: int  # of the stored images, in pixels
    sizes: np.ndarray | None = field(default=None, compare=False)
    """(count, 2) height and width of packed pictures, which are cut at random; None: images that are shifted."""
    batch_size: int  # images a step, over all ranks
    seed: int = 0  # changes every draw
    translate: int = 0  # largest shift in pixels; the padding by reflection is as wide
    crop_area: float = 1.0  # least share of a packed picture's area that is cut out
    flip: str = "none"  # or "random"; "alternating": each image in every second epoch; "both": upside down too
    cutout: int = 0  # side in pixels of a square to fill, its centre uniform over the image
    shuffle: bool = True  # a new permutation each epoch; else the data set's order
    drop_last: bool = True  # leave out the last, smaller batch of an epoch
    rank: int = 0  # this process, of `world` many: it takes every world-th image of each batch
    world: int = 1
    whole: bool = False  # it takes every world-th batch instead, as one process would see it

    @classmethod
    def of(cls, split: Split, **settings: Any) -> Self:
        """A plan for the images of a split."""
        return cls(count=len(split), side=split.side, sizes=split.sizes, **settings)

    def __post_init__(self) -> None:
        if not 1 <= self.batch_size <= self.count:
            images = f"{self.count}, the number of images in the data set"
            raise Mistake(f"--batch-size is {self.batch_size}: it must be 1 to {images}")
        for name, most in (("translate", self.side // 2), ("cutout", self.side)):
            if not 0 <= (value := getattr(self, name)) <= most:
                raise Mistake(f"--{name} is {value}: it must be 0 to {most} for images of {self.side} pixels")
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank {self.rank} of {self.world} cannot be")
        if self.batch_size < self.world and not self.whole:
            raise Mistake(f"--batch-size is {self.batch_size}: it must be {self.world}, one a process, or more")
        if self.flip not in ("random", "alternating", "both", "none"):
            raise ValueError(f"flip is {self.flip!r}: it must be random, alternating, both or none")

    @cached_property
    def steps_per_epoch(self) -> int:
        """This rank's batches in an epoch."""
        full, rest = divmod(self.count, self.batch_size)
        steps = full + (rest > 0 and not self.drop_last)
        return len(range(self.rank, steps, self.world)) if self.whole else steps

    @property
    def share(self) -> int:
        """Images of this rank in a batch that is not an epoch's last, smaller one."""
        return self.batch_size if self.whole else len(range(self.rank, self.batch_size, self.world))

    def rows(self) -> np.ndarray:
        """(n,) int64: this rank's images of an epoch that is not shuffled, in their order."""
        batches = [self.draws(0, i).indices for i in range(self.steps_per_epoch)]
        return np.concatenate([np.zeros(0, np.int64), *batches])

    def draws(self, epoch: int, iteration: int) -> Draws:
        """This rank's part of batch `iteration` of `epoch`, both from 0; if `whole`, its own such batch."""
        share = slice(self.rank, None, self.world)  # 2 of 3 ranks' images of a batch: 0 1 [2] 3 4 [5] 6 7 [8]
        if self.whole:
            iteration, share = iteration * self.world + self.rank, slice(None)
        start = iteration * self.batch_size
        indices = _order(self, epoch)[start : start + self.batch_size]
        rng = np.random.default_rng([self.seed, epoch, iteration])
        if self.sizes is None:
            shift = rng.integers(0, 2 * self.translate + 1, (len(indices), 2), dtype=np.int32)
            crop = np.concatenate([shift, np.full_like(shift, self.side)], 1)
        else:
            crop = random_regions(rng, self.sizes[indices], self.crop_area)
        centre = rng.integers(0, self.side, (len(indices), 2), dtype=np.int32)
        if self.flip == "random":
            flip = rng.integers(0, 2, len(indices), dtype=np.int8)
        elif self.flip == "both":
            flip = rng.integers(0, 4, len(indices), dtype=np.int8)
        elif self.flip == "alternating":
            flip = _first_flips(self.seed, self.count)[indices] ^ (epoch & 1)
        else:
            flip = np.zeros(len(indices), np.int8)
        top_left = centre - self.cutout // 2
        square = np.concatenate([top_left, top_left + self.cutout], 1).clip(0, self.side)  # (B, 4)
        return Draws(indices[share], crop[share], flip[share].astype(np.int64), square[share])


def random_regions(rng: np.random.Generator, sizes: np.ndarray, least_area: float) -> np.ndarray:
    """(B, 4) int32: top, left, height and width of a region of each picture, of sizes (B, 2): height and width.

    As torchvision's RandomResizedCrop: of TRIES regions with an area of `least_area` to 1 of the picture's and sides of
    3:4 to 4:3, both drawn evenly (the second by its logarithm), the first that fits in; else the largest such region in
    the middle.
    """
    count, ratio = len(sizes), math.log(4 / 3)
    areas = sizes.prod(1)[:, None] * rng.uniform(least_area, 1, (count, TRIES))
    aspects = np.exp(rng.uniform(-ratio, ratio, (count, TRIES)))  # width to height
    tried = np.rint(np.sqrt(np.stack([areas / aspects, areas * aspects], 2)))  # (B, TRIES, 2) height, width
    fits = ((tried >= 1) & (tried <= sizes[:, None])).all(2)
    first = fits.argmax(1)
    # Where none fits: the sides cut so that neither is more than 4/3 of the other.
    largest = np.minimum(sizes, np.rint(sizes[:, ::-1] * 4 / 3)).clip(1)
    region = np.where(fits.any(1)[:, None], tried[np.arange(count), first], largest).astype(np.int32)  # (B, 2)
    room = sizes - region
    corner = np.where(fits.any(1)[:, None], rng.integers(0, room + 1), room // 2).astype(np.int32)
    return np.concatenate([corner, region], 1)


@lru_cache(maxsize=4)
def _order(plan: Plan, epoch: int) -> np.ndarray:
    if not plan.shuffle:
        return np.arange(plan.count)
    return np.random.default_rng([plan.seed, epoch]).permutation(plan.count)


@lru_cache(maxsize=4)
def _first_flips(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed]).integers(0, 2, count, dtype=np.int8)
