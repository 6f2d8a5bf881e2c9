"""The table of predictions, one line a picture, written as the answers come."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from explain.outputs import cell
from ground.files import MARK
from judge.answers import Answers

COLUMNS = ("file", "prediction", "probability", "known")
# What tells one of our tables from a person's own.
MARKS = {".html": MARK, ".csv": ",".join(COLUMNS).encode(), ".jsonl": b'", "prediction": "'}


class Table:
    """Gives the bytes of a table of a `kind`: .csv or .jsonl.

    CSV: the columns above, with probability 0..1, and known 0, 1 or empty where nobody knows; then
    the 2nd to the `top`th class and its probability, or with a `top` of 0 the probabilities of all
    classes; label as it was given. JSON lines: the same, with the classes under "top".
    """

    def __init__(self, kind: str, classes: Sequence[str], top: int) -> None:
        self.kind, self.classes, self.every = kind, classes, top == 0
        self.top = min(top or len(classes), len(classes))

    def blocks(self, batches: Iterable[Answers]) -> Iterator[bytes]:
        """The table's bytes, batch by batch."""
        give = self._csv if self.kind == ".csv" else self._json
        for number, answers in enumerate(batches):
            order = np.argsort(-answers.probabilities, axis=1, kind="stable")[:, : self.top]
            values = np.take_along_axis(answers.probabilities, order, 1).tolist()
            names = ([self.classes[i] for i in row] for row in order.tolist())
            places = [list(zip(*pair, strict=True)) for pair in zip(names, values, strict=True)]
            yield give(answers, places, number == 0)

    def _csv(self, answers: Answers, places: list[list[tuple[str, float]]], first: bool) -> bytes:
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        if first:
            pairs = ((f"class_{k}", f"probability_{k}") for k in range(2, self.top + 1))
            more = [name for pair in pairs for name in pair]
            every = [cell(f"p {name}") for name in self.classes]
            writer.writerow([*COLUMNS, *(every if self.every else more), "label"])
        for i, ((best, p), *others) in enumerate(places):
            known = "" if answers.known is None else int(answers.known[i])
            more = [value for name, q in others for value in (cell(name), f"{q:.6f}")]
            if self.every:
                more = [f"{q:.6f}" for q in answers.probabilities[i]]
            start = [cell(answers.files[i]), cell(best), f"{p:.6f}", known]
            writer.writerow([*start, *more, cell(answers.names[i])])
        return text.getvalue().encode("utf-8", "surrogateescape")

    def _json(self, answers: Answers, places: list[list[tuple[str, float]]], first: bool) -> bytes:
        lines = []
        for i, top in enumerate(places):
            row: dict[str, Any] = {"file": answers.files[i], "prediction": top[0][0]}
            row |= {"probability": round(top[0][1], 6)}
            row |= {"known": None if answers.known is None else bool(answers.known[i])}
            row |= {"top": [(name, round(p, 6)) for name, p in top], "label": answers.names[i]}
            lines.append(json.dumps(row).encode() + b"\n")
        return b"".join(lines)
