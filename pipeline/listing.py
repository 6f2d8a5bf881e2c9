"""What a folder or a table holds: the pictures, and every other file with the reason."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from ground.terminal import printable
from pipeline.labels import PARTS, name_list


@dataclass(frozen=True)
class Source:
    """A file before it is read."""

    name: str  # relative to the folder, or the table's; bytes that are no UTF-8 as surrogates
    label: int
    part: str  # of labels.PARTS; "" where the content decides


@dataclass(frozen=True)
class LeftOut:
    """A file that is not used."""

    name: str
    reason: str  # what stands before a colon is the kind of reason
    label: int = -1  # of the class that it would be of

    @property
    def kind(self) -> str:
        return self.reason.partition(":")[0]

    def __str__(self) -> str:
        return f"{printable(self.name)}: {printable(self.reason)}"


@dataclass(frozen=True)
class Inventory:
    """Every file of a folder, or every line of a table, before any is read."""

    classes: tuple[str, ...]
    files: tuple[Source, ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...] = ()  # what was understood, beside classes and parts


@dataclass(frozen=True)
class Picture:
    """A file that could be decoded."""

    name: str
    label: int
    part: str
    digest: str  # SHA-256 of the file
    width: int  # in pixels, as stored; and the height
    height: int
    notes: tuple[str, ...] = ()  # what is unusual


@dataclass(frozen=True)
class Listing:
    """What there is, after every file was read."""

    classes: tuple[str, ...]
    pictures: tuple[Picture, ...]  # by part, then class, then SHA-256, whatever their names
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...] = ()

    def part_slice(self, part: str) -> slice:
        """Where the pictures of a part are."""
        rows = [i for i, picture in enumerate(self.pictures) if picture.part == part]
        return slice(rows[0], rows[-1] + 1) if rows else slice(0)

    def summary(self) -> list[str]:
        """Lines: what was understood, how many files there are for what, and what is unusual."""
        counts = Counter(picture.part for picture in self.pictures)
        parts = [part for part in PARTS if counts[part]]
        used, left = len(self.pictures), len(self.left_out)
        lines = [
            f"{len(self.classes):,} classes ({name_list(self.classes)}) in parts "
            + (" and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]])) or "none")
            + f": {', '.join(f'{counts[part]:,} {part}' for part in parts)}",
            *map(printable, self.notes),
            f"{used + left:,} files: {used:,} used, {left:,} left out{f': {by_kind(self.left_out)}' if left else ''}",
        ]
        examples: dict[str, list[str]] = defaultdict(list)
        for picture in self.pictures:
            for note in picture.notes:
                examples[note].append(picture.name)
        lines += [f"{printable(note)}: {len(names):,} ({printable(min(names))})" for note, names in examples.items()]
        return lines


def by_kind(left_out: Iterable[LeftOut]) -> str:
    """How many of each kind, the most first, with an example."""
    kinds: dict[str, list[LeftOut]] = defaultdict(list)
    for file in left_out:
        kinds[file.kind].append(file)
    most_first = sorted(kinds.items(), key=lambda kind: -len(kind[1]))
    return "; ".join(f"{len(files):,} {printable(kind)} ({printable(files[0].name)})" for kind, files in most_first)


def identity(listing: Listing) -> str:
    """SHA-256 of the pictures' bytes, classes and parts, whatever their names and place."""
    rows = sorted(f"{one.part}\0{listing.classes[one.label]}\0{one.digest}\n" for one in listing.pictures)
    return hashlib.sha256("".join(rows).encode("utf-8", "surrogatepass")).hexdigest()
