"""What `python gradcam.py --out errors.html` writes: all cases in one file that needs no network.

Pictures are one sprite sheet, lossless if small; maps are 8 bits a cell with a scale each, of ten classes at most:
2,000 errors of CIFAR-10 are 4.8 MB at layer4. The browser does the rest with page.js: it draws the cards in view alone.
"""

import base64
import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import matplotlib
import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from explain.cases import Ints, Maps
from explain.faithfulness import Faithfulness
from explain.gallery import METHODS, OPACITY, smaller
from explain.metrics import Calibration, top_confusions
from explain.neighbours import Neighbours
from explain.options import WORDS, GradcamOptions
from explain.study import Study
from ground.files import MARK
from pipeline.split import UInt8

MAP_BYTES = 2_900_000  # of all maps before base64: with 2,000 pictures (4.6 MB) the page stays under 9 MB
LOSSLESS_BYTES = 12_000_000  # of all pictures before compression to a third: beyond it, WebP of quality 90
SHEET_BYTES = 60_000_000  # the same: beyond it, smaller pictures
WEBP_SIDE = 16_383  # pixels, of the format
TILE_BYTES = 1_700_000  # of training images at most, in base64; maps then have half of MAP_BYTES
LEVELS = 127
TABLE = 20  # classes: of more, a table of all pairs is too large to read
CONFUSIONS = 60  # pairs that are listed instead of it


def render(
    study: Study,
    maps: Maps,
    checks: Faithfulness | None,
    options: GradcamOptions | None,
    source: str,
    figures: Sequence[str] = (),
    near: Neighbours | None = None,
) -> bytes:
    """The whole page in UTF-8, of maps of several classes; `options`: None where heatmaps.npz does not lie
    beside it; `source`: words for the model; `figures`: lines that are shown as they are; `near`: what the
    cases are like."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), undefined=jinja2.StrictUndefined,
        autoescape=True, trim_blocks=True, lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    fitting = averaged(maps.values, MAP_BYTES // (2 if near else 1))
    data = _data(maps, fitting, options or GradcamOptions())
    sheet, columns, side = sprites(study.cases.pictures)
    if near:
        lists = {name: getattr(near, name).tolist() for name in ("nearest", "likeness", "labels")}
        names = ("sheet", "columns", "side")
        tiles = dict(zip(names, sprites(near.pictures, TILE_BYTES), strict=True))
        data["near"] = lists | tiles | {"names": near.names}
    text = environment.get_template("page.html.j2").render(
        mark=MARK.decode(), source=source, figures=figures, method=METHODS[maps.method],
        study=study, alone=options is None, cases=study.cases, maps=maps, fitting=fitting, checks=checks,
        confusions=[] if study.matrix is None else top_confusions(study.matrix, CONFUSIONS),
        table=len(study.cases.classes) <= TABLE, class_bars=class_bars, reliability=reliability,
        sheet=sheet, side=side, data=data | {"side": side, "columns": columns},
    )
    return text.encode("utf-8", "surrogateescape")


def class_bars(matrix: Ints) -> list[tuple[int, int, int, float]]:
    """(class, its errors, its images, errors over images) of each true class; of many, the largest share first."""
    wrong, images = matrix.sum(1) - np.diag(matrix), matrix.sum(1)
    shares = wrong / np.maximum(images, 1)
    order = np.arange(len(matrix)) if len(matrix) <= TABLE else np.argsort(-shares, kind="stable")
    return [(int(i), int(wrong[i]), int(images[i]), float(shares[i])) for i in order]


def averaged(maps: Tensor, most: int = MAP_BYTES) -> Tensor:
    """Raw maps (E, T, h, w) of `most` cells at most; where they have more, means of neighbours."""
    count = max(1, maps.shape[0] * maps.shape[1])
    side = max(4, math.isqrt(most // count))
    return maps if max(maps.shape[-2:]) <= side else F.adaptive_avg_pool2d(maps, side)


def quantise(maps: Tensor) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Cells (E, T, h, w) int8 and scales (E, T) float32: cells * scale are the maps to half a scale."""
    values = maps.double().numpy()
    scales = np.abs(values).max((2, 3), initial=0) / LEVELS
    cells = values / np.where(scales > 0, scales, 1)[..., None, None]
    cells = np.where((cells > 0) & (cells < 0.5), 1, cells.round())  # positive stays positive
    return cells.astype(np.int8), scales.astype(np.float32)


def sprites(pictures: UInt8, most: int = 0) -> tuple[str, int, int]:
    """A data URL of one WebP of pictures (E, S, S, 3); how many in a row; their side in pixels.

    With `most` at a lower quality, and smaller until the URL has no more bytes, or they 8 pixels.
    """
    count = len(pictures)
    columns = math.isqrt(max(0, count - 1)) + 1
    rows = max(1, -(-count // columns))
    pictures = smaller(pictures, min(WEBP_SIDE // columns, max(16, math.isqrt(SHEET_BYTES // (3 * rows * columns)))))
    side = pictures.shape[1]
    tiles = np.zeros((rows * columns, side, side, 3), np.uint8)
    tiles[:count] = pictures
    sheet = tiles.reshape(rows, columns, side, side, 3).swapaxes(1, 2).reshape(rows * side, columns * side, 3)
    buffer = io.BytesIO()
    lossless, quality = pictures.nbytes <= LOSSLESS_BYTES and not most, 75 if most else 90
    Image.fromarray(sheet).save(buffer, "WEBP", lossless=lossless, quality=quality, method=4)
    url = "data:image/webp;base64," + _base64(buffer.getvalue())
    if most and len(url) > most and side > 8:
        less = min(side - 1, int(side * (most / len(url)) ** 0.5))
        return sprites(smaller(pictures, max(8, less)), most)
    return url, columns, side


def reliability(calibration: Calibration) -> list[dict[str, float]]:
    """The calibration chart's bars, one a bin that holds images: how many, and all else in 0..1."""
    images = calibration.images
    left, share = np.arange(len(images)) / len(images), images / max(1, images.max())
    rows = np.stack([left, images, share, calibration.confidence, calibration.accuracy], 1)[images > 0]
    return [dict(zip(("left", "images", "share", "confidence", "accuracy"), row, strict=True)) for row in rows.tolist()]


def _data(maps: Maps, fitting: Tensor, options: GradcamOptions) -> dict[str, Any]:
    """What page.js works on: lists, an entry a case. A class is its number: a name may be any text."""
    cases = maps.cases
    cells, scales = quantise(fitting)
    probabilities = np.take_along_axis(cases.probabilities, maps.classes, 1)
    start: dict[str, Any] = {"sort": options.order, "map": options.target, "true": "", "pred": ""}
    for name, flag in (("map", "target"), ("true", "true"), ("pred", "pred")):
        if getattr(options, flag) not in WORDS[flag]:
            start[name] = cases.classes.index(getattr(options, flag))
    return {
        "classes": cases.classes,
        "split": cases.name,
        "rival": cases.rival_is,
        "files": cases.files or None,
        "links": [quote(os.path.abspath(name), errors="surrogateescape") for name in cases.files] or None,
        "index": cases.index.tolist(),
        "true": cases.rival.tolist(),
        "predicted": cases.predicted.tolist(),
        "shown": maps.classes.tolist(),
        "probabilities": [[round(p, 6) for p in row] for row in probabilities.tolist()],
        "loss": None if cases.labels is None else [round(value, 6) for value in cases.loss.tolist()],
        "rank": cases.rank.tolist(),
        "disputed": cases.disputed.astype(int).tolist(),
        "badge": cases.badge,
        "shuffled": np.argsort(cases.select("random", seed=options.seed)).tolist(),
        "grid": list(fitting.shape[-2:]),
        "cells": _base64(cells),
        "scales": _base64(scales.astype("<f4")),
        "sequential": _base64(matplotlib.colormaps["inferno"](range(256), bytes=True)[:, :3]),
        "diverging": _base64(matplotlib.colormaps["PuOr_r"](range(256), bytes=True)[:, :3]),
        "opacity": OPACITY,
        "start": start,
    }


def _base64(data: bytes | npt.NDArray[Any]) -> str:
    return base64.b64encode(data if isinstance(data, bytes) else data.tobytes()).decode()
