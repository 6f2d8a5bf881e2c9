"""Which pictures there are, and what they are called: files, folders, tables, names on stdin.

A picture in a folder is called after the nearest folder above it, up to the one that was given,
that has the name of a class; else after its own. Neither order nor number of classes counts.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from engine.checkpoint import Checkpoint
from explain.cases import Bools
from explain.options import CheckpointOptions
from ground.mistake import Mistake
from pipeline.folder import on_disk
from pipeline.labels import one_spelling
from pipeline.pictures import files_in
from pipeline.split import Split
from pipeline.table import SUFFIXES, read_table

STDIN = "-"
Item = tuple[str, str]  # a file, and its label or ""


class Labels(dict[str, int]):
    """{label: number of the class of that name, or -1}, in any spelling that is the same name."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = classes

    def __missing__(self, label: str) -> int:
        meant = one_spelling([*self.classes, label])[0]
        found = (i for i, name in enumerate(self.classes) if label and meant[name] == meant[label])
        self[label] = next(found, -1)
        return self[label]


def find(paths: Sequence[str], labels: Labels) -> tuple[Iterator[Item], int]:
    """The pictures of these files, folders and tables, in their order, and how many there are: 0
    where names come from stdin.

    Raises OSError for what is not there, Mistake for a table without paths, or for no pictures.
    """
    for path in paths:
        if path != STDIN:
            os.stat(path)
    if STDIN in paths:
        return _items(paths, labels), 0
    if total := sum(1 for _ in _items(paths, labels)):
        return _items(paths, labels), total
    raise Mistake(f"there are no pictures in {', '.join(paths[:3])}")


def _items(paths: Sequence[str], labels: Labels) -> Iterator[Item]:
    for path in map(Path, paths):
        if str(path) == STDIN:
            lines = (os.fsdecode(line.rstrip(b"\r\n")) for line in sys.stdin.buffer)
            yield from ((line, "") for line in lines if line)
        elif path.is_dir():
            top = path.resolve().name
            for file in files_in(path):
                inner = file.relative_to(path).parts[:-1]
                known = [name for name in (top, *inner) if labels[name] >= 0]
                yield str(file), (known or inner or ("",))[-1]
        elif path.suffix.lower() in SUFFIXES:
            for row in read_table(path, labelled=False)[0]:
                yield str(path.parent / on_disk(path.parent, row.path)), row.label
        else:
            yield str(path), ""


def part(options: CheckpointOptions, checkpoint: Checkpoint, name: str) -> tuple[Split, Bools]:
    """A part of the checkpoint's data, and (N,) whether the model was trained on each image of it.

    Of pictures their contents tell; of other data, that the run trained on all of "train". Raises
    Mistake as `open_data`, and where there is no such part.
    """
    config, data = checkpoint.config, options.open_data(checkpoint)
    held_out = config.validate or bool(config.fold)
    if name == "validation" and not held_out and not data.has_validation():
        raise Mistake(f"--part is validation: {options.ckpt} was trained without: use --validate")
    if name == "train" or (name == "validation" and not data.has_validation()):
        split = data.splits(config.validate, config.fold)[name == "validation"]
    else:
        split = data.load(name)
    learnt = np.full(len(split), name == "train")
    if len(split.contents):
        learnt = np.isin(split.contents, checkpoint.trained_on.numpy())
    return split, learnt
