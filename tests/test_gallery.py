"""explain/gallery.py and outputs.py: the pixels, the words and the bytes."""

import csv
import io

import numpy as np
import pytest
import torch
from PIL import Image

from explain import gallery, outputs
from explain.cam import display
from explain.errors import Errors, Maps
from pipeline.cifar10 import CLASSES


def made_up(count: int) -> tuple[Errors, np.ndarray]:
    """Errors of a set of 400 and their pictures; the classes with the longest names among them, labels disputed."""
    random = np.random.default_rng(0)
    true = np.resize([1, 0, 3, 9], count)
    predicted = np.resize([0, 1, 5, 8], count)
    logits = torch.from_numpy(random.normal(size=(count, 10))).float()
    logits[np.arange(count), predicted] += 9
    errors = Errors(
        split="validation",
        total=400,
        index=np.arange(count) * 2,
        true=true,
        predicted=predicted,
        probabilities=logits.double().softmax(1).numpy(),
        loss=random.random(count) * 10,
        rank=np.full(count, 10),
        disputed=np.arange(count) % 2 == 0,
        logits=logits,
        class_maps=torch.from_numpy(random.normal(size=(count, 10, 4, 4))).float(),
        inputs=torch.zeros(count, 3, 32, 32, dtype=torch.uint8),
    )
    return errors, random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def maps_of(errors: Errors, target: str = "pred") -> Maps:
    rows = torch.arange(len(errors))
    predicted, true, frog = (
        errors.class_maps[rows, torch.from_numpy(c)] for c in (errors.predicted, errors.true, errors.true * 0 + 6)
    )
    chosen = {"pred": predicted, "true": true, "margin": predicted - true, "frog": frog}[target]
    return Maps("layer4", "gradcam", target, 4000, predicted, true, chosen)


def picture(count: int, target: str = "pred", chosen: list[int] | None = None) -> np.ndarray:
    errors, images = made_up(count)
    positions = np.array(range(count) if chosen is None else chosen, np.int64)
    png = gallery.draw(errors, maps_of(errors, target), positions, images[positions], "largest loss first", "model.pt")
    image = Image.open(io.BytesIO(png))
    assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)
    return packed(np.array(image))


def packed(image: np.ndarray) -> np.ndarray:
    """One number a pixel."""
    return image.astype(np.uint32) @ np.array([1, 256, 65536], np.uint32)


def find(canvas: np.ndarray, tile: np.ndarray) -> list[tuple[int, int]]:
    """Where a 32 x 32 tile lies on the canvas, enlarged six times, every pixel equal."""
    large = packed(tile).repeat(6, 0).repeat(6, 1)
    corners = np.argwhere(canvas[:-191, :-191] == large[0, 0])
    return [(int(x), int(y)) for y, x in corners if np.array_equal(canvas[y : y + 192, x : x + 192], large)]


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


@pytest.mark.parametrize(
    ("target", "order"),
    [
        ("pred", ["predicted", "true", "margin"]),
        ("true", ["true", "predicted", "margin"]),
        ("margin", ["margin", "predicted", "true"]),
        ("frog", ["chosen", "predicted", "true", "margin"]),
    ],
)
def test_each_row_shows_its_own_image_and_its_own_maps(target: str, order: list[str]):
    errors, images = made_up(6)
    maps = maps_of(errors, target)
    chosen = [4, 1, 5]
    canvas = picture(6, target, chosen)
    previous = 0
    for position in chosen:
        image = images[position : position + 1]
        tiles = [image]
        for name in order:
            values = getattr(maps, name)[position : position + 1]
            shown, _ = display(values, 32, signed=name == "margin")
            tiles.append(gallery.overlay(image, shown, signed=name == "margin"))
        places = [find(canvas, tile[0])[:1] for tile in tiles]
        assert all(places), (position, places)
        assert len({y for ((_, y),) in places}) == 1
        assert [x for ((x, _),) in places] == sorted(x for ((x, _),) in places)
        assert places[0][0][1] > previous
        previous = places[0][0][1]
    for left_out in (0, 2, 3):
        assert not find(canvas, images[left_out])


@pytest.mark.parametrize("count", [1, 12, 13, 61])
def test_all_of_the_chosen_are_drawn_and_the_picture_stays_near_a_page(count: int):
    _, images = made_up(count)
    canvas = picture(count)
    for image in images[:: max(1, count // 3)]:
        assert len(find(canvas, image)) == 1
    assert len(find(canvas, images[-1])) == 1
    height, width = canvas.shape
    assert height <= 3200 or height < 2 * width


def test_words_are_large_enough_and_stay_inside_their_column(monkeypatch: pytest.MonkeyPatch):
    written: list[tuple[str, float, int, int]] = []
    write = gallery.Pen.text

    def watched(self, place, text, points=8, bold=False, centred=False):
        width = write(self, place, text, points, bold, centred)
        left = place[0] - (width // 2 if centred else 0)
        written.append((text, points, left, left + width))
        assert left >= 0 and left + width <= self.canvas.width, text
        return width

    monkeypatch.setattr(gallery.Pen, "text", watched)
    picture(4, "frog")
    picture(1)
    assert min(points for _, points, _, _ in written) >= 8
    text = " | ".join(line for line, *_ in written)
    for needed in (
        "4 errors of 400 validation images: 99.00% right",
        "model.pt",
        "largest loss first",
        "Grad-CAM at layer4, a grid of 4 x 4 cells of 8 pixels: coarse; --layer layer3",
        "validation image 2",
        "label disputed",
        "true class ranked 10 of 10",
        "predicted automobile 9",
        "class frog",
    ):
        assert needed in text, needed
    for line, _, left, right in written:
        if line.startswith(("predicted automobile", "true automobile", "validation image")):
            assert right <= gallery.MARGIN + gallery.TEXT_WIDTH, line
        if line[:4] in ("auto", "airp", "no p", "Grad") and " at " not in line:
            assert right - left <= gallery.TILE + gallery.GAP, line


def test_maps_without_positive_evidence_say_so(monkeypatch: pytest.MonkeyPatch):
    written: list[str] = []

    def note(self, place, text, *rest, **named) -> int:
        written.append(text)
        return 0

    monkeypatch.setattr(gallery.Pen, "text", note)
    errors, images = made_up(3)
    maps = maps_of(errors)
    maps.predicted[:] = 1.0
    maps.true[:] = 1.0
    maps.true[1] = -1.0
    gallery.draw(errors, maps, np.arange(3), images, "", "")
    assert written.count("no positive evidence") == 1


def test_no_errors_give_a_picture_that_says_so():
    canvas = picture(0)
    assert canvas.shape[0] < 500 and len(np.unique(canvas)) > 2


@pytest.mark.parametrize(
    ("probability", "text"),
    [(0.9731, "97.3%"), (0.00241, "0.24%"), (1e-9, "<0.01%"), (0.99999, "99.99%"), (1.0, "99.99%"), (0.5, "50.0%")],
)
def test_percentages_never_claim_none_or_all(probability: float, text: str):
    assert gallery.percent(probability) == text


# The files beside it


def test_the_table_holds_every_error():
    errors, _ = made_up(9)
    rows = list(csv.DictReader(io.StringIO(outputs.errors_csv(errors).decode())))
    assert tuple(rows[0]) == outputs.COLUMNS
    assert [int(row["index"]) for row in rows] == errors.index.tolist()
    for i, row in enumerate(rows):
        assert (row["true"], row["predicted"]) == (CLASSES[errors.true[i]], CLASSES[errors.predicted[i]])
        assert float(row["p_predicted"]) == pytest.approx(errors.probabilities[i].max(), abs=1e-6)
        assert float(row["p_true"]) == pytest.approx(errors.probabilities[i, errors.true[i]], abs=1e-6)
        assert float(row["loss"]) == pytest.approx(errors.loss[i], abs=1e-6)
        assert (int(row["rank_of_true"]), int(row["label_disputed"])) == (10, int(errors.disputed[i]))
    assert outputs.errors_csv(made_up(0)[0]).decode().splitlines() == [",".join(outputs.COLUMNS)]


def test_the_archive_holds_every_map_and_needs_no_pickle():
    errors, _ = made_up(9)
    maps = maps_of(errors, "margin")
    data = outputs.heatmaps_npz(errors, maps)
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        assert np.array_equal(archive["index"], errors.index)
        assert np.array_equal(archive["predicted_maps"], maps.predicted.numpy())
        assert np.array_equal(archive["true_maps"], maps.true.numpy())
        assert np.array_equal(archive["maps"], (maps.predicted - maps.true).numpy())
        assert np.array_equal(archive["layer4_class_maps"], errors.class_maps.numpy())
        assert (str(archive["layer"]), str(archive["method"]), str(archive["target"])) == (
            "layer4",
            "gradcam",
            "margin",
        )
        assert archive["classes"].tolist() == list(CLASSES)
    assert outputs.heatmaps_npz(*(lambda e: (e, maps_of(e, "margin")))(made_up(9)[0])) == data
