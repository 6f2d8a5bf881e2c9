"""The files beside a picture: errors.csv and heatmaps.npz of all errors, each written whole or not at all.

Both hold the misclassified images in order of their index, whatever was drawn: row i of the table is map i of the
archive. The same run writes the same bytes.
"""

import csv
import io
import os
from pathlib import Path

import numpy as np

from explain.errors import Errors, Maps
from pipeline.cifar10 import CLASSES

CSV_NAME = "errors.csv"
NPZ_NAME = "heatmaps.npz"
COLUMNS = ("index", "true", "predicted", "p_predicted", "p_true", "loss", "rank_of_true", "label_disputed")


def write_whole(path: Path, content: bytes) -> None:
    """Write under a temporary name in the same folder, then rename, so that readers see the old file or the new one.

    Raises:
        OSError: the folder cannot be written or the disk is full; a file that was there before is intact.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def errors_csv(errors: Errors) -> bytes:
    """The table: one line an error, probabilities 0..1, loss in nats, label_disputed 0 or 1."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for i in range(len(errors)):
        true, predicted = int(errors.true[i]), int(errors.predicted[i])
        writer.writerow(
            (
                errors.index[i],
                CLASSES[true],
                CLASSES[predicted],
                f"{errors.probabilities[i, predicted]:.6f}",
                f"{errors.probabilities[i, true]:.6f}",
                f"{errors.loss[i]:.6f}",
                errors.rank[i],
                int(errors.disputed[i]),
            )
        )
    return text.getvalue().encode()


def heatmaps_npz(errors: Errors, maps: Maps) -> bytes:
    """The archive, to be read with `numpy.load`: E errors, C classes, maps of h x w cells, raw and signed.

    index, true, predicted (E,) int64; logits (E, C) float32; predicted_maps, true_maps and maps, which are those of
    `target`, (E, h, w) float32; layer4_class_maps (E, C, h4, w4) float32; layer, method, target; classes (C,) names.
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
