"""The files beside a picture or page: errors.csv and heatmaps.npz of all errors, each written whole or not at all.

Both hold the misclassified images in order of their index, whatever was drawn: row i of the table is map i of the
archive. For pictures of one's own they are images.csv and images.npz. The same run writes the same bytes.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from explain.cases import Cases, Maps
from ground.files import MARK, check_output, destination, write_whole

COLUMNS = ("index", "true", "predicted", "p_predicted", "p_true", "loss", "rank_of_true", "label_disputed")
FILE_COLUMNS = ("file", "predicted", "p_predicted", "second", "p_second")
MARKS = {".csv": b"predicted,p_predicted,", ".npz": b"layer4_class_maps.npy"}  # in both headers; a name in the archive


def paths(out: str, labelled: bool) -> tuple[Path, ...]:
    """`out` and, beside it, where the table and the archive go; without labels under other names."""
    names = ("errors.csv", "heatmaps.npz") if labelled else ("images.csv", "images.npz")
    return Path(out), *(Path(out).with_name(name) for name in names)


def check(out: str, labelled: bool, inputs: Sequence[str]) -> None:
    """Before the work: raises where one cannot be written without loss, see `check_output`."""
    for path in paths(out, labelled):
        check_output(path, inputs=inputs, mark=MARKS.get(path.suffix, MARK))


def write(out: str, content: bytes, maps: Maps) -> list[str]:
    """Write the picture or page, the table and the archive; returns their names."""
    files = paths(out, maps.cases.labels is not None)
    for path, data in zip(files, (content, table(maps.cases), archive(maps)), strict=True):
        write_whole(destination(path), data)
    return [str(path) for path in files]


def table(cases: Cases) -> bytes:
    """One line an error, probabilities 0..1, loss in nats, label_disputed 0 or 1, and its file if it has one.

    Without labels one line a picture: its file, the two likeliest classes and their probabilities.
    """
    names, files = np.array([cell(name) for name in cases.classes]), [cell(name) for name in cases.files]
    predicted, rival = names[cases.predicted], names[cases.rival]
    figures = cases.probability(cases.predicted), cases.probability(cases.rival), cases.loss
    p_predicted, p_rival, loss = ([f"{value:.6f}" for value in values] for values in figures)
    if cases.labels is None:
        values: tuple[Any, ...] = (files, predicted, p_predicted, rival, p_rival)
        columns = dict(zip(FILE_COLUMNS, values, strict=True))
    else:
        disputed = cases.disputed.astype(int)
        values = (cases.index, rival, predicted, p_predicted, p_rival, loss, cases.rank, disputed)
        columns = dict(zip(COLUMNS, values, strict=True)) | ({"file": files} if files else {})
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([columns, *zip(*columns.values(), strict=True)])
    return text.getvalue().encode("utf-8", "surrogateescape")


def cell(name: str) -> str:
    """A name as a spreadsheet takes it for text: one that begins like a formula gets an apostrophe."""
    return f"'{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name


def plain(text: str) -> str:
    """The name of which `cell` gave this text; but for one that itself begins as if it had."""
    return text[1:] if cell(text[1:]) == text else text


def archive(maps: Maps) -> bytes:
    """To be read with `numpy.load`: E errors, C classes, maps of h x w cells, raw and signed.

    index, true, predicted (E,) int64; logits (E, C) float32; predicted_maps, true_maps and maps, which are those of
    `target`, (E, h, w) float32; layer4_class_maps (E, C, h4, w4) float32; layer, method, target; classes (C,) names.
    Without labels `true` is the runner-up.
    """
    cases, buffer = maps.cases, io.BytesIO()
    np.savez(
        buffer,
        index=cases.index, true=cases.rival, predicted=cases.predicted, logits=cases.logits,
        maps=maps.chosen, predicted_maps=maps.predicted, true_maps=maps.rival,
        layer4_class_maps=cases.class_maps,
        layer=maps.layer, method=maps.method, target=maps.target, classes=cases.classes,
    )
    return buffer.getvalue()
