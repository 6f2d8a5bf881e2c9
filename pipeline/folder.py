"""Pictures of one's own as a data set: a folder with one sub-folder a class, or a table of files.

    python -m pipeline --data holiday      # what is in it, and what is left out and why

pipeline.find says which files there are, pipeline.parts which of them are for what, pipeline.store keeps the pixels.
Each file is decoded once, by itself, to S x S pixels, into a cache outside the folder; nothing is ever written into the
folder. A file that cannot be read is left out and named, and the others go on.
"""

import contextlib
import errno
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path

import numpy as np

from ground.files import lock
from ground.mistake import Mistake
from ground.terminal import printable, tracked
from pipeline import store
from pipeline.find import PART_NAMES, Source, base, sources
from pipeline.memory import zeros
from pipeline.parts import decide_parts
from pipeline.pictures import Fit, decode, dimensions, reason
from pipeline.split import Split, UInt8
from pipeline.store import Listing, Picture, say

SHOWN = 3  # files left out that are named on the way; `python -m pipeline` names all
USUAL_SIZES = (32, 64)  # pixels: for pictures whose shorter side is below 48, and for others
SAMPLE = 200  # pictures that are looked at for their sizes
BLOCK = 256  # pictures that are decoded one after the other


def loader(root: Path, size: int, fit: Fit) -> tuple[Callable[[str], Split], Callable[[], bool]]:
    """What loads a part of a folder (see `part_of`), and what says whether it has one for validation.

    All is of one reading of the cache. Both raise as `prepare` does.
    """
    prepared = cache(partial(prepare, root, size, fit))

    def has_validation() -> bool:
        return any(picture.part == "validation" for picture in prepared()[0].pictures)

    return lambda part: part_of(root, *prepared(), part), has_validation


def part_of(root: Path, listing: Listing, images: UInt8, part: str) -> Split:
    """The "train", "validation" or "test" pictures of a folder; for "test", without any, those for validation.

    Raises:
        Mistake: there are none, or a class has none to train on.
    """
    counts = Counter(picture.part for picture in listing.pictures)
    if part == "test" and not counts[part]:
        part = "validation"
    rows = listing.part_slice(part)
    pictures = listing.pictures[rows]
    if not pictures:
        raise Mistake(
            f"--data is {root}: it has no pictures for {part}: add some, or train with --validate; without parts a "
            "class of two or more gives one"
        )
    labels = {picture.label for picture in pictures}
    missing = [name for label, name in enumerate(listing.classes) if label not in labels]
    if part == "train" and missing:
        raise Mistake(f"--data is {root}: class {missing[0]} has no picture to train on")
    return Split(
        images=images[rows],
        labels=np.array([picture.label for picture in pictures], np.int64),
        name=part,
        classes=listing.classes,
        files=tuple(str(base(root) / picture.path) for picture in pictures),
    )


def prepare(root: Path, size: int, fit: Fit) -> tuple[Listing, UInt8]:
    """What the folder holds, and its pictures (n, size, size, 3), from the cache, which is made first if need be.

    A size of 0 stands for the usual one: see `usual_size`.

    Processes that prepare the same folder at the same time take turns, and all but the first find the work done.

    Raises:
        Mistake: it has no classes, or fewer than two with pictures.
        OSError: it cannot be read, or the cache cannot be written.
    """
    classes, files = sources(root)
    size = size or usual_size(files)
    path = store.cache_path(root, classes, files, size, fit)
    path.parent.mkdir(parents=True, exist_ok=True)
    prepared = store.read(path, size)
    if prepared is None:
        descriptor = lock(path.parent / "lock", lambda holder: say(f"waiting for process {holder}, which is decoding"))
        try:
            prepared = store.read(path, size)
            if prepared is None:
                store.write(path, *decode_all(root, classes, files, size, fit))
                store.remove_old(path)
                prepared = store.read(path, size)
                if prepared is None:
                    raise OSError(errno.EIO, "damaged just after it was written; check the disk", str(path))
        finally:
            os.close(descriptor)
        tell(prepared[0])
    return prepared


def check_outside(data: str, place: str, flag: str) -> None:
    """Raises Mistake where the folder `place`, named by `flag`, is to lie in the pictures': it would be a class."""
    if Path(os.path.realpath(place)).is_relative_to(os.path.realpath(os.path.expanduser(data))):
        raise Mistake(
            f"{flag} is {place}: it lies in {data}, where it would be a class of its own: name a folder elsewhere"
        )


def usual_size(files: Sequence[Source]) -> int:
    """Side in pixels for these pictures: 64, or 32 where half of them, of some looked at, are smaller than 48."""
    shorter = []
    for file in files[:: max(1, len(files) // SAMPLE)]:
        with contextlib.suppress(Exception):  # it is named when it is decoded
            shorter.append(min(dimensions(file.path)))
    small, usual = USUAL_SIZES
    return small if shorter and np.median(shorter) < (small + usual) / 2 else usual


def decode_all(
    root: Path, classes: tuple[str, ...], files: Sequence[Source], size: int, fit: Fit
) -> tuple[Listing, UInt8, list[int]]:
    """Every file decoded, on all cores; then sorted into parts, without copies that would straddle two of them.

    Returns:
        What there is; the pictures (n, size, size, 3) of all files; and the row among them of each of the listing's.
    """
    images = zeros(len(files), size, size, 3)
    digests: list[str] = [""] * len(files)
    reasons: list[str] = [""] * len(files)
    sides = [(0, 0)] * len(files)

    def decode_block(start: int) -> int:
        rows = range(start, min(start + BLOCK, len(files)))
        for i in rows:
            try:
                images[i] = decode(files[i].path, size, fit)
                sides[i] = dimensions(files[i].path)
                with open(files[i].path, "rb") as file:
                    digests[i] = hashlib.file_digest(file, "sha256").hexdigest()
            except Exception as error:  # a decoder raises nearly anything on a damaged file
                reasons[i] = printable(reason(error, files[i].path))
        return len(rows)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        counts = pool.map(decode_block, range(0, len(files), BLOCK))
        for _ in tracked(counts, f"decoding to {size} x {size}", len(files), count=int):
            pass
    parts = decide_parts(files, digests, reasons)
    rows = [i for part in PART_NAMES for i in range(len(files)) if parts[i] == part and not reasons[i]]
    names = [os.path.relpath(file.path, base(root)) for file in files]
    distinct = {(files[i].label, digests[i]) for i in rows}
    listing = Listing(
        classes,
        tuple(Picture(names[i], files[i].label, parts[i], digests[i], *sides[i]) for i in rows),
        tuple(f"{printable(names[i])}: {reasons[i]}" for i in range(len(files)) if reasons[i]),
        len(rows) - len(distinct),
    )
    return listing, images, rows


def tell(listing: Listing) -> None:
    """A line or a few on stderr: what is there and what is left out."""
    counts = Counter(picture.part for picture in listing.pictures)
    part_counts = ", ".join(f"{counts[part]:,} {part}" for part in PART_NAMES if counts[part])
    say(f"{len(listing.pictures):,} of {len(listing.classes)} classes ({part_counts})")
    for line in listing.left_out[:SHOWN]:
        say(f"left out {line}")
    if len(listing.left_out) > SHOWN:
        say(f"left out {len(listing.left_out) - SHOWN:,} more; python -m pipeline --data names them")
