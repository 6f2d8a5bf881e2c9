"""Pictures of one's own, read safely.

    pictures = read(["holiday", "cat.jpg"], side=32)

A file that cannot be used is named with the reason, and the others go on. `python gradcam.py --images FOLDER_OR_FILES`
explains what the model says of them.
"""

import errno
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from engine.model import resize
from pipeline.split import UInt8

# Pictures alone: Pillow would start Ghostscript for an EPS.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MOST_FILES = 1_000
MOST_PIXELS = 64_000_000  # 192 MB as RGB
TILE = 96
ENOUGH = 8 * TILE  # pixels of the shorter side; larger pictures are first averaged in whole blocks


@dataclass(frozen=True, eq=False)
class Pictures:
    """n pictures that could be read."""

    names: tuple[str, ...]
    inputs: Tensor
    """(n, 3, R, R) uint8, channels_last, as the model takes them."""
    tiles: UInt8
    """(n, 96, 96, 3), to look at."""
    skipped: tuple[str, ...]
    """The other files, each with the reason."""


def read(paths: Sequence[str], side: int, on_file: Callable[[], None] = lambda: None) -> Pictures:
    """Every picture among the files, and in the folders and theirs, hidden ones apart; squeezed into squares.

    Args:
        side: R, of the squares for the model in pixels.
        on_file: called after each file.

    Raises:
        OSError: a path does not exist.
        ValueError: more than MOST_FILES files, or none of them can be used.
    """
    names, inputs, tiles, skipped = [], [], [], []
    for path in find(paths):
        try:
            pixels = torch.from_numpy(_pixels(path)).permute(2, 0, 1)[None]
            inputs.append(resize(pixels, side))
            tiles.append(resize(pixels, TILE)[0].permute(1, 2, 0).numpy())
            names.append(str(path))
        except Exception as error:  # a decoder raises nearly anything on a damaged file
            reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
            skipped.append(f"{path}: {reason.removesuffix(f' {str(path)!r}')}")
        on_file()
    if not names:
        raise ValueError(f"none of the {len(skipped)} files is a picture that can be read: " + "; ".join(skipped[:3]))
    stacked = torch.cat(inputs).contiguous(memory_format=torch.channels_last)
    return Pictures(tuple(names), stacked, np.stack(tiles), tuple(skipped))


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
            if not path.is_dir():
                yield path
                continue
            for folder, inner, names in os.walk(path):
                inner[:] = sorted(name for name in inner if not name.startswith("."))
                yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))

    found = list(dict.fromkeys(islice(files(), MOST_FILES + 1)))
    if not 1 <= len(found) <= MOST_FILES:
        count = "no files" if not found else f"more than {MOST_FILES:,} files"
        raise ValueError(f"--images {' '.join(paths)} has {count}: name 1 to {MOST_FILES:,} pictures")
    return found


def _pixels(path: Path) -> UInt8:
    """(height, width, 3), turned as its Exif says, on white where it is transparent; its first frame."""
    if not path.is_file():
        raise ValueError("not a regular file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its size is checked below, before anything is decoded
        image: Image.Image = Image.open(path, formats=FORMATS)
    with image:
        width, height = image.size
        if width * height > MOST_PIXELS:
            raise ValueError(f"{width:,} x {height:,} pixels are more than {MOST_PIXELS / 1e6:.0f} million")
        image.draft("RGB", (2 * ENOUGH, 2 * ENOUGH))
        turned = ImageOps.exif_transpose(image)
        if turned.mode.startswith("I"):  # 16 bits a pixel
            turned = Image.fromarray((np.asarray(turned).clip(0, 65535) // 257).astype(np.uint8))
        if turned.has_transparency_data:
            turned = turned.convert("RGBA")
            turned = Image.alpha_composite(Image.new("RGBA", turned.size, "white"), turned)
        turned = turned.convert("RGB")
        blocks = min(turned.size) // ENOUGH
        return np.array(turned.reduce(blocks) if blocks > 1 else turned)
