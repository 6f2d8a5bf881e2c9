"""The files beside a picture or page: errors.csv and heatmaps.npz of all errors, each written whole or not at all.

Both hold the misclassified images in order of their index, whatever was drawn: row i of the table is map i of the
archive. For pictures of one's own they are images.csv and images.npz. The same run writes the same bytes.
"""

import csv
import io
from collections.abc import Iterable
from pathlib import Path

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


def check(out: str, labelled: bool, inputs: Iterable[str]) -> None:
    """Before the work: can all three be written without the loss of an input or of a person's own file?

    Raises:
        OSError, Mistake: no, as `ground.files.check_output` says.
    """
    sources = list(inputs)
    for path in paths(out, labelled):
        check_output(path, inputs=sources, mark=MARKS.get(path.suffix, MARK))


def write(out: str, content: bytes, maps: Maps) -> list[str]:
    """Write the picture or page, the table and the archive; returns their names.

    Raises:
        OSError: one of them cannot be written; each is whole or as it was before.
    """
    files = paths(out, maps.cases.labels is not None)
    for path, data in zip(files, (content, table(maps.cases), archive(maps)), strict=True):
        write_whole(destination(path), data)
    return [str(path) for path in files]


def table(cases: Cases) -> bytes:
    """One line an error, probabilities 0..1, loss in nats, label_disputed 0 or 1, and its file if it has one.

    Without labels one line a picture: its file, the two likeliest classes and their probabilities.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    names, files = np.array([_cell(name) for name in cases.classes]), [_cell(name) for name in cases.files]
    predicted, rival = names[cases.predicted], names[cases.rival]
    p_predicted, p_rival = (
        [f"{p:.6f}" for p in cases.probability(classes)] for classes in (cases.predicted, cases.rival)
    )
    if cases.labels is None:
        writer.writerow(FILE_COLUMNS)
        writer.writerows(zip(files, predicted, p_predicted, rival, p_rival, strict=True))
    else:
        loss = [f"{value:.6f}" for value in cases.loss]
        columns = (cases.index, rival, predicted, p_predicted, p_rival, loss, cases.rank, cases.disputed.astype(int))
        named = bool(files)
        writer.writerow((*COLUMNS, *["file"] * named))
        writer.writerows(zip(*columns, *[files] * named, strict=True))
    return text.getvalue().encode("utf-8", "surrogateescape")


def _cell(name: str) -> str:
    """A name as a spreadsheet takes it for text: one that begins like a formula gets an apostrophe."""
    return f"'{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name


def archive(maps: Maps) -> bytes:
    """To be read with `numpy.load`: E errors, C classes, maps of h x w cells, raw and signed.

    index, true, predicted (E,) int64; logits (E, C) float32; predicted_maps, true_maps and maps, which are those of
    `target`, (E, h, w) float32; layer4_class_maps (E, C, h4, w4) float32; layer, method, target; classes (C,) names.
    Without labels `true` is the runner-up.
    """
    cases = maps.cases
    buffer = io.BytesIO()
    np.savez(
        buffer,
        index=cases.index,
        true=cases.rival,
        predicted=cases.predicted,
        logits=cases.logits.numpy(),
        maps=maps.chosen.numpy(),
        predicted_maps=maps.predicted.numpy(),
        true_maps=maps.rival.numpy(),
        layer4_class_maps=cases.class_maps.numpy(),
        layer=np.array(maps.layer),
        method=np.array(maps.method),
        target=np.array(maps.target),
        classes=np.array(cases.classes),
    )
    return buffer.getvalue()
