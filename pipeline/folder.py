"""Pictures of one's own as a data set: a folder with one sub-folder a class, or a table of files.

    python -m pipeline --data holiday      # what is in it, and what is left out and why

    pipeline.layout, pipeline.table    which files there are, with their classes: an Inventory
    pipeline.contents                  the SHA-256 of each
    pipeline.store                     the pixels of these contents, decoded once by pipeline.pictures
    here                               which are for training, validation and testing: a Listing

Nothing is ever written into the folder. A file that is not used is named, and the others go on.

Without parts, of 10 pictures of a class 8 are for training, 1 for validation and 1 for testing. Which
ones, the SHA-256 of each file decides: the same pictures always come out alike, copies together.
"""

import errno
import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np

from ground.files import lock
from ground.mistake import Mistake
from pipeline import contents, store
from pipeline.labels import PARTS, one_spelling
from pipeline.layout import Layout, folder_inventory
from pipeline.listing import Inventory, LeftOut, Listing, Picture, Source, by_kind
from pipeline.pictures import Fit, decode_bytes, dimensions, read_bytes, reason
from pipeline.split import Images, Split
from pipeline.store import Record, say
from pipeline.table import read_table

USUAL_SIZES = (32, 64)  # pixels: for pictures whose shorter side is below 48, and for others
SAMPLE = 200  # pictures that are looked at for their sizes
SHARE = 10  # of a class without parts, one in so many is for validation and as many for testing


def part_of(root: Path, listing: Listing, images: Images, part: str) -> Split:
    """The "train", "validation" or "test" pictures of a folder; for "test", without any, those for validation.

    Raises:
        Mistake: there are none, or a class has none to train on.
    """
    if part == "test" and not listing.pictures[listing.part_slice(part)]:
        part = "validation"
    rows = listing.part_slice(part)
    pictures = listing.pictures[rows]
    missing = sorted(set(range(len(listing.classes))) - {picture.label for picture in pictures})
    if part == "train" and missing:
        name, left_out = listing.classes[missing[0]], [one for one in listing.left_out if one.label == missing[0]]
        raise Mistake(f"--data is {root}: class {name} has no picture to train on{_why(left_out)}")
    if not pictures:
        raise Mistake(
            f"--data is {root}: it has no pictures for {part}: add some, or train with --validate; without parts a "
            f"class of two or more gives one{_why(listing.left_out)}"
        )
    return Split(
        images=images[rows],
        labels=np.array([picture.label for picture in pictures], np.int64),
        name=part,
        classes=listing.classes,
        files=tuple(str(_base(root) / picture.name) for picture in pictures),
        contents=np.array([int(picture.digest[:16], 16) for picture in pictures], np.uint64).view(np.int64),
    )


def _why(left_out: Sequence[LeftOut]) -> str:
    return f": {len(left_out):,} were left out, {by_kind(left_out)}" if left_out else ""


def _base(root: Path) -> Path:
    """What the names of pictures are relative to."""
    return root.parent if root.is_file() else root


def prepare(
    root: Path, size: int, fit: Fit, layout: Layout = "auto"
) -> tuple[Listing, Images]:
    """What the folder holds, and its pictures (n, size, size, 3), from the cache, which is made first if need be.

    Says so on stderr. A size of 0 stands for the usual one: see `usual_size`. Processes that prepare the same folder at
    the same time take turns, and all but the first find the work done.

    Raises:
        Mistake: it has not two classes, or can be read in two ways; or a file changes while it is read.
        OSError: it cannot be read, or the cache cannot be written.
    """
    inventory = table_inventory(root) if root.is_file() else folder_inventory(root, layout)
    names = [file.name for file in inventory.files]
    digests, reasons = contents.digests(_base(root), names, store.index_path(root))
    files = {digest: _base(root) / name for digest, name in sorted(zip(digests, names, strict=True)) if digest}
    size = size or usual_size(list(files.values()))
    path = store.cache_path(root, files, size, fit)
    listing = Listing((), (), ())

    def arrange(records: Sequence[Record]) -> Sequence[int]:
        nonlocal listing
        listing, rows = make_listing(inventory, digests, reasons, records)
        return rows

    read = partial(store.read, path, size, arrange)
    if (stored := read()) is None:
        waiting = "waiting for process {}, which is decoding"
        with os.fdopen(lock(path.with_name("lock"), lambda holder: say(waiting.format(holder)))):
            if (stored := read()) is None:
                store.write(path, decode_all(files, size, fit))
                stored = read()
    if stored is None:
        raise OSError(errno.EIO, "damaged just after it was written; check the disk", str(path))
    for line in listing.summary():
        say(line)
    return listing, stored[1]


def table_inventory(table: Path) -> Inventory:
    """The files that a table names. Raises Mistake where it has not two labels."""
    rows, understood = read_table(table)
    meant, notes = one_spelling(row.label for row in rows)
    classes = sorted(set(meant.values()))
    if len(classes) < 2:
        raise Mistake(f"--data is {table}: it must have two labels or more")
    number = {label: classes.index(name) for label, name in meant.items()}
    files = [Source(on_disk(table.parent, row.path), number[row.label], row.part) for row in rows]
    return Inventory(tuple(classes), tuple(files), (), (understood, *notes))


def on_disk(folder: Path, name: str) -> str:
    """The name, with slashes where it has the backslashes of Windows and there is no such file."""
    return name.replace("\\", "/") if "\\" in name and not os.path.lexists(folder / name) else name


def make_listing(
    inventory: Inventory, digests: Sequence[str], reasons: Sequence[str], records: Sequence[Record]
) -> tuple[Listing, list[int]]:
    """The listing of files with these contents, and for each of its pictures which of those without a fault it is."""
    by_digest = {record.digest: record for record in records}
    stored = {digest: i for i, digest in enumerate(d for d, record in by_digest.items() if not record.fault)}
    faults = [why or by_digest[digest].fault for digest, why in zip(digests, reasons, strict=True)]
    sound = [i for i, fault in enumerate(faults) if not fault]
    parts, unfair = decide_parts([inventory.files[i] for i in sound], [digests[i] for i in sound])
    pictures = []
    for i, part, why in zip(sound, parts, unfair, strict=True):
        faults[i] = why
        if not why:
            file, one = inventory.files[i], by_digest[digests[i]]
            pictures.append(Picture(file.name, file.label, part, one.digest, one.width, one.height, one.notes))
    pictures.sort(key=lambda picture: (PARTS.index(picture.part), picture.label, picture.digest, picture.name))
    faulty = [LeftOut(f.name, fault, f.label) for f, fault in zip(inventory.files, faults, strict=True) if fault]
    listing = Listing(inventory.classes, tuple(pictures), (*faulty, *inventory.left_out), inventory.notes)
    return listing, [stored[picture.digest] for picture in pictures]


def decide_parts(files: Sequence[Source], digests: Sequence[str]) -> tuple[list[str], list[str]]:
    """The part of each file, and why it is left out ("" for most), by its SHA-256.

    Left out is what would make the report dishonest: a picture that stands in two classes, and one to train on or for
    validation that is also in a part after its own.
    """
    order = ["", *PARTS]
    labels: dict[str, set[int]] = defaultdict(set)
    last: dict[str, int] = defaultdict(int)  # of the parts that a picture is in
    for file, digest in zip(files, digests, strict=True):
        labels[digest].add(file.label)
        last[digest] = max(last[digest], order.index(file.part))
    class_digests: dict[int, set[str]] = defaultdict(set)
    reasons = [""] * len(files)
    for i, (file, digest) in enumerate(zip(files, digests, strict=True)):
        if len(labels[digest]) > 1:
            reasons[i] = "the same picture is in two classes"
        elif order.index(file.part) < last[digest]:
            reasons[i] = f"the same picture is among those for {order[last[digest]]}"
        elif not file.part:
            class_digests[file.label].add(digest)
    part_by_digest = {digest: part for every in class_digests.values() for digest, part in _draw(sorted(every))}
    parts = [file.part or part_by_digest.get(digest, "") for file, digest in zip(files, digests, strict=True)]
    return parts, reasons


def _draw(digests: Sequence[str]) -> Iterator[tuple[str, str]]:
    """One in SHARE of a class for testing, as many for validation, one each at least if there are three."""
    count = len(digests)
    some = max(1, round(count / SHARE))
    test, validation = some if count > 1 else 0, some if count > 2 else 0
    for i, digest in enumerate(digests):
        yield digest, "test" if i < test else "validation" if i < test + validation else "train"


def usual_size(files: Sequence[Path]) -> int:
    """Side in pixels for these pictures: 64, or 32 where half of SAMPLE of them are smaller than 48."""
    shorter = []
    for file in files[:: max(1, len(files) // SAMPLE)]:
        with suppress(Exception):  # it is named when it is decoded
            shorter.append(min(dimensions(file)))
    small, usual = USUAL_SIZES
    return small if shorter and np.median(shorter) < (small + usual) / 2 else usual


def decode_all(files: dict[str, Path], size: int, fit: Fit) -> Iterator[tuple[Record, bytes]]:
    """{SHA-256: a file} decoded on all cores: what is known of each, and what is kept of it, as Decoded.body.

    Raises Mistake where a file has other bytes now.
    """

    def work(entry: tuple[str, Path]) -> tuple[Record, bytes]:
        digest, path = entry
        data = read_bytes(path)
        if hashlib.sha256(data).hexdigest() != digest:
            raise Mistake(f"{path} changed while it was read: start again when nobody writes there")
        try:
            body, shape, width, height, notes = decode_bytes(data, size, fit)
        except Exception as error:  # a decoder raises nearly anything on a damaged file
            return Record(digest, reason(error, path)), b""
        return Record(digest, "", width, height, notes, len(body), shape), body

    return contents.in_order(work, files.items(), f"decoding to {size} x {size}", len(files))
