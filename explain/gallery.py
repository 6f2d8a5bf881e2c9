"""The picture: a row for each error with the input, the evidence for the predicted and the true class, and the margin.

Drawn pixel by pixel with Pillow: images are enlarged by whole factors (nearest), so a pixel stays a square, and text is
8 pt or more at 150 dots an inch. Colours are safe for colour-blind readers, and no statement rests on colour alone.
`python gradcam.py` writes it.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from explain.cam import display
from explain.errors import Errors, Ints, Maps, class_number
from pipeline.cifar10 import CLASSES, UInt8

DPI = 150
ZOOM = 6
SIDE = 32
TILE = SIDE * ZOOM
GAP = 14
MARGIN = 32
TEXT_WIDTH = 284
LONGEST = 22  # letters of a file's name
CAPTION = 26
HEADING = 60
ROW = TILE + CAPTION + GAP
OPACITY = 0.65
"""Of the strongest evidence, so that the object stays visible under it."""
INK, LINE, PAPER = "#1a1a1a", "#d0d0d0", "#ffffff"
METHODS = {"gradcam": "Grad-CAM", "hirescam": "HiResCAM"}


@dataclass(frozen=True, eq=False)
class Column:
    """One picture of every row."""

    heading: tuple[str, str]
    captions: list[str]
    tiles: UInt8
    """(n, S, S, 3)."""


def draw(
    errors: Errors,
    maps: Maps,
    positions: Ints,
    images: UInt8,
    choice: str,
    source: str,
    on_row: Callable[[], None] = lambda: None,
) -> bytes:
    """The PNG of the errors at `positions`.

    Args:
        errors: all errors, for the header and the rows' text.
        maps: of all errors.
        positions: (n,) which errors to draw, in this order.
        images: (n, S, S, 3) uint8, their pictures; S divides TILE.
        choice: words for which errors these are, such as "largest loss first".
        source: words for the model that erred.
        on_row: called after each row.
    """
    columns = [Column(("input", f"{images.shape[1]} x {images.shape[2]} pixels"), [""] * len(images), images)]
    columns += _maps(errors, maps, positions, images)
    header = _header(errors, maps, len(positions), choice, source)
    sheets = 1 if len(positions) <= 12 else 2 if len(positions) <= 60 else 4  # columns of rows: one fits a page's width
    rows = -(-len(positions) // sheets)
    sheet_width = TEXT_WIDTH + len(columns) * (TILE + GAP)
    top = MARGIN + 44 + 27 * (len(header) - 1) + 84
    canvas = Image.new(
        "RGB", (MARGIN + sheets * (sheet_width + MARGIN), top + bool(rows) * HEADING + rows * ROW + MARGIN), PAPER
    )
    pen = Pen(canvas)
    pen.text((MARGIN, MARGIN), header[0], points=13, bold=True)
    for i, line in enumerate(header[1:]):
        pen.text((MARGIN, MARGIN + 44 + 27 * i), line, points=9)
    if rows:
        _colour_bars(pen, MARGIN, top - 72, errors.rival)
    for sheet in range(sheets if rows else 0):
        for place, column in enumerate(columns):
            centre = MARGIN + sheet * (sheet_width + MARGIN) + TEXT_WIDTH + place * (TILE + GAP) + TILE // 2
            pen.text((centre, top), column.heading[0], points=9, bold=True, centred=True)
            pen.text((centre, top + 24), column.heading[1], centred=True)
    for i, position in enumerate(positions.tolist()):
        sheet, row = divmod(i, rows)
        left, y = MARGIN + sheet * (sheet_width + MARGIN), top + HEADING + row * ROW
        pen.line((left, y - GAP // 2, left + sheet_width - GAP, y - GAP // 2))
        _describe(pen, errors, position, (left, y))
        for place, column in enumerate(columns):
            x = left + TEXT_WIDTH + place * (TILE + GAP)
            tile = Image.fromarray(column.tiles[i]).resize((TILE, TILE), Image.Resampling.NEAREST)
            canvas.paste(tile, (x, y))
            pen.text((x + TILE // 2, y + TILE + 3), column.captions[i], centred=True)
        on_row()
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG", dpi=(DPI, DPI))
    return buffer.getvalue()


def overlay(images: UInt8, shown: Tensor, signed: bool = False) -> UInt8:
    """Heat over pictures, both of one size: images (N, S, S, 3) uint8 and maps (N, S, S) as `cam.display` gives them.

    The opacity grows with the evidence up to OPACITY, so a picture is hidden only as far as its evidence is strong.
    Signed maps lie in orange (positive) and purple (negative) on the picture's grey.
    """
    values = shown.numpy()
    if signed:
        grey = images @ np.array([0.299, 0.587, 0.114])
        base, heat = np.repeat(grey[..., None], 3, -1), matplotlib.colormaps["PuOr_r"]((values + 1) / 2)
    else:
        base, heat = images.astype(np.float64), matplotlib.colormaps["inferno"](values)
    alpha = OPACITY * np.abs(values)[..., None]
    return np.asarray((1 - alpha) * base + alpha * 255 * heat[..., :3]).round().astype(np.uint8)


class Pen:
    """Text in points and thin lines on a picture of DPI dots an inch."""

    def __init__(self, canvas: Image.Image) -> None:
        self.canvas = canvas
        self._draw = ImageDraw.Draw(canvas)
        self._folder = Path(matplotlib.get_data_path(), "fonts", "ttf")

    def text(
        self, place: tuple[int, int], text: str, points: float = 8, bold: bool = False, centred: bool = False
    ) -> int:
        """Write one line below `place`, its left end or its middle; returns its width in pixels."""
        name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
        font = ImageFont.truetype(self._folder / name, round(points * DPI / 72))
        self._draw.text(place, text, fill=INK, font=font, anchor="ma" if centred else "la")
        return round(font.getlength(text))

    def line(self, ends: tuple[int, int, int, int]) -> None:
        self._draw.line(ends, fill=LINE, width=1)

    def box(self, corners: tuple[int, int, int, int]) -> None:
        self._draw.rectangle(corners, outline=INK, width=2)


def _maps(errors: Errors, maps: Maps, positions: Ints, images: UInt8) -> list[Column]:
    """The columns of heat, that of the target first."""
    method = METHODS[maps.method]
    names = np.array(CLASSES)
    predicted, true = errors.predicted[positions], errors.true[positions]

    def of_class(role: str, values: Tensor, classes: Ints) -> Column:
        shown, empty = display(values[positions], images.shape[1])
        probabilities = np.take_along_axis(errors.probabilities[positions], classes[:, None], 1)[:, 0]
        captions = [
            "no positive evidence" if nothing else f"{name} {percent(p)}"
            for name, p, nothing in zip(names[classes], probabilities.tolist(), empty.tolist(), strict=True)
        ]
        return Column((f"{method} of the", role), captions, overlay(images, shown))

    columns = {
        "pred": of_class("predicted class", maps.predicted, predicted),
        "true": of_class(f"{errors.rival} class", maps.true, true),
        "margin": Column(
            ("margin", f"predicted minus {errors.rival}"),
            [f"{a} \N{MINUS SIGN} {b}" for a, b in zip(names[predicted], names[true], strict=True)],
            overlay(images, display(maps.margin[positions], images.shape[1], signed=True)[0], signed=True),
        ),
    }
    if maps.target not in columns:
        classes = np.full_like(true, class_number(maps.target))
        columns = {maps.target: of_class(f"class {maps.target}", maps.chosen, classes), **columns}
    return [columns.pop(maps.target), *columns.values()]


def _header(errors: Errors, maps: Maps, count: int, choice: str, source: str) -> list[str]:
    right = 1 - len(errors) / errors.total
    lines = [f"{len(errors):,} errors of {errors.total:,} {errors.split} images: {right:.2%} right", source]
    if errors.files:
        lines[0] = f"{len(errors):,} pictures"
    if not count:
        return [*lines, "There is nothing to draw."]
    height, width = maps.predicted.shape[-2:]
    grid = f"{METHODS[maps.method]} at {maps.layer}, a grid of {height} x {width} cells"
    if maps.layer == "layer4":
        grid += f" of {SIDE / height:.3g} pixels: coarse; --layer layer3 shows more detail"
    return [*lines, f"{count:,} of them here, {choice}", grid]


def _describe(pen: Pen, errors: Errors, position: int, place: tuple[int, int]) -> None:
    left, top = place
    predicted, true = int(errors.predicted[position]), int(errors.true[position])
    probabilities = errors.probabilities[position]
    name = Path(errors.files[position]).name if errors.files else f"{errors.split} image {errors.index[position]}"
    pen.text((left, top), name if len(name) <= LONGEST else f"{name[: LONGEST - 9]}…{name[-8:]}", points=9, bold=True)
    lines = [
        f"predicted {CLASSES[predicted]} {percent(probabilities[predicted])}",
        f"{errors.rival} {CLASSES[true]} {percent(probabilities[true])}",
    ]
    if not errors.files:
        lines += [f"true class ranked {errors.rank[position]} of {len(CLASSES)}", f"loss {errors.loss[position]:.2f}"]
    for i, line in enumerate(lines):
        pen.text((left, top + 30 + 25 * i), line)
    if errors.disputed[position]:
        y = top + 30 + 25 * len(lines) + 6
        width = pen.text((left + 8, y), "label disputed", points=8, bold=True)
        pen.box((left, y - 4, left + width + 16, y + 22))


def _colour_bars(pen: Pen, left: int, top: int, rival: str) -> None:
    """What the colours mean, drawn over mid grey as over a picture: evidence from 0 to 1, margins from -1 to 1."""
    for x, start, ticks, title in (
        (left, 0, ("0", "0.5", "1"), "evidence for a class, as a share of its map's maximum"),
        (left + 560, -1, (rival, "0", "predicted"), "margin: which of the two classes a place speaks for"),
    ):
        width, height = 320, 18
        grey = np.full((1, 1, width, 3), 128, np.uint8)
        ramp = overlay(grey, torch.linspace(start, 1, width)[None, None], signed=start < 0)[0]
        pen.text((x, top), title, points=8)
        pen.canvas.paste(Image.fromarray(ramp).resize((width, height)), (x, top + 25))
        for i, tick in enumerate(ticks):
            pen.text((x + i * width // 2, top + 25 + height + 2), tick, points=8, centred=True)


def percent(probability: float) -> str:
    """Three digits, and no 0% or 100% for what is neither: 97.3%, 0.24%, <0.01%."""
    if probability < 1e-4:
        return "<0.01%"
    return f"{min(probability, 0.9999):.2%}" if not 0.01 <= probability <= 0.999 else f"{probability:.1%}"
