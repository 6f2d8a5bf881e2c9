"""The cache of decoded pictures: one file for each state of a folder, size and fit, in `pictures` of pipeline.home.

It is named FOLDER-KEY.pictures. The newest KEPT files of a folder stay.
"""

import contextlib
import hashlib
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import PIL

from ground.files import write_whole
from pipeline.find import Source, base
from pipeline.home import cache_folders
from pipeline.memory import fits
from pipeline.pictures import Fit
from pipeline.split import UInt8, sha256

FORM = 4  # of the cache; changes when the decoding does
BLOCK = 256  # pictures that are written one after the other
KEPT = 3  # caches of a folder


@dataclass(frozen=True)
class Picture:
    """A file that could be decoded."""

    path: str
    """Relative to the folder, or the CSV file's; bytes that are no UTF-8 as surrogates."""
    label: int
    part: str
    digest: str
    """SHA-256 of the file."""
    width: int
    """In pixels, as stored; and the height."""
    height: int


@dataclass(frozen=True)
class Listing:
    """What a folder holds."""

    classes: tuple[str, ...]
    pictures: tuple[Picture, ...]
    """Those of one part after those of another."""
    left_out: tuple[str, ...]
    """The other files, each with the reason."""
    copies: int
    """Pictures that are byte for byte another one of the same class."""

    def part_slice(self, part: str) -> slice:
        """Where the pictures of a part are."""
        rows = [i for i, picture in enumerate(self.pictures) if picture.part == part]
        return slice(rows[0], rows[-1] + 1) if rows else slice(0)


def cache_path(root: Path, classes: tuple[str, ...], files: Sequence[Source], size: int, fit: Fit) -> Path:
    """The cache of this state of a folder: the classes, the files' names, lengths, times and rights, the decoding."""
    digest = hashlib.sha256(f"{FORM} {PIL.__version__} {size} {fit} {classes}".encode())
    for file in files:
        with contextlib.suppress(OSError):  # a broken link; it is named when it is read
            status = file.path.stat()
            readable = os.access(file.path, os.R_OK, effective_ids=True)
            digest.update(f"{status.st_size} {status.st_mtime_ns} {readable} ".encode())
        digest.update(f"{file.part} {file.label} ".encode())
        digest.update(os.fsencode(os.path.relpath(file.path, base(root))) + b"\0")
    folder = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:16]
    return cache_folders()[-1] / "pictures" / f"{folder}-{digest.hexdigest()[:32]}.pictures"


def remove_old(path: Path) -> None:
    """Remove all but the newest KEPT caches of the folder that `path` is one of, and say so."""
    with contextlib.suppress(FileNotFoundError):  # another process removes them too
        siblings = path.parent.glob(f"{path.name.partition('-')[0]}-*.pictures")
        for old in sorted(siblings, key=lambda file: file.stat().st_mtime_ns, reverse=True)[KEPT:]:
            old.unlink()
            say(f"removed the oldest cache of this folder, {old}; the newest {KEPT} stay")


def write(path: Path, listing: Listing, images: UInt8, rows: Sequence[int]) -> None:
    """A line, the SHA-256 of the rest and the listing as JSON, then the pixels of these rows of the images."""
    head = json.dumps(asdict(listing)).encode()
    digest = hashlib.sha256(head)
    for block in _blocks(images, rows):
        digest.update(block)
    write_whole(path, f"{digest.hexdigest()} ".encode(), head, b"\n", _blocks(images, rows), durable=True)


def _blocks(images: UInt8, rows: Sequence[int]) -> Iterator[UInt8]:
    return (images[rows[start : start + BLOCK]] for start in range(0, len(rows), BLOCK))


def read(path: Path, size: int) -> tuple[Listing, UInt8] | None:
    """What `write` wrote; None where it is missing or damaged. What memory has no room for stays in the file."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError), open(path, "rb") as file:
        stated, _, line = file.readline().removesuffix(b"\n").partition(b" ")
        head = json.loads(line)
        pictures = tuple(Picture(**picture) for picture in head["pictures"])
        shape = (len(pictures), size, size, 3)
        images: UInt8
        if fits(math.prod(shape)):
            images = np.fromfile(file, np.uint8).reshape(shape)
            images.flags.writeable = False
        else:
            images = np.memmap(file, np.uint8, "r", file.tell(), shape)
        if sha256(np.frombuffer(line, np.uint8), images) == stated.decode():
            return Listing(tuple(head["classes"]), pictures, tuple(head["left_out"]), head["copies"]), images
    return None


def say(text: str) -> None:
    """A line about a folder of pictures, on stderr."""
    print(f"pictures: {text}", file=sys.stderr, flush=True)
