"""Pictures of one's own, read safely.

    pictures = read(["holiday", "cat.jpg"], side=32)

A file that cannot be used is named with the reason, and the others go on. `python gradcam.py --images FOLDER_OR_FILES`
explains what the model says of them.
"""

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ground.mistake import Mistake
from pipeline.pictures import Fit, decode, files_in, reason
from pipeline.split import UInt8

MOST_FILES = 1_000
TILE = 96


@dataclass(frozen=True, eq=False)
class Pictures:
    """n pictures that could be read."""

    names: tuple[str, ...]
    inputs: Tensor
    """(n, 3, S, S) uint8, channels_last, as training had them."""
    tiles: UInt8
    """(n, 96, 96, 3), to look at."""
    skipped: tuple[str, ...]
    """The other files, each with the reason."""


def read(paths: Sequence[str], side: int, fit: Fit, on_file: Callable[[], None] = lambda: None) -> Pictures:
    """Every picture among the files, and in the folders and theirs, hidden ones apart.

    Args:
        side: S, of the squares that training had, in pixels.
        fit: how a picture becomes a square, as in training.
        on_file: called after each file.

    Raises:
        OSError: a path does not exist.
        ValueError: more than MOST_FILES files, or none of them can be used.
    """
    names, inputs, tiles, skipped = [], [], [], []
    for path in find(paths):
        try:
            squares = decode(path, side, fit), decode(path, TILE, fit)
            inputs.append(squares[0])
            tiles.append(squares[1])
            names.append(str(path))
        except Exception as error:  # a decoder raises nearly anything on a damaged file
            skipped.append(f"{path}: {reason(error, path)}")
        on_file()
    if not names:
        raise Mistake(f"none of the {len(skipped)} files is a picture that can be read: " + "; ".join(skipped[:3]))
    channels_last = torch.from_numpy(np.stack(inputs)).permute(0, 3, 1, 2)
    return Pictures(tuple(names), channels_last, np.stack(tiles), tuple(skipped))


def find(paths: Sequence[str]) -> list[Path]:
    """The files among `paths` and in its folders, each once, those of a folder in the order of their names.

    Raises:
        OSError: a path does not exist.
        ValueError: there are none, or more than MOST_FILES.
    """

    def files() -> Iterator[Path]:
        for path in map(Path, paths):
            if not path.exists():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            yield from files_in(path) if path.is_dir() else [path]

    found: dict[Path, None] = {}
    for path in files():
        found[path] = None
        if len(found) > MOST_FILES:
            break
    if not 1 <= len(found) <= MOST_FILES:
        count = "no files" if not found else f"more than {MOST_FILES:,} files"
        raise Mistake(f"--images {' '.join(paths)} has {count}: name 1 to {MOST_FILES:,} pictures")
    return list(found)
