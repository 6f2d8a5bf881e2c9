"""The files beside a picture or page: errors.csv and heatmaps.npz of all errors, each written whole or not at all.

Both hold the misclassified images in order of their index, whatever was drawn: row i of the table is map i of the
archive. For pictures of one's own they are images.csv and images.npz. The same run writes the same bytes.
"""

import csv
import io
from pathlib import Path

import numpy as np

from explain.errors import Errors, Maps
from pipeline.cifar10 import CLASSES

COLUMNS = ("index", "true", "predicted", "p_predicted", "p_true", "loss", "rank_of_true", "label_disputed")


FILE_COLUMNS = ("file", "predicted", "p_predicted", "second", "p_second")


def beside(out: Path, own: bool) -> tuple[Path, Path]:
    """Where the table and the archive go: beside `out`; those of one's own pictures under other names."""
    names = ("images.csv", "images.npz") if own else ("errors.csv", "heatmaps.npz")
    return out.with_name(names[0]), out.with_name(names[1])


def errors_csv(errors: Errors) -> bytes:
    """The table: one line an error, probabilities 0..1, loss in nats, label_disputed 0 or 1; or one line a file."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(FILE_COLUMNS if errors.files else COLUMNS)
    for i in range(len(errors)):
        true, predicted = int(errors.true[i]), int(errors.predicted[i])
        p_predicted, p_true = (f"{errors.probabilities[i, number]:.6f}" for number in (predicted, true))
        if errors.files:
            writer.writerow((errors.files[i], CLASSES[predicted], p_predicted, CLASSES[true], p_true))
            continue
        writer.writerow(
            (
                errors.index[i],
                CLASSES[true],
                CLASSES[predicted],
                p_predicted,
                p_true,
                f"{errors.loss[i]:.6f}",
                errors.rank[i],
                int(errors.disputed[i]),
            )
        )
    return text.getvalue().encode("utf-8", "surrogateescape")


def heatmaps_npz(errors: Errors, maps: Maps) -> bytes:
    """The archive, to be read with `numpy.load`: E errors, C classes, maps of h x w cells, raw and signed.

    index, true, predicted (E,) int64; logits (E, C) float32; predicted_maps, true_maps and maps, which are those of
    `target`, (E, h, w) float32; layer4_class_maps (E, C, h4, w4) float32; layer, method, target; classes (C,) names.
    Of pictures of one's own, in the order of their table, `true` is the runner-up.
    """
    buffer = io.BytesIO()
    np.savez(
        buffer,
        index=errors.index,
        true=errors.true,
        predicted=errors.predicted,
        logits=errors.logits.numpy(),
        maps=maps.chosen.numpy(),
        predicted_maps=maps.predicted.numpy(),
        true_maps=maps.true.numpy(),
        layer4_class_maps=errors.class_maps.numpy(),
        layer=np.array(maps.layer),
        method=np.array(maps.method),
        target=np.array(maps.target),
        classes=np.array(CLASSES),
    )
    return buffer.getvalue()
