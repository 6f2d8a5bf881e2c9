"""Pictures of one's own as a data set: a folder with one sub-folder a class, or a table of files.

    python -m pipeline --data holiday      # what is found, and what is left out and why

Three layouts are known. `train/`, `val/` and `test/` (under these names or their usual variants) with the classes in
each; the classes alone; or a CSV file with the columns path, label and, if one likes, split. Without parts, 8 of 10
pictures of each class are for training, 1 for validation and 1 for testing. Which ones, the SHA-256 of each file
decides: the same pictures always come out alike, and copies of one picture stay together.

Each file is decoded once, by itself, to S x S pixels, into a cache outside the folder; nothing is ever written into the
folder. A file that cannot be read is left out and named, and the others go on.
"""

import contextlib
import csv
import errno
import hashlib
import json
import math
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import PIL
from rich.console import Console
from rich.progress import MofNCompleteColumn, TimeRemainingColumn

from ground.files import lock, write_whole
from ground.mistake import Mistake
from ground.terminal import bar, printable
from pipeline.cifar10.cache import folders
from pipeline.memory import fits, zeros
from pipeline.pictures import Fit, decode, dimensions, files_in, reason
from pipeline.split import Split, UInt8, sha256

PART_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing", "eval"),
}
SHARE = 10  # of a class without parts, one picture in so many is for validation and as many for testing
SHOWN = 3  # files left out that are named on the way; `python -m pipeline` names all
FORM = 4  # of the cache; changes when the decoding does
USUAL_SIZES = (32, 64)  # pixels: for pictures whose shorter side is below 48, and for others
LOOKED_AT = 200  # pictures, for their sizes
BLOCK = 256  # pictures that are decoded, or written, one after the other


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

    def places(self, part: str) -> slice:
        """Of the pictures of a part."""
        places = [i for i, picture in enumerate(self.pictures) if picture.part == part]
        return slice(places[0], places[-1] + 1) if places else slice(0)


@dataclass(frozen=True)
class Found:
    """A file before it is read."""

    path: Path
    label: int
    part: str
    """"" where the content decides."""


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
        ValueError: there are none, or a class has none to train on.
    """
    counts = Counter(picture.part for picture in listing.pictures)
    if part == "test" and not counts[part]:
        part = "validation"
    own = listing.pictures[listing.places(part)]
    if not own:
        raise Mistake(
            f"--data is {root}: it has no pictures for {part}: add some, or train with --validate; without parts a "
            "class of two or more gives one"
        )
    labels = {one.label for one in own}
    missing = [name for label, name in enumerate(listing.classes) if label not in labels]
    if part == "train" and missing:
        raise Mistake(f"--data is {root}: class {missing[0]} has no picture to train on")
    return Split(
        images=images[listing.places(part)],
        labels=np.array([one.label for one in own], np.int64),
        name=part,
        classes=listing.classes,
        files=tuple(str(base(root) / one.path) for one in own),
    )


def prepare(root: Path, size: int, fit: Fit) -> tuple[Listing, UInt8]:
    """What the folder holds, and its pictures (n, size, size, 3), from the cache, which is made first if need be.

    A size of 0 stands for the usual one: see `usual_size`.

    Processes that prepare the same folder at the same time take turns, and all but the first find the work done.

    Raises:
        ValueError: it has no classes, or fewer than two with pictures.
        OSError: it cannot be read, or the cache cannot be written.
    """
    classes, found = listed(root) if root.is_file() else find(root)
    size = size or usual_size(found)
    home = folders()[-1] / "pictures"
    home.mkdir(parents=True, exist_ok=True)
    path = home / f"{key(root, classes, found, size, fit)}.pictures"
    cached = read(path, size)
    if cached is None:
        descriptor = lock(home / "lock", lambda holder: _say(f"waiting for process {holder}, which is decoding"))
        try:
            cached = read(path, size)
            if cached is None:
                write(path, *decode_all(root, classes, found, size, fit))
                cached = read(path, size)
                if cached is None:
                    raise OSError(errno.EIO, "damaged just after it was written; check the disk", str(path))
        finally:
            os.close(descriptor)
        tell(cached[0])
    return cached


def find(root: Path) -> tuple[tuple[str, ...], list[Found]]:
    """The classes, in the order of their names, and the files; hidden ones apart.

    Raises:
        ValueError: there are not two classes.
        OSError: there is no such folder.
    """
    inner = _folders(root)
    parts = {part: [f for f in inner if f.name.lower() in names] for part, names in PART_NAMES.items()}
    if not parts["train"]:
        parts = {"": [root]}
    of_part = {part: [f for top in tops for f in _folders(top)] for part, tops in parts.items()}
    names = sorted({folder.name for found in of_part.values() for folder in found})
    if len(names) < 2:
        raise Mistake(
            f"--data is {root}: it must have two folders or more, one for each class, or train and test with these in "
            f"each; it has {', '.join(map(printable, names)) or 'none'}"
        )
    files = [
        Found(path, names.index(folder.name), part)
        for part, found in of_part.items()
        for folder in found
        for path in files_in(folder)
    ]
    return tuple(map(printable, names)), files


def listed(table: Path) -> tuple[tuple[str, ...], list[Found]]:
    """The classes, in the order of their names, and the files that a CSV file names, relative to where it is.

    Raises:
        ValueError: a column is missing, there are not two classes, or a line lacks something; says which.
        OSError: it cannot be read.
    """
    rows: list[tuple[Path, str, str]] = []
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if missing := {"path", "label"} - set(reader.fieldnames or ()):
                raise Mistake(f"its first line must name the columns path and label; {min(missing)} is missing")
            for row in reader:
                name, label, split = (row.get(column) for column in ("path", "label", "split"))
                parts = [part for part, names in PART_NAMES.items() if (split or "").lower() in names]
                if not name or not label or "\0" in name or ("split" in row and not parts):
                    allowed = ", ".join(PART_NAMES)
                    raise Mistake(
                        f"line {reader.line_num}: it needs a path, a label and, if any does, a split: {allowed}"
                    )
                rows.append((table.parent / name, label, parts[0] if parts else ""))
    except (ValueError, csv.Error) as error:
        raise Mistake(f"--data is {table}: {error}") from None
    names = sorted({label for _, label, _ in rows})
    if len(names) < 2:
        raise Mistake(f"--data is {table}: it must have two labels or more")
    order = {name: place for place, name in enumerate(names)}
    return tuple(map(printable, names)), [Found(path, order[label], part) for path, label, part in rows]


def check_outside(data: str, place: str, flag: str) -> None:
    """Raises ValueError where the folder `place`, named by `flag`, is to lie in the pictures': it would be a class."""
    if Path(os.path.realpath(place)).is_relative_to(os.path.realpath(os.path.expanduser(data))):
        raise Mistake(
            f"{flag} is {place}: it lies in {data}, where it would be a class of its own: name a folder elsewhere"
        )


def base(root: Path) -> Path:
    """What the names of pictures are relative to."""
    return root.parent if root.is_file() else root


def usual_size(found: Sequence[Found]) -> int:
    """Side in pixels for these pictures: 64, or 32 where half of them, of some looked at, are smaller than 48."""
    shorter = []
    for one in found[:: max(1, len(found) // LOOKED_AT)]:
        with contextlib.suppress(Exception):  # it is named when it is decoded
            shorter.append(min(dimensions(one.path)))
    small, usual = USUAL_SIZES
    return small if shorter and np.median(shorter) < (small + usual) / 2 else usual


def key(root: Path, classes: tuple[str, ...], found: Sequence[Found], size: int, fit: Fit) -> str:
    """Of the cache: changes with the classes, the files' names, lengths, times and rights, and how they are decoded."""
    digest = hashlib.sha256(f"{FORM} {PIL.__version__} {size} {fit} {classes}".encode())
    for one in found:
        with contextlib.suppress(OSError):  # a broken link; it is named when it is read
            status = one.path.stat()
            readable = os.access(one.path, os.R_OK, effective_ids=True)
            digest.update(f"{status.st_size} {status.st_mtime_ns} {readable} ".encode())
        digest.update(f"{one.part} {one.label} ".encode())
        digest.update(os.fsencode(os.path.relpath(one.path, base(root))) + b"\0")
    return digest.hexdigest()[:32]


def decode_all(
    root: Path, classes: tuple[str, ...], found: Sequence[Found], size: int, fit: Fit
) -> tuple[Listing, UInt8, list[int]]:
    """Every file decoded, on all cores; then sorted into parts, without copies that would straddle two of them.

    Returns:
        What there is; the pictures (n, size, size, 3) of all files; and the place among them of each of the listing's.
    """
    images = zeros(len(found), size, size, 3)
    digests: list[str] = [""] * len(found)
    reasons: list[str] = [""] * len(found)
    sides = [(0, 0)] * len(found)

    def some(start: int) -> int:
        places = range(start, min(start + BLOCK, len(found)))
        for i in places:
            try:
                images[i] = decode(found[i].path, size, fit)
                sides[i] = dimensions(found[i].path)
                with open(found[i].path, "rb") as file:
                    digests[i] = hashlib.file_digest(file, "sha256").hexdigest()
            except Exception as error:  # a decoder raises nearly anything on a damaged file
                reasons[i] = printable(reason(error, found[i].path))
        return len(places)

    shown_bar = bar(Console(stderr=True), MofNCompleteColumn(), TimeRemainingColumn())
    with shown_bar, ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        task = shown_bar.add_task(f"decoding to {size} x {size}", total=len(found))
        for count in pool.map(some, range(0, len(found), BLOCK)):
            shown_bar.update(task, advance=count, refresh=True)
    parts = _parts(found, digests, reasons)
    kept = [i for part in PART_NAMES for i in range(len(found)) if parts[i] == part and not reasons[i]]
    names = [os.path.relpath(one.path, base(root)) for one in found]
    distinct = {(found[i].label, digests[i]) for i in kept}
    listing = Listing(
        classes,
        tuple(Picture(names[i], found[i].label, parts[i], digests[i], *sides[i]) for i in kept),
        tuple(f"{printable(names[i])}: {reasons[i]}" for i in range(len(found)) if reasons[i]),
        len(kept) - len(distinct),
    )
    return listing, images, kept


def _parts(found: Sequence[Found], digests: Sequence[str], reasons: list[str]) -> list[str]:
    """The part of each file. Leaves out, by a reason, what would make the report dishonest.

    That is a picture that stands in two classes, and one to train on or for validation that is also in a part after its
    own.
    """
    parts = [one.part for one in found]
    labels: dict[str, set[int]] = defaultdict(set)
    order = ["", *PART_NAMES]
    last: dict[str, int] = defaultdict(int)  # of the parts that a picture is in
    for one, digest in zip(found, digests, strict=True):
        if digest:
            labels[digest].add(one.label)
            last[digest] = max(last[digest], order.index(one.part))
    of_class: dict[int, set[str]] = defaultdict(set)
    for i, (one, digest) in enumerate(zip(found, digests, strict=True)):
        if not digest:
            continue
        if len(labels[digest]) > 1:
            reasons[i] = "the same picture is in two classes"
        elif order.index(one.part) < last[digest]:
            reasons[i] = f"the same picture is among those for {order[last[digest]]}"
        else:
            of_class[one.label].add(digest)
    if "" in parts:
        place = {digest: part for own in of_class.values() for digest, part in _drawn(sorted(own))}
        parts = [place.get(digest, "") for digest in digests]
    return parts


def _drawn(digests: Sequence[str]) -> Iterator[tuple[str, str]]:
    """A tenth of a class for testing and a tenth for validation, one picture each at least if there are three."""
    count = len(digests)
    some = max(1, round(count / SHARE))
    test, validation = some if count > 1 else 0, some if count > 2 else 0
    for i, digest in enumerate(digests):
        yield digest, "test" if i < test else "validation" if i < test + validation else "train"


def write(path: Path, listing: Listing, images: UInt8, kept: Sequence[int]) -> None:
    """A line, the SHA-256 of the rest and the listing as JSON, then the pixels at the places `kept`."""
    head = json.dumps(asdict(listing)).encode()
    digest = hashlib.sha256(head)
    for block in _blocks(images, kept):
        digest.update(block)
    write_whole(path, f"{digest.hexdigest()} ".encode(), head, b"\n", _blocks(images, kept), durable=True)


def _blocks(images: UInt8, kept: Sequence[int]) -> Iterator[UInt8]:
    return (images[kept[start : start + BLOCK]] for start in range(0, len(kept), BLOCK))


def read(path: Path, size: int) -> tuple[Listing, UInt8] | None:
    """What `write` wrote; None where it is missing or damaged. What memory has no room for stays in the file."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError), open(path, "rb") as file:
        stated, _, line = file.readline().removesuffix(b"\n").partition(b" ")
        head = json.loads(line)
        pictures = tuple(Picture(**one) for one in head["pictures"])
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


def tell(listing: Listing) -> None:
    """A line or a few on stderr: what was found and what was left out."""
    counts = Counter(picture.part for picture in listing.pictures)
    of_parts = ", ".join(f"{counts[part]:,} {part}" for part in PART_NAMES if counts[part])
    _say(f"{len(listing.pictures):,} of {len(listing.classes)} classes ({of_parts})")
    for line in listing.left_out[:SHOWN]:
        _say(f"left out {line}")
    if len(listing.left_out) > SHOWN:
        _say(f"left out {len(listing.left_out) - SHOWN:,} more; python -m pipeline --data names them")


def _folders(folder: Path) -> list[Path]:
    return sorted(inner for inner in folder.iterdir() if inner.is_dir() and not inner.name.startswith("."))


def _say(text: str) -> None:
    print(f"pictures: {text}", file=sys.stderr, flush=True)
