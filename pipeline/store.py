"""The cache of decoded pictures: pixels by the content of their files, whatever their names.

One file holds the pictures of one folder at one size and fit, FOLDER-KEY.pictures in `pictures` of
pipeline.home: a first line of bounded length with the length and the SHA-256 of the head; the head, JSON,
with what is known of each picture and the SHA-256 of the pixels; the pixels.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL

from ground.files import open_regular, write_whole
from pipeline.home import cache_folders, zeros
from pipeline.pictures import Fit, formats
from pipeline.split import UInt8

FORM = "pictures 5"  # of the cache; changes when the decoding does
BLOCK = 256  # pictures that are read or written at once
KEPT = 3  # caches of a folder
FIRST_LINE, MOST_HEAD = 200, 1 << 30  # bytes


@dataclass(frozen=True)
class Record:
    """What is known of a file's content."""

    digest: str  # SHA-256
    fault: str  # why it cannot be decoded; then nothing follows
    width: int = 0
    height: int = 0
    notes: tuple[str, ...] = ()


def cache_path(root: Path, digests: Iterable[str], size: int, fit: Fit) -> Path:
    """The cache of these contents, which another folder may have made; else where it is to be."""
    state = f"{FORM} {PIL.__version__} {' '.join(formats())} {size} {fit} {' '.join(digests)}"
    key = hashlib.sha256(state.encode()).hexdigest()[:32]
    path = _path(root, f"-{key}.pictures")
    return path if path.exists() else min(path.parent.glob(f"*-{key}.pictures"), default=path)


def index_path(root: Path) -> Path:
    """Where the digests of a folder's files are kept: there once it has been read."""
    return _path(root, ".digests")


def _path(root: Path, end: str) -> Path:
    """A file that belongs to a folder, in that of the caches, which is made where it is missing."""
    home = cache_folders()[-1] / "pictures"
    home.mkdir(parents=True, exist_ok=True)
    return home / (hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:16] + end)


def write(path: Path, records: Sequence[Record], images: UInt8) -> None:
    """Write the records and, of images (len(records), size, size, 3), the pixels of those without a fault.

    All but the newest KEPT caches of the same folder are removed.
    """
    rows = [i for i, record in enumerate(records) if not record.fault]
    blocks = [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(images[block])
    values = [[r.digest, r.fault, r.width, r.height, r.notes] for r in records]
    head = json.dumps({"pixels": digest.hexdigest(), "records": values}).encode()
    first = f"{FORM} {len(head)} {hashlib.sha256(head).hexdigest()}\n".encode()
    write_whole(path, first, head, (images[block] for block in blocks), durable=True)
    with suppress(FileNotFoundError):  # another process removes them too
        siblings = path.parent.glob(f"{path.name.partition('-')[0]}-*.pictures")
        for old in sorted(siblings, key=lambda file: file.lstat().st_mtime_ns, reverse=True)[KEPT:]:
            old.unlink()
            say(f"removed the oldest cache of this folder, {old}; the newest {KEPT} stay")


def read(
    path: Path, size: int, arrange: Callable[[Sequence[Record]], Sequence[int]]
) -> tuple[tuple[Record, ...], UInt8] | None:
    """What `write` wrote: the records, and pixels (n, size, size, 3); None where it is missing or damaged.

    The pixels are read and not mapped, so that nobody can cut them while they are used. `arrange` says which
    of the pictures without a fault, by their number, the n are.
    """
    damage = OSError, ValueError, KeyError, TypeError, RecursionError
    with suppress(*damage), open_regular(path) as file:
        head = _head(file)
        records = tuple(_record(*values) for values in head["records"])
        stored = sum(not record.fault for record in records)
        if os.fstat(file.fileno()).st_size - file.tell() != stored * size * size * 3:
            return None
        rows = np.array(arrange(records), np.int64)  # (n,)
        order = np.argsort(rows, kind="stable")
        rising, images = rows[order], zeros(len(rows), size, size, 3)
        buffer, digest = np.empty((BLOCK, size, size, 3), np.uint8), hashlib.sha256()
        for start in range(0, stored, BLOCK):
            block = buffer[: min(BLOCK, stored - start)]
            if file.readinto(block.reshape(-1)) != block.nbytes:  # type: ignore[attr-defined]
                return None
            digest.update(block)
            first, end = np.searchsorted(rising, [start, start + len(block)])
            images[order[first:end]] = block[rising[first:end] - start]
        if digest.hexdigest() == head["pixels"]:
            with suppress(OSError):
                os.utime(path)  # it is the newest
            images.flags.writeable = False
            return records, images
    return None


def _record(digest: str, fault: str, width: int, height: int, notes: list[str]) -> Record:
    texts, numbers = (digest, fault, *notes), (width, height)
    if not all(type(text) is str for text in texts) or not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError("damaged")
    return Record(digest, fault, width, height, tuple(notes))


def _head(file: BinaryIO) -> dict[str, Any]:
    """The verified head of a cache. Raises ValueError where it is damaged or of another form."""
    form, length, stated = file.readline(FIRST_LINE).decode().rstrip("\n").rsplit(" ", 2)
    if form != FORM or int(length) > MOST_HEAD:
        raise ValueError("of another form")
    head = file.read(int(length))
    if hashlib.sha256(head).hexdigest() != stated:
        raise ValueError("damaged")
    return dict(json.loads(head))


def say(text: str) -> None:
    """A line about a folder of pictures, on stderr; of several ranks the first one says it."""
    if os.environ.get("RANK", "0") == "0":
        print(f"pictures: {text}", file=sys.stderr, flush=True)
