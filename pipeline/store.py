"""The cache of decoded pictures: pixels, or JPEGs, by the content of their files, whatever their names.

One file holds the pictures of one folder at one size and fit, FOLDER-KEY.pictures in `pictures` of
pipeline.home: the pictures, one after the other; a list of what is known of each, JSON, with the SHA-256
of them all; a last line of LAST_LINE bytes with the list's length and SHA-256.
"""

import hashlib
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL

from ground.data import PACKED_FROM
from ground.files import open_regular, write_whole
from ground.terminal import tracked
from pipeline.home import cache_folders, zeros
from pipeline.packed import PackedPictures
from pipeline.pictures import Fit, formats
from pipeline.split import Images, UInt8

FORM = "pictures 6"  # of the cache; changes when the decoding does
BLOCK, PICTURES = 1 << 22, 256  # bytes, or pixels of pictures, that are read at once
KEPT = 3  # caches of a folder
LAST_LINE, MOST_LIST = 120, 1 << 30  # bytes


@dataclass(frozen=True)
class Record:
    """What is known of a file's content."""

    digest: str  # SHA-256
    fault: str  # why it cannot be decoded; then nothing follows
    width: int = 0
    height: int = 0
    notes: tuple[str, ...] = ()
    length: int = 0  # bytes of what is kept of it; then the height and the width of that
    shape: tuple[int, int] = (0, 0)


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


def write(path: Path, entries: Iterable[tuple[Record, bytes]]) -> None:
    """Write the pictures, of one that has a fault nothing, as they come, and the records.

    Who calls it holds the lock of the folder of caches: what another has left there unfinished is removed. So are all
    but the newest KEPT caches of the same folder of pictures.
    """
    for unfinished in path.parent.glob(".*.pictures.*.tmp"):
        unfinished.unlink()
    digest, records = hashlib.sha256(), list[Any]()

    def bodies() -> Iterator[bytes]:
        for record, body in entries:
            records.append(list(vars(record).values()))
            digest.update(body)
            yield body

    def end() -> Iterator[bytes]:
        known = json.dumps({"pictures": digest.hexdigest(), "records": records}).encode()
        yield known
        yield f"\n{FORM} {len(known)} {hashlib.sha256(known).hexdigest()}".rjust(LAST_LINE).encode()

    write_whole(path, bodies(), end(), durable=True)
    with suppress(FileNotFoundError):  # another process removes them too
        siblings = path.parent.glob(f"{path.name.partition('-')[0]}-*.pictures")
        for old in sorted(siblings, key=lambda file: file.lstat().st_mtime_ns, reverse=True)[KEPT:]:
            old.unlink()
            say(f"removed the oldest cache of this folder, {old}; the newest {KEPT} stay")


def read(
    path: Path, size: int, arrange: Callable[[Sequence[Record]], Sequence[int]]
) -> tuple[tuple[Record, ...], Images] | None:
    """What `write` wrote: the records, and n pictures; None where it is missing or damaged.

    Pixels are (n, size, size, 3), read and not mapped, so that nobody can cut them while they are used. `arrange` says
    which of the pictures without a fault, by their number, the n are.
    """
    damage = OSError, ValueError, KeyError, TypeError, RecursionError
    with suppress(*damage), ExitStack() as stack:
        file = stack.enter_context(open_regular(path))
        known, count = _known(file)
        records = tuple(_record(*values) for values in known["records"])
        stored = [record for record in records if not record.fault]
        lengths = np.array([record.length for record in stored], np.int64)
        packed, picture = size >= PACKED_FROM, size * size * 3
        if int(lengths.sum()) != count or not (packed or (lengths == picture).all()):
            return None
        rows = np.array(arrange(records), np.int64)  # (n,)
        with suppress(OSError):
            os.utime(path)  # it is the newest
        if packed:
            spans = np.stack([np.cumsum(lengths) - lengths, lengths], 1)  # (all, 2)
            sizes = np.array([record.shape for record in stored], np.int64).reshape(-1, 2)
            deque(tracked(_verified(file, count, BLOCK, known), f"checking {path}", count, len), maxlen=0)
            stack.pop_all()  # it stays open
            return records, PackedPictures(path, file, known["pictures"], spans[rows], sizes[rows], size)
        images = zeros(len(rows), size, size, 3)
        order = np.argsort(rows, kind="stable")
        rising, start = rows[order], 0
        for block in _verified(file, count, picture * PICTURES, known):
            pictures = block.reshape(-1, size, size, 3)
            first, end = np.searchsorted(rising, [start, start + len(pictures)])
            images[order[first:end]] = pictures[rising[first:end] - start]
            start += len(pictures)
        images.flags.writeable = False
        return records, images
    return None


def _record(
    digest: str, fault: str, width: int, height: int, notes: list[str], length: int, shape: list[int]
) -> Record:
    rows, columns = shape
    texts, numbers = (digest, fault, *notes), (width, height, length, rows, columns)
    if not all(type(text) is str for text in texts) or not all(type(n) is int and 0 <= n < 1 << 40 for n in numbers):
        raise ValueError("damaged")
    return Record(digest, fault, width, height, tuple(notes), length, (rows, columns))


def _known(file: BinaryIO) -> tuple[dict[str, Any], int]:
    """The verified list of a cache, and how many bytes of pictures are before it; there the file is open then.

    Raises ValueError or OSError where it is damaged or of another form.
    """
    end = file.seek(-LAST_LINE, os.SEEK_END)
    form, length, stated = file.read().decode().strip().rsplit(" ", 2)
    count = end - int(length)
    if form != FORM or not 0 <= int(length) <= MOST_LIST or count < 0:
        raise ValueError("of another form")
    file.seek(count)
    known = file.read(int(length))
    if hashlib.sha256(known).hexdigest() != stated:
        raise ValueError("damaged")
    file.seek(0)
    return dict(json.loads(known)), count


def _verified(file: BinaryIO, count: int, step: int, known: dict[str, Any]) -> Iterator[UInt8]:
    """The `count` bytes of pictures by `step` at most, each time in the same array.

    Raises ValueError where they are not what was written, at last.
    """
    buffer, digest = np.empty(min(step, count), np.uint8), hashlib.sha256()
    for start in range(0, count, max(1, step)):
        block = buffer[: count - start]
        if file.readinto(block) != len(block):  # type: ignore[attr-defined]
            raise ValueError("cut")
        digest.update(block)
        yield block
    if digest.hexdigest() != known["pictures"]:
        raise ValueError("damaged")


def say(text: str) -> None:
    """A line about a folder of pictures, on stderr; of several ranks the first one says it."""
    if os.environ.get("RANK", "0") == "0":
        print(f"pictures: {text}", file=sys.stderr, flush=True)
