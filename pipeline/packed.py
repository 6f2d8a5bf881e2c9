"""Pictures of PACKED_FROM pixels and more: JPEGs in one file, of which only what is looked at is decoded.

    squares = np.asarray(packed[:100])     # (100, side, side, 3): their middles, to evaluate

All were written by this program (pipeline.pictures), so that no decoder ever meets a stranger's file. Training cuts
random regions out of them (pipeline.dali). Evaluation decodes by Pillow on the CPU, wherever the model is: what a
checkpoint says of a picture does not depend on the decoder of a GPU, and it is what `predict` gets.
"""

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from pipeline.contents import in_order
from pipeline.pictures import square
from pipeline.plan import Plan
from pipeline.split import Images, Int64, UInt8, sha256


@dataclass(frozen=True, eq=False)
class PackedPictures:
    """n pictures in a file; an index by a slice or an array chooses some and reads nothing.

    As an array they are (n, side, side, 3) uint8 RGB, which decodes them.
    """

    path: Path
    file: BinaryIO  # of it, open
    store: str  # SHA-256 of what is in the file
    spans: Int64  # (n, 2) where a JPEG begins, and its length, in bytes
    sizes: Int64  # (n, 2) height and width in pixels
    side: int

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, rows: slice | Int64) -> "PackedPictures":
        return replace(self, spans=self.spans[rows], sizes=self.sizes[rows])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> UInt8:
        return self.squares(self.side)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self), self.side, self.side, 3

    @property
    def digest(self) -> str:
        """SHA-256 of what decides their pixels."""
        return sha256(np.frombuffer(self.store.encode(), np.uint8), self.spans, np.array([self.side]))

    def jpeg(self, row: int) -> bytes:
        """The file of one. Raises OSError."""
        start, length = self.spans[row].tolist()
        data = os.pread(self.file.fileno(), length, start)
        if len(data) < length:
            raise OSError(errno.EIO, "it was cut while it was read", str(self.path))
        return data

    def square(self, row: int, side: int) -> UInt8:
        """The middle of one, (side, side, 3)."""
        return square(self.jpeg(row), side)

    def squares(self, side: int) -> UInt8:
        """The middles of all, (n, side, side, 3)."""
        images = np.empty((len(self), side, side, 3), np.uint8)
        for row, image in enumerate(in_order(lambda row: self.square(row, side), range(len(self)))):
            images[row] = image
        return images


def tiles(images: Images, most: int) -> UInt8:
    """Images to look at: (n, S, S, 3) as they are, packed ones of `most` pixels a side at most."""
    return images.squares(min(images.side, most)) if isinstance(images, PackedPictures) else images


class SquareLoader:
    """Batches of packed pictures in the plan's order; as pipeline.dali.DaliLoader, but decoded by Pillow."""

    def __init__(
        self, pictures: PackedPictures, labels: Int64, plan: Plan, device: torch.device, side: Callable[[int], int]
    ) -> None:
        self.pictures, self.labels, self.plan, self.device, self.side = pictures, labels, plan, device, side

    def __len__(self) -> int:
        return self.plan.steps_per_epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.epoch(0)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (B, 3, R, R) uint8 channels_last and labels (B,) int64; -1 of those that fill up the last batch."""
        side, size = self.side(epoch), self.plan.batch_size
        batches = [self.plan.draws(epoch, i).indices for i in range(start, len(self))]
        rows = np.concatenate(batches).tolist() if batches else []
        squares = in_order(lambda row: self.pictures.square(row, side), rows)
        for indices in batches:
            images, labels = np.zeros((size, side, side, 3), np.uint8), np.full(size, -1, np.int64)
            for place, image in zip(range(len(indices)), squares, strict=False):
                images[place] = image
            labels[: len(indices)] = self.labels[indices]
            nchw = torch.from_numpy(images).permute(0, 3, 1, 2)
            yield nchw.to(self.device), torch.from_numpy(labels).to(self.device)
