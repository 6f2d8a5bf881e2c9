"""The picture: a row for each case with the input, the evidence for the predicted and the true class, and the margin.

Drawn pixel by pixel with Pillow: images are enlarged by whole factors (nearest), so a pixel stays a square, and text is
8 pt or more at 150 dots an inch. Colours are safe for colour-blind readers, and no statement rests on colour alone.
`python gradcam.py` writes it.
"""

import io
import math
from itertools import product
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from engine.model import resize
from explain.cam import METHODS, display
from explain.cases import Cases, Ints, Maps
from ground.files import MARK
from ground.terminal import printable, tracked
from pipeline.split import UInt8

DPI = 150
TILE, GAP, MARGIN, TEXT_WIDTH, HEADING = 192, 14, 32, 284, 60  # pixels
ROW = TILE + 26 + GAP  # with the caption
OPACITY = 0.65  # of the strongest evidence, so that the object stays visible under it
INK, LINE, PAPER = "#1a1a1a", "#d0d0d0", "#ffffff"


class Column(NamedTuple):
    """One picture of every row."""

    heading: tuple[str, str]
    captions: list[str]
    tiles: UInt8  # (n, S, S, 3)


def draw(maps: Maps, positions: Ints, choice: str, source: str) -> bytes:
    """The PNG of the cases at `positions` (n,); words for which these are, and for the model."""
    cases, columns = maps.cases, _columns(maps, positions)
    header = _header(maps, len(positions), choice, source)
    # One sheet is as wide as a page; a row of it:  TEXT_WIDTH | TILE | GAP | TILE | GAP ...
    sheets = 1 if len(positions) <= 12 else 2 if len(positions) <= 60 else 4
    rows = -(-len(positions) // sheets)
    offsets = [TEXT_WIDTH + k * (TILE + GAP) for k in range(len(columns))]
    sheet_width = offsets[-1] + TILE + GAP
    lefts = [MARGIN + k * (sheet_width + MARGIN) for k in range(sheets)]
    top = MARGIN + 44 + 27 * (len(header) - 1) + 84
    height = top + bool(rows) * HEADING + rows * ROW + MARGIN
    canvas = Image.new("RGB", (lefts[-1] + sheet_width + MARGIN, height), PAPER)
    pen, room = Pen(canvas), canvas.width - 2 * MARGIN
    pen.text((MARGIN, MARGIN), header[0], points=13, bold=True, room=room)
    for i, line in enumerate(header[1:]):
        pen.text((MARGIN, MARGIN + 44 + 27 * i), line, points=9, room=room)
    if rows:
        _colour_bars(pen, MARGIN, top - 72, cases.rival_is)
        for left, (offset, column) in product(lefts, zip(offsets, columns, strict=True)):
            centre = left + offset + TILE // 2
            pen.text((centre, top), column.heading[0], points=9, bold=True, centred=True)
            pen.text((centre, top + 24), column.heading[1], centred=True, room=TILE + GAP)
    for i, position in enumerate(tracked(positions.tolist(), "drawing", len(positions))):
        left, y = lefts[i // rows], top + HEADING + i % rows * ROW
        pen.draw.line((left, y - GAP // 2, left + sheet_width - GAP, y - GAP // 2), fill=LINE, width=1)
        _describe(pen, cases, position, (left, y))
        for offset, column in zip(offsets, columns, strict=True):
            x, tile = left + offset, enlarged(column.tiles[i])
            canvas.paste(tile, (x + (TILE - tile.width) // 2, y + (TILE - tile.height) // 2))
            pen.text((x + TILE // 2, y + TILE + 3), column.captions[i], centred=True, room=TILE + GAP)
    buffer, info = io.BytesIO(), PngInfo()
    info.add_text("Software", MARK.decode())
    canvas.save(buffer, "PNG", dpi=(DPI, DPI), pnginfo=info)
    return buffer.getvalue()


def enlarged(tile: UInt8) -> Image.Image:
    """A picture of at most TILE pixels a side by the largest whole factor that keeps it so; to TILE where that is 1."""
    zoom = TILE // len(tile)
    if zoom < 2:
        return Image.fromarray(tile).resize((TILE, TILE), Image.Resampling.BICUBIC)
    return Image.fromarray(tile.repeat(zoom, 0).repeat(zoom, 1))


def smaller(pictures: UInt8, side: int) -> UInt8:
    """Pictures (N, S, S, 3) no larger than side x side, as they are if they fit; averaged down else."""
    if pictures.shape[1] <= side:
        return pictures
    parts = torch.from_numpy(pictures).permute(0, 3, 1, 2).split(250)  # resizing takes four bytes a value
    return torch.cat([resize(part, side) for part in parts]).permute(0, 2, 3, 1).numpy()


def overlay(images: UInt8, shown: Tensor, signed: bool = False) -> UInt8:
    """Heat over images (N, S, S, 3) uint8, of maps (N, S, S) as `cam.display` gives them."""
    values = shown.numpy()
    if signed:  # orange (positive) and purple (negative)
        grey = images @ np.array([0.299, 0.587, 0.114])
        base, heat = np.repeat(grey[..., None], 3, -1), matplotlib.colormaps["PuOr_r"]((values + 1) / 2)
    else:
        base, heat = images.astype(np.float64), matplotlib.colormaps["inferno"](values)
    alpha = OPACITY * np.abs(values)[..., None]
    return np.asarray((1 - alpha) * base + alpha * 255 * heat[..., :3]).round().astype(np.uint8)


class Pen:
    """Text in points and thin lines on a picture of DPI dots an inch."""

    def __init__(self, canvas: Image.Image) -> None:
        self.canvas, self.draw = canvas, ImageDraw.Draw(canvas)

    def text(
        self, place: tuple[int, int], text: str, points: float = 8,
        bold: bool = False, centred: bool = False, room: float = math.inf,
    ) -> int:
        """Write one line below `place`, its middle left out beyond `room`; returns its width."""
        name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
        path = Path(matplotlib.get_data_path(), "fonts", "ttf", name)
        font = ImageFont.truetype(path, round(points * DPI / 72))
        shown = text = printable(text)  # a name may hold what no font can draw
        left = len(text)
        while font.getlength(shown) > room and left > 1:
            left -= 1
            shown = f"{text[: left - left // 2]}…{text[len(text) - left // 2 :]}"
        self.draw.text(place, shown, fill=INK, font=font, anchor="ma" if centred else "la")
        return round(font.getlength(shown))


def _columns(maps: Maps, positions: Ints) -> list[Column]:
    """The input, then the heat, that of the target first."""
    cases, method, names = maps.cases, METHODS[maps.method], np.array(maps.cases.classes)
    pictures = cases.pictures[positions]
    height, width = pictures.shape[1:3]
    original = Column(("input", f"{width} x {height} pixels"), [""] * len(pictures), smaller(pictures, TILE))
    images = original.tiles

    def heat(values: Tensor, signed: bool = False) -> tuple[UInt8, list[bool]]:
        shown, empty = display(values[positions], images.shape[1], signed)
        return overlay(images, shown, signed), empty.tolist()

    roles = {"pred": ("predicted class", cases.predicted), "true": (f"{cases.rival_is} class", cases.rival)}
    if maps.target not in (*roles, "margin"):
        roles = {maps.target: (f"class {maps.target}", cases.every(maps.target)), **roles}
    columns = {}
    for target, (role, classes) in roles.items():
        tiles, empty = heat(maps.of(classes))
        probabilities = cases.probability(classes)[positions].tolist()
        rows = zip(names[classes[positions]], probabilities, empty, strict=True)
        captions = ["no positive evidence" if nothing else f"{name} {percent(p)}" for name, p, nothing in rows]
        columns[target] = Column((f"{method} of the", role), captions, tiles)

    short = [name if len(name) <= 10 else f"{name[:9]}…" for name in cases.classes]
    pairs = zip(cases.predicted[positions], cases.rival[positions], strict=True)
    captions = [f"{short[a]} \N{MINUS SIGN} {short[b]}" for a, b in pairs]
    heading = "margin", f"predicted minus {cases.rival_is}"
    columns["margin"] = Column(heading, captions, heat(maps.margin, signed=True)[0])
    return [original, columns.pop(maps.target), *columns.values()]


def _header(maps: Maps, count: int, choice: str, source: str) -> list[str]:
    cases = maps.cases
    right = 1 - len(cases) / cases.total
    title = f"{len(cases):,} errors of {cases.total:,} {cases.name} images: {right:.2%} right"
    lines = [title, *source.splitlines()]
    if cases.labels is None:
        lines[0] = f"{len(cases):,} pictures"
    if not count:
        return [*lines, "There is nothing to draw."]
    height, width = maps.values.shape[-2:]
    grid = f"{METHODS[maps.method]} at {maps.layer}, a grid of {height} x {width} cells"
    if maps.layer == "layer4":
        pixels = cases.pictures.shape[1] / height
        grid += f" of {pixels:.3g} pixels: coarse; --layer layer3 shows more detail"
    return [*lines, f"{count:,} of them here, {choice}", grid]


def _describe(pen: Pen, cases: Cases, position: int, place: tuple[int, int]) -> None:
    left, top = place
    predicted, rival = cases.predicted[position], cases.rival[position]
    probabilities, room = cases.probabilities[position], TEXT_WIDTH - GAP
    pen.text((left, top), Path(cases.title(position)).name, points=9, bold=True, room=room)
    pairs = (("predicted", predicted), (cases.rival_is, rival))
    lines = [f"{role} {cases.classes[k]} {percent(probabilities[k])}" for role, k in pairs]
    if cases.labels is not None:
        lines.append(f"true class ranked {cases.rank[position]} of {len(cases.classes)}")
        lines.append(f"loss {cases.loss[position]:.2f}")
    for i, line in enumerate(lines):
        pen.text((left, top + 30 + 25 * i), line, room=room)
    if cases.disputed[position]:
        y = top + 30 + 25 * len(lines) + 6
        width = pen.text((left + 8, y), cases.badge, points=8, bold=True)
        pen.draw.rectangle((left, y - 4, left + width + 16, y + 22), outline=INK, width=2)


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
