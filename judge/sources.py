"""Which pictures there are, and which class each is of, if anything says so: files, folders, tables, names on stdin.

A class is known by its name alone. A folder's pictures are of the class that the nearest folder above them is named
after, up to the folder that was given; a table's of its label. No order and no number of classes is taken for granted.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.checkpoint import Checkpoint
from explain.cases import Bools
from explain.options import CheckpointOptions
from ground.mistake import Mistake
from pipeline.folder import on_disk
from pipeline.labels import name_list, one_spelling
from pipeline.pictures import files_in
from pipeline.split import Split
from pipeline.table import SUFFIXES, Row, read_table

STDIN = "-"
Item = tuple[str, str]  # a file, and its label or ""


class Labels:
    """The model's classes by their names, in any spelling that `one_spelling` takes for the same."""

    def __init__(self, classes: Sequence[str], labels: Iterable[str]) -> None:
        meant, _ = one_spelling([*classes, *labels])
        number = {meant[name]: i for i, name in enumerate(classes)}
        self._number = {label: number.get(name, -1) for label, name in meant.items()}

    def __getitem__(self, label: str) -> int:
        """The class's number, or -1 where the model has none of that name."""
        return self._number.get(label, -1)


@dataclass(frozen=True)
class Pictures:
    """All pictures that were named, to be gone through once; names and labels are not kept, but for a table's."""

    items: Iterable[Item]
    total: int  # 0 where nobody knows
    labels: Labels
    labelled: bool  # whether any has a label
    foreign: tuple[str, ...] = ()  # labels that are no class of the model's


def find(paths: Sequence[str], classes: Sequence[str]) -> Pictures:
    """The pictures of these files, folders and tables, and on stdin where one is "-".

    Raises OSError where one cannot be read, Mistake for a table without a path, for no pictures, or more than one "-".
    """
    if paths.count(STDIN) > 1:
        raise Mistake("- stands for the names on stdin, which can be read once")
    tables: dict[str, list[Row]] = {}
    folders: dict[str, dict[str, list[str]]] = {}  # {root: {folder in it: names of the folders from the root on}}
    total = 0
    for path in paths:
        if path == STDIN:
            continue
        if os.path.isdir(path):
            os.listdir(path)  # os.walk says nothing where it cannot be read
            folders[path], root = {}, os.path.basename(os.path.realpath(path))
            for file in files_in(Path(path)):
                total += 1
                if (inner := str(file.parent)) not in folders[path]:
                    folders[path][inner] = [root, *file.relative_to(path).parent.parts]
        elif path.lower().endswith(SUFFIXES):
            tables[path] = read_table(Path(path), labelled=False)[0]
            total += len(tables[path])
        else:
            os.stat(path)  # says so where there is none
            total += 1
    if not total and STDIN not in paths:
        raise Mistake(f"there are no pictures in {name_list(paths)}")
    names = {name for inner in folders.values() for parts in inner.values() for name in parts}
    labels = Labels(classes, names | {row.label for rows in tables.values() for row in rows if row.label})
    by_folder = {}
    for path, some in folders.items():
        by_folder[path] = {name: _label(parts, labels) for name, parts in some.items()}
        if all(labels[label] < 0 for label in by_folder[path].values()):  # their names mean something else
            by_folder[path] = dict.fromkeys(some, "")

    def items() -> Iterator[Item]:
        for path in paths:
            if path == STDIN:
                lines = (os.fsdecode(line.rstrip(b"\r\n")) for line in sys.stdin.buffer)
                yield from ((line, "") for line in lines if line)
            elif path in by_folder:
                yield from ((str(file), by_folder[path].get(str(file.parent), "")) for file in files_in(Path(path)))
            elif path in tables:
                place = Path(path).parent
                yield from ((str(place / on_disk(place, row.path)), row.label) for row in tables[path])
            else:
                yield path, ""

    used = {label for place in by_folder.values() for label in place.values()}
    used |= {row.label for rows in tables.values() for row in rows}
    foreign = tuple(sorted(label for label in used if label and labels[label] < 0))
    return Pictures(items(), 0 if STDIN in paths else total, labels, any(used), foreign)


def _label(parts: Sequence[str], labels: Labels) -> str:
    """The nearest of the folders in one another that is named after a class; else the nearest below the root, or ""."""
    known = [name for name in parts if labels[name] >= 0]
    return known[-1] if known else parts[-1] if len(parts) > 1 else ""


def part(options: CheckpointOptions, checkpoint: Checkpoint, name: str) -> tuple[Split, Bools]:
    """A part of the checkpoint's data, and (N,) whether the model was trained on each image of it.

    Of pictures their contents tell; of other data, that the run trained on all of "train". Raises Mistake as
    `open_data`, and where it has no such part.
    """
    config, data = checkpoint.config, options.open_data(checkpoint)
    split = data.validation() if name == "validation" else None
    if name == "test":
        split = data.load("test")
    elif not split and (name == "train" or config.validate or config.fold):
        split = data.splits(config.validate, config.fold)[name == "validation"]
    if not split:
        raise Mistake(f"--part is validation: {options.ckpt} was trained without; train with --validate")
    learnt = np.full(len(split), name == "train")
    return split, np.isin(split.contents, checkpoint.trained_on.numpy()) if len(split.contents) else learnt
