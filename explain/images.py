"""Pictures of one's own; a file that cannot be used is named with the reason, the others go on.

`python gradcam.py --images FOLDER_OR_FILES` explains what the model says of them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ground.mistake import Mistake
from ground.terminal import tracked
from pipeline.pictures import Fit, as_trained, files_in, read_bytes, reason
from pipeline.split import UInt8

MOST_FILES = 1_000
TILE = 96


class Pictures(NamedTuple):
    """n pictures that could be read."""

    names: tuple[str, ...]
    inputs: Tensor  # (n, 3, S, S) uint8, channels_last, as training had them
    tiles: UInt8  # (n, 96, 96, 3), to look at
    skipped: tuple[str, ...]  # the other files, each with the reason


def read(paths: Sequence[str], side: int, fit: Fit, most: int = 0) -> Pictures:
    """Every picture that `find` finds, as squares of `side` pixels. Raises Mistake if there is none."""
    files = find(paths, most)
    names, inputs, tiles, skipped = [], [], [], []
    for path in tracked(files, "reading", len(files)):
        try:
            data = read_bytes(path)
            squares = as_trained(data, side, fit), as_trained(data, TILE, fit)
            inputs.append(squares[0])
            tiles.append(squares[1])
            names.append(str(path))
        except Exception as error:  # a decoder raises nearly anything on a damaged file
            skipped.append(f"{path}: {reason(error, path)}")
    if not names:
        raise Mistake(f"none of the {len(skipped)} files is a picture that can be read: " + "; ".join(skipped[:3]))
    channels_last = torch.from_numpy(np.stack(inputs)).permute(0, 3, 1, 2)
    return Pictures(tuple(names), channels_last, np.stack(tiles), tuple(skipped))


def find(paths: Sequence[str], most: int = 0) -> list[Path]:
    """The files among `paths` and in its folders, each once, those of a folder in the order of their names.

    Raises OSError where a path does not exist, Mistake for none or more than `most` (0: MOST_FILES).
    """
    files, most = dict[Path, None](), most or MOST_FILES
    for path in map(Path, paths):
        path.stat()  # says so where there is none
        for file in files_in(path) if path.is_dir() else [path]:
            files[file] = None
            if len(files) > most:
                break
    if not 1 <= len(files) <= most:
        count = f"more than {most:,} files" if files else "no files"
        raise Mistake(f"--images {' '.join(paths)} has {count}: name 1 to {most:,} pictures")
    return list(files)
