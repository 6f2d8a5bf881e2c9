"""The table of predictions, one line a picture, written as the answers come."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from explain.outputs import cell
from judge.answers import Answers

COLUMNS = ("file", "prediction", "probability", "known")
# In the first line of each kind of table: what tells one of ours from a person's own.
MARKS = {".csv": ",".join(COLUMNS).encode(), ".jsonl": b'", "prediction": "'}


class Table:
    """Gives a table's bytes, a block at a time: `blocks`.

    CSV: the columns above, with probability 0..1 and known 0, 1 or empty where nobody knows; then for the 2nd to the
    `top`th place the class and its probability, or with a `top` of 0 all classes' probabilities; where there are
    labels, label. JSON lines: the same; the places, or all classes, as "top", a list of class and probability.
    """

    def __init__(self, kind: str, classes: Sequence[str], top: int, labelled: bool) -> None:
        self.kind, self.classes, self.labelled = kind, classes, labelled
        self.top = min(top or len(classes), len(classes))
        self.every = top == 0

    def blocks(self, batches: Iterable[Answers]) -> Iterator[bytes]:
        """All of the table; the first answers are waited for before anything is given."""
        for number, answers in enumerate(batches):
            yield self.head() * (number == 0) + self.block(answers)

    def head(self) -> bytes:
        if self.kind != ".csv":
            return b""
        places = [name for k in range(2, self.top + 1) for name in (f"class_{k}", f"probability_{k}")]
        every = [cell(f"p {name}") for name in self.classes]
        return _csv([[*COLUMNS, *(every if self.every else places), *["label"] * self.labelled]])

    def block(self, answers: Answers) -> bytes:
        """The lines of B pictures."""
        probabilities, known = answers.probabilities, answers.known
        best = np.argsort(-probabilities, axis=1, kind="stable")[:, : self.top]
        values, names = np.take_along_axis(probabilities, best, 1).tolist(), self.classes
        labels = [names[label] if label >= 0 else "" for label in answers.labels.tolist()]
        sure = [None] * len(labels) if known is None else known.tolist()
        rows = zip(answers.files, best.tolist(), values, sure, labels, strict=True)
        if self.kind != ".csv":
            return b"".join(self._json(*row) for row in rows)
        lines = []
        for (file, order, p, certain, label), all_p in zip(rows, probabilities.tolist(), strict=True):
            start = [cell(file), cell(names[order[0]]), f"{p[0]:.6f}", "" if certain is None else int(certain)]
            places = [text for k, q in zip(order[1:], p[1:], strict=True) for text in (cell(names[k]), f"{q:.6f}")]
            every = [f"{q:.6f}" for q in all_p] if self.every else places
            lines.append([*start, *every, *[cell(label)] * self.labelled])
        return _csv(lines)

    def _json(self, file: str, order: list[int], p: list[float], certain: bool | None, label: str) -> bytes:
        top = [[self.classes[k], round(q, 6)] for k, q in zip(order, p, strict=True)]
        row: dict[str, Any] = {"file": file, "prediction": top[0][0], "probability": top[0][1], "known": certain}
        row |= {"top": top} | ({"label": label or None} if self.labelled else {})
        return json.dumps(row).encode() + b"\n"


def _csv(rows: Sequence[Sequence[Any]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")
