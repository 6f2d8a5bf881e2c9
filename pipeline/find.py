"""The files of a folder with one sub-folder a class, or of a table, each with its class and perhaps its part.

Three layouts are known: `train/`, `val/` and `test/` (under these names or their usual variants) with the classes in
each; the classes alone; or a CSV file with the columns path, label and, if one likes, split.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

from ground.mistake import Mistake
from ground.terminal import printable
from pipeline.pictures import files_in

PART_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing", "eval"),
}


@dataclass(frozen=True)
class Source:
    """A file before it is read."""

    path: Path
    label: int
    part: str
    """"" where the content decides."""


def sources(root: Path) -> tuple[tuple[str, ...], list[Source]]:
    """The classes, in the order of their names, and the files of a folder, hidden ones apart, or of a table.

    Raises:
        Mistake: there are not two classes, or a line of the table lacks something.
        OSError: it cannot be read.
    """
    return table_sources(root) if root.is_file() else folder_sources(root)


def folder_sources(root: Path) -> tuple[tuple[str, ...], list[Source]]:
    """Classes and files of a folder; see `sources`."""
    inner = _folders(root)
    parts = {part: [f for f in inner if f.name.lower() in names] for part, names in PART_NAMES.items()}
    if not parts["train"]:
        parts = {"": [root]}
    class_folders = {part: [f for top in tops for f in _folders(top)] for part, tops in parts.items()}
    names = sorted({folder.name for folders in class_folders.values() for folder in folders})
    if len(names) < 2:
        raise Mistake(
            f"--data is {root}: it must have two folders or more, one for each class, or train and test with these in "
            f"each; it has {', '.join(map(printable, names)) or 'none'}"
        )
    files = [
        Source(path, names.index(folder.name), part)
        for part, folders in class_folders.items()
        for folder in folders
        for path in files_in(folder)
    ]
    return tuple(map(printable, names)), files


def table_sources(table: Path) -> tuple[tuple[str, ...], list[Source]]:
    """Classes and files that a CSV file names, relative to where it is; see `sources`."""
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
    order = {name: number for number, name in enumerate(names)}
    return tuple(map(printable, names)), [Source(path, order[label], part) for path, label, part in rows]


def base(root: Path) -> Path:
    """What the names of pictures are relative to."""
    return root.parent if root.is_file() else root


def _folders(folder: Path) -> list[Path]:
    return sorted(inner for inner in folder.iterdir() if inner.is_dir() and not inner.name.startswith("."))
