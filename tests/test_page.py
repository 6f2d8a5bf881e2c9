"""explain/page.py: its bytes here, and the page itself in headless Chromium, against NumPy and the gallery."""

import base64
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from explain import gallery, page
from explain.cam import display
from explain.cases import Cases
from explain.faithfulness import Faithfulness, Score
from explain.options import GradcamOptions
from explain.study import Calibration, Study, confusion_matrix, top_confusions
from tests.browser import Browser, browsers
from tests.cases import CLASSES, layer4_maps, made_up

COUNT = 600


def smooth_images(count: int) -> np.ndarray:
    """(n, 32, 32, 3), as rough as CIFAR-10's test images, of which the first 2,000 take 4.52 MB as a data URL."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(count, 3, 9, 9, generator=generator)
    images = F.interpolate(coarse, (32, 32), mode="bicubic") * 20 + 128
    images += torch.randn(images.shape, generator=generator) * 1.6
    return images.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def study_of(cases: Cases) -> Study:
    """All other images are right; some cases have no evidence for class 2 or for any."""
    cases.class_maps[::7] *= 1e-7
    cases.class_maps[3::11, 2 % len(cases.classes)] *= -torch.sign(cases.class_maps[3::11, 2 % len(cases.classes)])
    if cases.labels is None:
        return Study(cases, 1.0, skipped=("notes<b>.txt: cannot identify image file",))
    right = np.arange(cases.total - len(cases)) % len(cases.classes)
    labels, predicted = (np.concatenate([some, right]) for some in (cases.labels, cases.predicted))
    bins = np.zeros(15, np.int64)
    bins[[5, 14]] = 4000, 6000
    calibration = Calibration(0.1234, bins, np.linspace(0.03, 0.97, 15), np.linspace(0, 1, 15))
    return Study(cases, 1.0, confusion_matrix(labels, predicted, len(cases.classes)), calibration)


def rendered(study: Study, checks: Faithfulness | None = None, **flags: Any) -> bytes:
    options = GradcamOptions(out="a.html", **flags)
    return page.render(study, layer4_maps(study.cases), checks, options, "model.pt: a net")


def checks() -> Faithfulness:
    score = Score(-0.25, 0.125)
    return Faithfulness(200, dict.fromkeys(("predicted", "true", "random"), score), {"true": score}, {"weights": score})


@pytest.fixture(scope="module")
def study() -> Study:
    return study_of(made_up(COUNT, cells=3, pictures=smooth_images(COUNT)))


@pytest.fixture(scope="module")
def content(study: Study) -> bytes:
    return rendered(study, checks())


# The bytes


def test_two_thousand_errors_in_a_fine_grid_stay_under_nine_megabytes():
    content = rendered(study_of(made_up(2000, cells=16, pictures=smooth_images(2000))))
    sheet = content.split(b"image/webp;base64,")[1].split(b'"')[0]
    assert len(sheet) > 4.52e6  # no easier than the real ones
    assert len(content) <= 9e6


def test_the_page_asks_nothing_of_a_network_and_is_the_same_twice(study: Study, content: bytes):
    text = content.decode()
    assert not re.search(r"(?:https?:)?//[a-z]", re.sub(r"[A-Za-z0-9+/=]{100,}", "", text))
    assert "default-src 'none'" in text
    assert rendered(study, checks()) == content


def test_the_overview_says_what_the_matrix_and_the_checks_say(study: Study, content: bytes):
    text = " ".join(re.sub(r"<[^>]*>", " ", content.decode().split("<body>")[1].split('id="sheet"')[0]).split())
    matrix = study.matrix
    assert matrix is not None
    assert "600 errors of 10,000 test images" in text and "94.00% right" in text
    for name, errors, images in zip(CLASSES, matrix.sum(1) - np.diag(matrix), matrix.sum(1), strict=True):
        assert f"{name} {errors / images:.1%} {errors} of {images:,}" in text
    assert "ECE 12.34%" in text and "\N{MINUS SIGN}0.250 ± 0.125" in text
    for true, predicted in ((0, 1), (9, 3)):
        assert f"{CLASSES[true]} taken for {CLASSES[predicted]}: {matrix[true, predicted]}" in content.decode()


def test_of_many_classes_no_table_of_all_pairs_is_drawn_and_the_worst_come_first():
    names = tuple(f"kind {i}" for i in range(120))
    study = study_of(made_up(300, names))
    assert study.matrix is not None
    text = rendered(study).decode()
    overview = text.split('id="matrix"')[1].split("</details>")[0]
    assert "<table" not in overview and overview.count("<li>") == page.CONFUSIONS
    (true, said, n), *_ = top_confusions(study.matrix, 1)
    assert f"kind {true} taken for kind {said}: {n}<" in overview.split("</li>")[0]
    shares = [float(share) for share in re.findall(r'figure">([\d.]+)%', text.split('id="bars"')[1])]
    assert len(shares) == 120 and shares == sorted(shares, reverse=True)
    data = json.loads(text.split('type="application/json">')[1].split("</script>")[0])
    assert all(len(row) == 10 for row in data["probabilities"] + data["shown"])


@pytest.mark.parametrize("count", [1, 7, 45, 46])
def test_every_picture_is_on_the_sheet_unchanged(count: int):
    images = np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    url, columns, _ = page.sprites(images)
    sheet = np.array(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))))
    for i, image in enumerate(images):
        y, x = divmod(i, columns)
        assert np.array_equal(sheet[32 * y : 32 * y + 32, 32 * x : 32 * x + 32], image)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e20])
def test_quantised_maps_are_within_half_a_level_and_keep_what_is_positive(scale: float):
    maps = torch.randn(40, 10, 4, 4, generator=torch.Generator().manual_seed(0)) * scale
    maps[0, 0] = 0
    maps[1, 1] = -scale
    maps[1, 1, 2, 2] = 1e-6 * scale  # far below a level, but the only evidence
    cells, scales = page.quantise(maps)
    restored = cells * scales[..., None, None].astype(np.float64)
    tolerance = np.abs(maps.numpy()).max((2, 3), keepdims=True) / 127
    assert (np.abs(restored - maps.numpy()) <= np.where(maps.numpy() > 0, 1.001, 0.501) * tolerance).all()
    assert np.array_equal(cells > 0, maps.numpy() > 0)


def test_maps_are_averaged_only_where_they_would_not_fit():
    small, large = torch.randn(100, 10, 16, 16), torch.rand(4000, 10, 16, 16)
    assert page.fit(small) is small
    fitted = page.fit(large)
    assert fitted.numel() <= page.MAP_BYTES < large.numel()
    assert fitted.shape[-1] == 8
    torch.testing.assert_close(fitted, large.unflatten(3, (8, 2)).unflatten(2, (8, 2)).mean((3, 5)))


def test_a_sheet_that_would_be_too_large_has_smaller_pictures(monkeypatch: pytest.MonkeyPatch):
    images = np.random.default_rng(0).integers(0, 256, (50, 64, 64, 3), dtype=np.uint8)
    monkeypatch.setattr(page, "WEBP_SIDE", 400)
    assert page.sprites(images)[1:] == (8, 50)
    monkeypatch.setattr(page, "SHEET_BYTES", 3 * 8 * 7 * 30 * 30)
    url, columns, side = page.sprites(images)
    assert (columns, side) == (8, 30)
    assert Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).size == (240, 210)


# The browser


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A function that starts a browser."""
    with browsers(lambda: tmp_path_factory.mktemp("profile")) as start_one:
        yield start_one


@pytest.fixture(scope="module")
def window(start) -> Browser:
    return start("--window-size=1300,1000")


@pytest.fixture(scope="module")
def written(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "a.html"
    path.write_bytes(content)
    return path


@pytest.fixture
def opened(window: Browser, written: Path) -> Iterator[Browser]:
    window.complaints()
    window.open(written)
    yield window
    assert window.complaints() == []


def test_it_opens_with_every_error_and_builds_only_what_is_in_view(opened: Browser, study: Study):
    assert opened.text("#count") == "600 shown"
    assert opened.shown() == study.cases.select("loss")[: len(opened.shown())].tolist()
    assert opened.run("return performance.getEntriesByType('resource').every((e) => e.name.startsWith('data:'))")
    seen = set()
    for _ in range(25):
        assert 0 < len(opened.shown()) < 100
        seen.update(opened.shown())
        opened.run("window.scrollBy(0, 700); dispatchEvent(new Event('scroll'))")
        opened.run("return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")
    end = opened.run("window.scrollTo(0, 1e9); return document.body.scrollHeight > 10000")
    opened.until(f"return document.getElementById('error-{study.cases.select('loss')[-1]}') !== null")
    assert end and len(seen) > 300


def matching(errors: Cases, wanted: np.ndarray) -> str:
    return f"{wanted.sum():,} of {len(errors):,} shown"


def test_cells_and_bars_filter(opened: Browser, study: Study):
    errors = study.cases
    opened.run('document.querySelector(\'#matrix [data-true="3"][data-pred="5"]\').click()')
    both = (errors.rival == 3) & (errors.predicted == 5)
    assert opened.text("#count") == matching(errors, both)
    assert opened.shown() == errors.select("loss", "cat", "dog").tolist()[: len(opened.shown())]
    pressed = "return [...document.querySelectorAll('[aria-pressed=true]')].map((b) => b.innerText)"
    assert opened.run(pressed) == [str(both.sum())]
    opened.run("document.querySelector('[aria-pressed=true]').click()")
    assert opened.text("#count") == "600 shown"
    opened.run("document.querySelector('#bars [data-true=\"8\"]').click()")
    assert opened.text("#count") == matching(errors, errors.rival == 8)
    opened.run("document.querySelector('#matrix thead [data-pred=\"1\"]').click()")
    assert opened.text("#count") == matching(errors, errors.predicted == 1)
    opened.keys("r")
    assert opened.text("#count") == "600 shown"


def test_ranges_the_disputed_and_their_reset(opened: Browser, study: Study):
    errors = study.cases
    confidence = errors.probability(errors.predicted)
    opened.put("confidence-from", "40")
    opened.put("confidence-to", "70")
    keep = (confidence >= 0.4) & (confidence <= 0.7)
    assert opened.text("#count") == matching(errors, keep)
    opened.put("loss-from", "2")
    opened.put("loss-to", "4.5")
    keep &= (errors.loss >= 2) & (errors.loss <= 4.5)
    assert opened.text("#count") == matching(errors, keep)
    opened.put("disputed", True)
    keep &= errors.disputed
    assert 2 < keep.sum() < 100 and opened.text("#count") == matching(errors, keep)
    assert opened.run(
        "return [...document.querySelectorAll('.card')].every((c) => c.innerText.includes('label disputed'))"
    )
    opened.put("loss-from", "99")
    assert opened.run("return !document.getElementById('nothing').hidden")
    opened.run("document.getElementById('reset').click()")
    assert opened.text("#count") == "600 shown"
    assert all(marked == errors.disputed[i] for i, marked in opened.cards("card.querySelector('.badge') !== null"))


@pytest.mark.parametrize("sort", ["loss", "confidence", "unsure", "index", "random"])
def test_orders(opened: Browser, study: Study, sort: str):
    errors = study.cases
    opened.put("sort", sort)
    expected = errors.select("confidence")[::-1] if sort == "unsure" else errors.select(sort)
    assert opened.shown() == expected[: len(opened.shown())].tolist()


def overlaid(study: Study, i: int, which: str) -> np.ndarray:
    """The gallery's picture of the same map."""
    cases = study.cases
    named = {"p": cases.predicted[i], "t": cases.rival[i]}
    if which == "m":
        raw = cases.class_maps[i, named["p"]] - cases.class_maps[i, named["t"]]
    else:
        raw = cases.class_maps[i, named[which] if which in named else int(which)]
    shown = display(raw[None], cases.pictures.shape[1], signed=which == "m")[0]
    return gallery.overlay(cases.pictures[i : i + 1], shown, signed=which == "m")[0].astype(int)


@pytest.mark.parametrize("key", [*"0123456789", "p", "t", "m"])
def test_keys_show_the_map_that_the_gallery_draws(opened: Browser, study: Study, key: str):
    opened.keys(key)
    for i in opened.shown()[:6:2]:
        difference = np.abs(opened.pixels(f"#error-{i} canvas") - overlaid(study, i, key))
        assert difference.mean() < 1.5 and np.quantile(difference, 0.99) <= 8, (i, difference.mean(), difference.max())


def test_the_pointer_on_a_bar_shows_that_class_until_it_leaves(opened: Browser, study: Study):
    i = opened.shown()[1]
    opened.run("document.getElementById('controls').scrollIntoView()")
    before = opened.pixels(f"#error-{i} canvas")
    for number in (2, 7):
        opened.point(f"#error-{i} .strip [data-which='{number}']")
        p = gallery.percent(round(study.cases.probabilities[i, number], 6))
        empty = not (study.cases.class_maps[i, number] > 0).any()
        said = f"{CLASSES[number]}: no positive evidence" if empty else f"{CLASSES[number]} {p}"
        assert opened.text(f"#error-{i} .tag") == said
        difference = np.abs(opened.pixels(f"#error-{i} canvas") - overlaid(study, i, str(number)))
        assert difference.mean() < 1.5
    opened.point("#count")
    assert np.array_equal(opened.pixels(f"#error-{i} canvas"), before)


def test_maps_without_positive_evidence_are_said_to_have_none(opened: Browser, study: Study):
    opened.keys("2")
    tags = opened.cards("card.querySelector('.tag').innerText")
    none = {i for i, text in tags if text == "no positive evidence"}
    assert none == {i for i in opened.shown() if not (study.cases.class_maps[i, 2] > 0).any()} != set()


def test_the_overlay_slider(opened: Browser, study: Study):
    i = opened.shown()[0]
    full = opened.pixels(f"#error-{i} canvas")
    opened.put("opacity", "0")
    assert np.array_equal(opened.pixels(f"#error-{i} canvas"), study.cases.pictures[i])
    opened.put("opacity", "0.65")
    assert np.array_equal(opened.pixels(f"#error-{i} canvas"), full)
    opened.keys("o")
    assert np.array_equal(opened.pixels(f"#error-{i} canvas"), study.cases.pictures[i])
    opened.keys("o", "]")
    assert np.abs(opened.pixels(f"#error-{i} canvas") - full).max() > 3


def test_the_keyboard_walks_through_the_errors_and_the_panel_says_what_the_table_says(opened: Browser, study: Study):
    errors = study.cases
    order = errors.select("loss")
    opened.run("document.getElementById('grid').focus()")
    opened.keys("\ue014")  # right: the first
    columns = opened.run("return columns")
    for key, place in (
        ("\ue014", 1),
        ("\ue015", 1 + columns),
        ("\ue012", columns),
        ("\ue013", 0),
        ("\ue010", COUNT - 1),
    ):
        opened.keys(key)
        i = int(order[place])
        assert opened.text("#detail h2") == f"test image {errors.index[i]}"
        box = opened.run(
            f"const b = document.getElementById('error-{i}').getBoundingClientRect(); return [b.top, b.bottom]"
        )
        assert box[0] >= opened.run("return document.getElementById('controls').getBoundingClientRect().bottom") - 1
        assert box[1] <= opened.run("return innerHeight") + 1
        assert opened.run(f"return document.getElementById('error-{i}').getAttribute('aria-selected')") == "true"
        words = opened.text("#detail")
        assert f"true class ranked {errors.rank[i]} of 10 · loss {errors.loss[i]:.2f} · {place + 1:,} of 600" in words
        assert ("label disputed" in words) == bool(errors.disputed[i])
        for number, name in enumerate(CLASSES):
            row = opened.text(f"#detail [data-which='{number}']").split()
            assert row[1:3] == [name, gallery.percent(round(errors.probabilities[i, number], 6))]
            assert ("predicted" in row, "true" in row) == (number == errors.predicted[i], number == errors.rival[i])
    opened.point("#detail [data-which='4']")
    assert opened.text("#detail .caption").startswith("deer")
    opened.point("#detail [data-which='margin']", click=True)
    assert opened.run("return document.getElementById('map').value") == "margin"
    assert " \N{MINUS SIGN} " in opened.text("#detail .caption")
    opened.keys("\ue00c")
    assert opened.run("return document.getElementById('detail').hidden")
    opened.keys("?")
    assert opened.run("return document.getElementById('help').open")


def test_the_address_keeps_what_is_shown(window: Browser, opened: Browser, written: Path, study: Study):
    errors = study.cases
    opened.put("true", "3")
    opened.put("sort", "index")
    opened.keys("m")
    first = opened.shown()[0]
    opened.run("document.querySelector('.card').click()")
    fragment = opened.run("return location.hash")
    window.open(written, fragment)
    assert opened.text("#count") == matching(errors, errors.rival == 3)
    assert opened.text("#detail h2") == f"test image {errors.index[first]}"
    assert opened.run("return [document.getElementById('map').value, document.getElementById('sort').value]") == [
        "margin",
        "index",
    ]


CONTRASTS = """
const rgb = (text) => text.match(/[\\d.]+/g).slice(0, 3).map((v) => {
  v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
});
const light = (text) => { const [r, g, b] = rgb(text); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const behind = (node) => {
  for (; node; node = node.parentElement) {
    const colour = getComputedStyle(node).backgroundColor;
    if (!/, 0\\)$|transparent/.test(colour) && colour.startsWith("rgb(")) return colour;
  }
  return "rgb(255, 255, 255)";
};
return ["h1", "header .facts", "summary small", ".figure small", "#count", ".words b", ".words small", ".badge",
        "#detail .facts", "#detail .row .name"].map((selector) => {
  const node = document.querySelector(selector);
  const [a, b] = [light(getComputedStyle(node).color), light(behind(node))].sort((x, y) => y - x);
  return [selector, (a + 0.05) / (b + 0.05)];
});
"""


@pytest.mark.parametrize("dark", [False, True])
def test_words_stand_out_in_light_and_dark(opened: Browser, dark: bool):
    opened.dark(dark)
    opened.put("disputed", True)
    opened.run("document.querySelector('.card').click()")
    assert [entry for entry in opened.run(CONTRASTS) if entry[1] < 4.5] == []
    luminance = "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]"
    assert (opened.run(luminance) < 60) == dark
    opened.run("document.getElementById('theme').click()")
    assert (opened.run(luminance) < 60) != dark
    opened.dark(False)


def test_on_a_phone_nothing_is_wider_than_the_screen_and_a_tap_opens_the_panel(start, written: Path):
    phone = start(phone=True)
    phone.open(written)
    wide = "return [document.documentElement.scrollWidth, innerWidth]"
    assert phone.run(wide) == [390, 390]
    assert phone.run("return getComputedStyle(document.getElementById('filters')).display") == "none"
    phone.run("document.getElementById('more').click(); document.getElementById('controls').scrollIntoView()")
    assert phone.run("return getComputedStyle(document.getElementById('filters')).display") == "flex"
    phone.until("return document.querySelectorAll('.card').length > 3")
    phone.run("document.querySelectorAll('.card')[3].click()")
    selected = phone.run(
        "const b = document.querySelector('[aria-selected=true]').getBoundingClientRect(); return [b.top, b.bottom]"
    )
    sheet = phone.run("const b = document.getElementById('detail').getBoundingClientRect(); return [b.top, b.bottom]")
    assert selected[0] >= 0 and selected[1] <= sheet[0] + 1 and sheet[0] > 250 and sheet[1] <= 845
    assert phone.run(wide) == [390, 390]
    assert phone.complaints() == []


def test_names_of_own_pictures_are_words_not_markup(window: Browser, tmp_path: Path):
    names = ("a/<img src=x onerror=alert(1)>.png", "</script><b>.png", "it's & \N{GREEK SMALL LETTER PI}.png")
    study = study_of(made_up(3, files=names, labels=None, name="own", total=3))
    path = tmp_path / "own.html"
    path.write_bytes(rendered(study, images=("a",)))
    window.open(path)
    assert window.text("h1") == "3 pictures" and "notes<b>.txt" in window.text(".skipped")
    assert window.shown() == study.cases.select("confidence").tolist()
    assert {window.run(f"return document.getElementById('error-{i}').innerText").split("\n")[-1] for i in range(3)} == {
        "<img src=x onerror=alert(1)>.png",
        "script><b>.png",
        names[2],
    }
    assert window.run("return document.getElementById('true') === null && document.querySelector('.card b i') === null")
    assert (
        window.run("document.querySelector('.card').click(); return document.querySelector('#detail h2').innerText")
        in names
    )
    assert "second" in window.text("#detail")
    link = window.run("return document.querySelector('#detail h2 a').href")
    assert unquote(link) == "file://" + os.path.abspath(window.text("#detail h2")) and "<" not in link
    assert window.complaints() == []


@pytest.mark.parametrize("count", [0, 1])
def test_none_or_one_error(window: Browser, tmp_path: Path, count: int):
    path = tmp_path / "few.html"
    path.write_bytes(rendered(study_of(made_up(count))))
    window.open(path)
    assert window.text("h1") == f"{count} error{'s' if count != 1 else ''} of 10,000 test images"
    if count:
        assert window.shown() == [0]
    else:
        assert "There is nothing to show" in window.text("body")
    assert window.complaints() == []


@pytest.mark.parametrize(("count", "side"), [(2, 28), (120, 96)])
def test_pages_of_other_numbers_of_classes_and_other_sides(window: Browser, tmp_path: Path, count: int, side: int):
    names = tuple(f"kind number {i} of {count}" for i in range(count))
    study = study_of(made_up(30, names, side))
    cases = study.cases
    path = tmp_path / "other.html"
    path.write_bytes(rendered(study))
    window.open(path)
    assert window.run("return document.documentElement.scrollWidth <= innerWidth")
    i, few = window.shown()[0], min(count, 10)
    assert window.run(f"return document.querySelectorAll('#error-{i} .strip i').length") == few
    for key in "ptm":
        window.keys(key)
        difference = np.abs(window.pixels(f"#error-{i} canvas") - overlaid(study, i, key))
        assert difference.mean() < 1.5
    window.run(f"document.getElementById('error-{i}').click()")
    assert f"ranked {cases.rank[i]} of {count}" in window.text("#detail")
    rows = window.run("return [...document.querySelectorAll('#detail .row .name')].map((name) => name.title)")
    kept = cases.likeliest(few, np.stack([cases.predicted, cases.rival], 1))[i].tolist()
    assert rows == [names[k] for k in (range(2) if count == 2 else kept)] + [""]
    badges = window.run("return [...document.querySelectorAll('#detail .row kbd')].map((key) => key.innerText)")
    assert badges == [str(k) for k in range(len(rows) - 1)] + ["m"]
    window.keys("1")
    assert window.text("#detail .row.now .name") == rows[1]
    last = int(cases.order[i, -1])
    window.put("map", str(last))
    known = last in kept
    assert ("none of its likeliest" in window.text(f"#error-{i} .tag")) != known
    assert study.matrix is not None
    true, said, n = top_confusions(study.matrix, 1)[0]
    window.run(f'document.querySelector(\'#matrix [data-true="{true}"][data-pred="{said}"]\').click()')
    assert window.text("#count") == (f"{n} of 30 shown" if n < 30 else "30 shown")
    assert window.complaints() == []
