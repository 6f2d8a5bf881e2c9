"""The table of predictions, one row a picture, written as the answers come."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from explain.outputs import cell
from ground.files import MARK
from judge.answers import Answers

# What tells one of our files from a person's own.
MARKS = {".html": MARK, ".jsonl": b'", "prediction": "'}
MARKS |= {".csv": b"file,prediction,probability,known"}


def rows(answers: Answers, classes: Sequence[str], top: int) -> Iterator[dict[str, Any]]:
    """A row for each picture: file, prediction, probability 0..1, known (None: nobody can tell);
    then the 2nd to the `top`th class and its probability, or with a `top` of 0 the probabilities of
    all classes; label as it was given."""
    order = np.argsort(-answers.probabilities, axis=1, kind="stable")[:, : max(top, 1)].tolist()
    for i, (first, *others) in enumerate(order):
        p = [round(value, 6) for value in answers.probabilities[i].tolist()]
        known = None if answers.known is None else bool(answers.known[i])
        row = {"file": answers.files[i], "prediction": classes[first], "probability": p[first]}
        row |= {"known": known}
        for place, other in enumerate(others, 2):
            row |= {f"class_{place}": classes[other], f"probability_{place}": p[other]}
        if not top:
            row |= {f"p {name}": value for name, value in zip(classes, p, strict=True)}
        yield row | {"label": answers.names[i]}


def blocks(
    batches: Iterable[Answers], kind: str, classes: Sequence[str], top: int
) -> Iterator[bytes]:
    """A table's bytes, batch by batch; of its kinds, .jsonl and .csv, the last says 0 and 1."""
    for number, answers in enumerate(batches):
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        for place, row in enumerate(rows(answers, classes, top)):
            if kind == ".jsonl":
                text.write(json.dumps(row) + "\n")
                continue
            if number == place == 0:
                writer.writerow(map(cell, row))
            writer.writerow(map(_field, row.values()))
        yield text.getvalue().encode("utf-8", "surrogateescape")


def _field(value: str | float | bool | None) -> str | int | None:
    if isinstance(value, str):
        return cell(value)
    return f"{value:.6f}" if isinstance(value, float) else None if value is None else int(value)
