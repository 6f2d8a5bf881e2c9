"""explain/gallery.py and outputs.py: the pixels, the words and the bytes."""

import csv
import io
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from explain import gallery, outputs
from explain.cam import display
from explain.cases import Cases
from tests.cases import CLASSES, layer4_maps, made_up

PAIRS = {"labels": [1, 0, 3, 9], "predicted": [0, 1, 5, 8]}  # the longest names of CIFAR-10 among them


def long_names(count: int, side: int = 32, **fields: Any) -> Cases:
    """Errors of a validation set of 400 between PAIRS, every second label disputed."""
    cases = made_up(count, side=side)
    labels, predicted = (np.resize(numbers, count) for numbers in PAIRS.values())
    cases.logits[np.arange(count), predicted] += 12
    disputed = np.arange(count) % 2 == 0
    return replace(cases, **{"name": "validation", "total": 400, "labels": labels, "disputed": disputed} | fields)


def picture(cases: Cases, target: str = "pred", chosen: list[int] | None = None) -> np.ndarray:
    positions = np.array(range(len(cases)) if chosen is None else chosen, np.int64)
    png = gallery.draw(layer4_maps(cases, target), positions, "largest loss first", "model.pt")
    image = Image.open(io.BytesIO(png))
    assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)
    return packed(np.array(image))


def packed(image: np.ndarray) -> np.ndarray:
    """One number a pixel."""
    return np.array(Image.fromarray(image).convert("RGBA")).view(np.uint32)[..., 0]


def find(canvas: np.ndarray, tile: np.ndarray) -> list[tuple[int, int]]:
    """Where a tile lies on the canvas, enlarged by the largest whole factor up to 192 pixels, every pixel equal."""
    zoom = 192 // len(tile)
    large = packed(tile).repeat(zoom, 0).repeat(zoom, 1)
    size = len(large)
    corners = np.argwhere(canvas[: 1 - size, : 1 - size] == large[0, 0])
    return [(int(x), int(y)) for y, x in corners if np.array_equal(canvas[y : y + size, x : x + size], large)]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float, int, int]]:
    """Every line that is written: its words, points, left and right end; none leaves the picture or its room."""
    lines: list[tuple[str, float, int, int]] = []
    write = gallery.Pen.text

    def watched(self, place, text, points=8, bold=False, centred=False, room=math.inf):
        width = write(self, place, text, points, bold, centred, room)
        left = place[0] - (width // 2 if centred else 0)
        lines.append((text, points, left, left + width))
        assert left >= 0 and left + width <= self.canvas.width and width <= room, text
        return width

    monkeypatch.setattr(gallery.Pen, "text", watched)
    return lines


# Overlays


def test_opacity_grows_with_the_evidence_and_never_hides_the_picture():
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    values = torch.zeros(3, 32, 32)
    assert np.array_equal(gallery.overlay(images, values), images)
    values[1] = 1
    values[2] = 0.5
    heated = gallery.overlay(images, values).astype(int)
    assert np.array_equal(heated[0], images[0])
    bright, middle = np.array([252, 255, 164]), np.array([188, 55, 84])  # inferno at 1 and at 0.5
    assert np.abs(heated[1] - (0.35 * images[1] + 0.65 * bright)).max() <= 1.5
    assert np.abs(heated[2] - (0.675 * images[2] + 0.325 * middle)).max() <= 1.5


def test_margins_tell_their_sign_by_colour_on_grey():
    images = np.full((1, 32, 32, 3), 120, np.uint8)
    values = torch.linspace(-1, 1, 32)[None, None].expand(1, 32, 32)
    row = gallery.overlay(images, values, signed=True)[0, 0].astype(int)
    red, _, blue = row.T
    assert (blue[:12] > red[:12]).all() and (red[-12:] > blue[-12:]).all()
    coloured = gallery.overlay(np.full((1, 32, 32, 3), (200, 30, 90), np.uint8), torch.zeros(1, 32, 32), signed=True)
    assert np.ptp(coloured[0, 0, 0].astype(int)) == 0


# The picture


ORDERS = {
    "pred": ["predicted", "rival", "margin"],
    "true": ["rival", "predicted", "margin"],
    "margin": ["margin", "predicted", "rival"],
    "frog": ["chosen", "predicted", "rival", "margin"],
}


@pytest.mark.parametrize(("target", "order"), ORDERS.items())
def test_each_row_shows_its_own_image_and_its_own_maps(target: str, order: list[str]):
    cases, chosen, previous = long_names(6), [4, 1, 5], 0
    maps = layer4_maps(cases, target)
    canvas = picture(cases, target, chosen)
    for position in chosen:
        image = cases.pictures[position : position + 1]
        tiles = [image]
        for name in order:
            shown, _ = display(getattr(maps, name)[position : position + 1], 32, signed=name == "margin")
            tiles.append(gallery.overlay(image, shown, signed=name == "margin"))
        places = [find(canvas, tile[0])[:1] for tile in tiles]
        assert all(places), (position, places)
        assert len({y for ((_, y),) in places}) == 1
        assert [x for ((x, _),) in places] == sorted(x for ((x, _),) in places)
        assert places[0][0][1] > previous
        previous = places[0][0][1]
    for left_out in (0, 2, 3):
        assert not find(canvas, cases.pictures[left_out])


@pytest.mark.parametrize(
    ("count", "side", "tile"),
    [(1, 28, 168), (12, 32, 192), (13, 32, 192), (61, 32, 192), (2, 50, 150), (2, 192, 192)],
)
def test_all_are_drawn_pixel_by_pixel_and_the_picture_stays_near_a_page(count: int, side: int, tile: int):
    cases = long_names(count, side)
    canvas = picture(cases)
    for i in {0, count // 2, count - 1}:
        assert len(find(canvas, cases.pictures[i])) == 1
    height, width = canvas.shape
    assert height <= 3200 or height < 2 * width
    assert gallery.enlarged(cases.pictures[0]).size == (tile, tile)


def test_pictures_larger_than_their_place_are_made_smaller(written):
    cases = long_names(2, 250)
    small = gallery.smaller(cases.pictures, 192)
    assert len(find(picture(cases), small[1])) == 1
    assert np.abs(small.mean((1, 2)) - cases.pictures.mean((1, 2))).max() < 1
    text = " | ".join(line for line, *_ in written)
    assert "250 x 250 pixels" in text and "a grid of 4 x 4 cells of 62.5 pixels" in text


def test_words_are_large_enough_and_stay_inside_their_column(written):
    picture(long_names(4), "frog")
    picture(long_names(1))
    assert min(points for _, points, _, _ in written) >= 8
    text = " | ".join(line for line, *_ in written)
    for needed in (
        "4 errors of 400 validation images: 99.00% right | model.pt |",
        "4 of them here, largest loss first | Grad-CAM at layer4, a grid of 4 x 4 cells of 8 pixels: coarse",
        f"validation image {long_names(4).index[2]}",
        "label disputed",
        "true class ranked ",
        "predicted automobile 9",
        "class frog",
    ):
        assert needed in text, needed
    for line, _, left, right in written:
        if line.startswith(("predicted automobile", "true automobile", "validation image")):
            assert right <= gallery.MARGIN + gallery.TEXT_WIDTH, line
        if line[:4] in ("auto", "airp", "no p", "Grad") and " at " not in line:
            assert right - left <= gallery.TILE + gallery.GAP, line


def test_long_names_of_classes_and_files_lose_their_middle(written):
    names = ("a flatcoated retriever that waits", "W" * 40)
    files = (f"holiday/{'W' * 60}.png", "b/short.png")
    cases = made_up(2, names, labels=None, files=files, name="own", total=2)
    picture(cases, names[1])
    text = " | ".join(line for line, *_ in written)
    assert "2 pictures" in text and "second a flat" in text and "short.png" in text and "| loss" not in text
    assert "WWWWWWWWW…" in text  # in the margin's words
    rows = [(left, right) for line, _, left, right in written if "WWW" in line or "retriever" in line]
    assert all(right - left <= gallery.TEXT_WIDTH for left, right in rows if left < gallery.TEXT_WIDTH)


def test_maps_without_positive_evidence_say_so(written):
    cases = long_names(3)
    cases.class_maps[:] = 1.0
    cases.class_maps[1, cases.rival[1]] = -1.0
    picture(cases)
    assert [line for line, *_ in written].count("no positive evidence") == 1


def test_percentages_never_claim_none_or_all():
    texts = [gallery.percent(p) for p in (0.9731, 0.00241, 1e-9, 0.99999, 1.0, 0.5)]
    assert texts == ["97.3%", "0.24%", "<0.01%", "99.99%", "99.99%", "50.0%"]


# The files beside it


def test_the_table_holds_every_error():
    cases = long_names(9)
    rows = list(csv.DictReader(io.StringIO(outputs.table(cases).decode())))
    assert tuple(rows[0]) == outputs.COLUMNS
    assert [int(row["index"]) for row in rows] == cases.index.tolist()
    for i, row in enumerate(rows):
        assert (row["true"], row["predicted"]) == (CLASSES[cases.rival[i]], CLASSES[cases.predicted[i]])
        assert float(row["p_predicted"]) == pytest.approx(cases.probabilities[i].max(), abs=1e-6)
        assert float(row["p_true"]) == pytest.approx(cases.probabilities[i, cases.rival[i]], abs=1e-6)
        assert float(row["loss"]) == pytest.approx(cases.loss[i], abs=1e-6)
        assert (int(row["rank_of_true"]), int(row["label_disputed"])) == (cases.rank[i], int(cases.disputed[i]))
    assert outputs.table(made_up(0)).decode().splitlines() == [",".join(outputs.COLUMNS)]


def test_the_archive_holds_every_map_and_needs_no_pickle():
    cases = long_names(9)
    maps = layer4_maps(cases, "margin", several=False)
    data = outputs.archive(maps)
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        rows = np.arange(9)
        assert np.array_equal(archive["index"], cases.index)
        predicted, true = (cases.class_maps.numpy()[rows, classes] for classes in (cases.predicted, cases.rival))
        for name, values in (("predicted_maps", predicted), ("true_maps", true), ("maps", predicted - true)):
            assert np.array_equal(archive[name], values)
        assert np.array_equal(archive["layer4_class_maps"], cases.class_maps.numpy())
        words = [str(archive[name]) for name in ("layer", "method", "target")]
        assert words == ["layer4", "gradcam", "margin"]
        assert archive["classes"].tolist() == list(CLASSES)
    assert outputs.archive(layer4_maps(long_names(9), "margin", several=False)) == data
