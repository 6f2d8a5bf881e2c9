"""The page: every error of a set in one HTML file that works from disk, without a network.

    content = render(study, maps, checks, options, "model.pt: ResNet-18 ...")

Pictures are one lossless sprite sheet, maps 8 bits a cell with a scale each, for all ten classes: 2,000 errors of
CIFAR-10 are 4.8 MB at layer4. The browser does the rest with page.js, which draws only the cards in view.
`python gradcam.py --out errors.html` writes it.
"""

import base64
import io
import math
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from explain.errors import Calibration, Maps, class_errors
from explain.faithfulness import Faithfulness
from explain.gallery import METHODS, OPACITY, percent
from explain.options import Options
from explain.study import Study
from pipeline.cifar10 import CLASSES, UInt8

MAP_BYTES = 2_900_000  # of all maps before base64: with 2,000 pictures (4.6 MB) the page stays under 9 MB
LOSSLESS_BYTES = 12_000_000  # of all pictures before compression to a third: beyond it, WebP of quality 90
LEVELS = 127


def render(study: Study, maps: Maps, checks: Faithfulness | None, options: Options, source: str) -> bytes:
    """The whole page in UTF-8.

    Args:
        study: the errors, their pictures and the figures of the whole split.
        maps: of all errors, those of all classes among them.
        checks: faithfulness, where it was measured.
        options: what is shown first, and the words for the method.
        source: words for the model that erred.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    environment.filters["percent"] = percent
    errors, matrix = study.errors, study.matrix
    wrong = [] if matrix is None else class_errors(matrix).tolist()
    shares = [] if matrix is None else (class_errors(matrix) / np.maximum(matrix.sum(1), 1)).tolist()
    confused = 0 if matrix is None else int((matrix - np.diag(np.diag(matrix))).max())
    assert maps.every is not None
    height, width = maps.every.shape[-2:]
    fitting = fit(maps.every)
    sheet, columns = sprites(study.images)
    text = environment.get_template("page.html.j2").render(
        errors=errors,
        study=study,
        checks=checks,
        source=source,
        classes=CLASSES,
        wrong=wrong,
        shares=shares,
        worst=max([*shares, 1e-9]),
        most=confused,
        chart=None if study.calibration is None else reliability(study.calibration),
        grid=f"{METHODS[maps.method]} at {maps.layer}, {height} x {width} cells",
        reduced=f"{fitting.shape[-2]} x {fitting.shape[-1]}" if fitting.shape != maps.every.shape else "",
        coarse=maps.layer == "layer4",
        sheet=sheet,
        data=_data(study, fitting, columns, options),
        style=_verbatim("page.css"),
        script=_verbatim("page.js"),
    )
    return text.encode("utf-8", "surrogateescape")


def fit(maps: Tensor) -> Tensor:
    """Raw maps (E, C, h, w) with no more cells than MAP_BYTES hold; where they have more, means of neighbours."""
    count = max(1, maps.shape[0] * maps.shape[1])
    side = max(4, math.isqrt(MAP_BYTES // count))
    return maps if max(maps.shape[-2:]) <= side else F.adaptive_avg_pool2d(maps, side)


def quantise(maps: Tensor) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Cells (E, C, h, w) int8 and scales (E, C) float32, so that cells * scale are the maps to half a scale.

    What is positive stays positive, so that a map has positive evidence here exactly where it has some in full.
    """
    values = maps.double().numpy()
    scales = np.abs(values).max((2, 3), initial=0) / LEVELS
    cells = values / np.where(scales > 0, scales, 1)[..., None, None]
    cells = np.where((cells > 0) & (cells < 0.5), 1, cells.round())
    return cells.astype(np.int8), scales.astype(np.float32)


def sprites(images: UInt8) -> tuple[str, int]:
    """A data URL of one WebP with all images (E, S, S, 3), row by row, and the number of images in a row."""
    count, side = images.shape[:2]
    columns = max(1, math.isqrt(max(0, count - 1)) + 1)
    rows = max(1, -(-count // columns))
    tiles = np.zeros((rows * columns, side, side, 3), np.uint8)
    tiles[:count] = images
    sheet = tiles.reshape(rows, columns, side, side, 3).swapaxes(1, 2).reshape(rows * side, columns * side, 3)
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "WEBP", lossless=images.nbytes <= LOSSLESS_BYTES, quality=90, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode(), columns


def reliability(calibration: Calibration) -> dict[str, Any]:
    """What the calibration chart shows: bars in units of 0..1, and its figures in words."""
    images = calibration.images
    bins, total, most = len(images), int(images.sum()), max(1, int(images.max()))
    rows = zip(images.tolist(), calibration.confidence.tolist(), calibration.accuracy.tolist(), strict=True)
    bars = [
        {"left": i / bins, "images": n, "share": n / most, "confidence": confidence, "accuracy": accuracy}
        for i, (n, confidence, accuracy) in enumerate(rows)
    ]
    return {
        "width": 1 / bins,
        "bars": bars,
        "error": calibration.error,
        "confidence": float((images * calibration.confidence).sum() / total),
        "accuracy": float((images * calibration.accuracy).sum() / total),
    }


def _data(study: Study, maps: Tensor, columns: int, options: Options) -> dict[str, Any]:
    """What page.js works on: one entry an error in every list, in the order of errors.csv."""
    errors = study.errors
    cells, scales = quantise(maps)
    start = {"true": options.true, "pred": options.pred, "sort": options.order, "map": options.target}
    return {
        "classes": CLASSES,
        "split": errors.split,
        "rival": errors.rival,
        "files": errors.files or None,
        "index": errors.index.tolist(),
        "true": errors.true.tolist(),
        "predicted": errors.predicted.tolist(),
        "probabilities": [[round(p, 6) for p in row] for row in errors.probabilities.tolist()],
        "loss": [round(value, 6) for value in errors.loss.tolist()],
        "rank": errors.rank.tolist(),
        "disputed": np.flatnonzero(errors.disputed).tolist(),
        "shuffled": errors.select("random", seed=options.seed).tolist(),
        "side": study.images.shape[1],
        "columns": columns,
        "grid": list(maps.shape[-2:]),
        "cells": _base64(cells),
        "scales": _base64(scales.astype("<f4")),
        "sequential": _base64(_colours("inferno")),
        "diverging": _base64(_colours("PuOr_r")),
        "opacity": OPACITY,
        "start": start,
    }


def _colours(name: str) -> UInt8:
    return (matplotlib.colormaps[name](np.arange(256))[:, :3] * 255).round().astype(np.uint8)


def _base64(array: npt.NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def _verbatim(name: str) -> Markup:
    return Markup(Path(__file__).with_name(name).read_text(encoding="utf-8"))
