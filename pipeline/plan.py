"""What each training batch holds: a pure function of (seed, epoch, iteration, rank, world).

The pipeline only carries a plan out. So a run can stop anywhere and go on exactly, and all ranks together
see in a step what one process would see.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from ground.mistake import Mistake


@dataclass(frozen=True)
class Draws:
    """One rank's part of a batch, of B images: what to do with each.

    The padded image is mirrored if `flip`, then the window is cut out, then the square filled.
    """

    indices: np.ndarray  # (B,) int64: positions in the data set
    crop: np.ndarray  # (B, 2) int32: top and left of the window, 0 .. 2 * translate
    flip: np.ndarray  # (B,) bool: mirrored left to right
    cutout: np.ndarray  # (B, 4) int32: top, left, bottom, right of the square, clipped; or empty


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The batches of every epoch. Raises Mistake where the images are too few or too small."""

    count: int  # images in the data set
    side: int  # of the stored images, in pixels
    batch_size: int  # images a step, over all ranks
    seed: int = 0  # changes every draw
    translate: int = 0  # largest shift in pixels; the padding by reflection is as wide
    flip: str = "none"  # or "random", or "alternating": each image in every second epoch
    cutout: int = 0  # side in pixels of a square to fill, its centre uniform over the image
    shuffle: bool = True  # a new permutation each epoch; else the data set's order
    drop_last: bool = True  # leave out the last, smaller batch of an epoch
    rank: int = 0  # this process, of `world` many: it takes every world-th image of each batch
    world: int = 1
    whole: bool = False  # it takes every world-th batch instead, as one process would see it

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
        if self.flip not in ("random", "alternating", "none"):
            raise ValueError(f"flip is {self.flip!r}: it must be random, alternating or none")

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

    def draws(self, epoch: int, iteration: int) -> Draws:
        """This rank's part of batch `iteration` of `epoch`, both from 0; if `whole`, its own such batch."""
        share = slice(self.rank, None, self.world)  # 2 of 3 ranks' images of a batch: 0 1 [2] 3 4 [5] 6 7 [8]
        if self.whole:
            iteration, share = iteration * self.world + self.rank, slice(None)
        start = iteration * self.batch_size
        indices = _order(self, epoch)[start : start + self.batch_size]
        rng = np.random.default_rng([self.seed, epoch, iteration])
        crop = rng.integers(0, 2 * self.translate + 1, (len(indices), 2), dtype=np.int32)
        centre = rng.integers(0, self.side, (len(indices), 2), dtype=np.int32)
        if self.flip == "random":
            flip = rng.integers(0, 2, len(indices), dtype=np.int8).astype(bool)
        elif self.flip == "alternating":
            flip = _first_flips(self.seed, self.count)[indices] ^ bool(epoch & 1)
        else:
            flip = np.zeros(len(indices), bool)
        top_left = centre - self.cutout // 2
        square = np.concatenate([top_left, top_left + self.cutout], 1).clip(0, self.side)  # (B, 4)
        return Draws(indices[share], crop[share], flip[share], square[share])


@lru_cache(maxsize=4)
def _order(plan: Plan, epoch: int) -> np.ndarray:
    if not plan.shuffle:
        return np.arange(plan.count)
    return np.random.default_rng([plan.seed, epoch]).permutation(plan.count)


@lru_cache(maxsize=4)
def _first_flips(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed]).integers(0, 2, count, dtype=np.int8).astype(bool)
