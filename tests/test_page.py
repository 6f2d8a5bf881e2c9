"""explain/page.py: its bytes here, and the page itself in headless Chromium, against NumPy and the gallery."""

import base64
import io
import json
import os
import re
from collections.abc import Callable, Iterator
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
from explain.metrics import Calibration, confusion_matrix, top_confusions
from explain.options import GradcamOptions
from explain.study import Study
from tests.browser import Browser, browsers
from tests.cases import CLASSES, layer4_maps, made_up


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
    cases.class_maps[3::11, 2 % len(cases.classes)].abs_().neg_()
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
    return study_of(made_up(600, cells=3, pictures=smooth_images(600)))


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
    assert page.averaged(small) is small
    fitted = page.averaged(large)
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


@pytest.fixture
def view(window: Browser, tmp_path: Path) -> Iterator[Callable[[bytes], Path]]:
    """A function that opens a page in the window, with its cards in view, and gives its file."""

    def show(content: bytes) -> Path:
        path = tmp_path / "a.html"
        path.write_bytes(content)
        window.open(path)
        to_cards(window)
        return path

    yield show
    assert window.complaints() == []


@pytest.fixture
def opened(window: Browser, view, content: bytes) -> Browser:
    view(content)
    return window


def to_cards(window: Browser) -> None:
    window.run("document.getElementById('controls')?.scrollIntoView(); dispatchEvent(new Event('scroll'))")


def assert_shown(window: Browser, expected: np.ndarray, total: int = 600) -> None:
    """The page shows these of `total` errors, in this order."""
    some = "" if len(expected) == total else f"{len(expected):,} of "
    assert window.text("#count") == f"{some}{total:,} shown"
    shown = window.shown()
    assert shown == expected[: len(shown)].tolist() and (shown or not len(expected))


def assert_drawn(window: Browser, study: Study, i: int, which: str) -> None:
    """The card of error i shows the gallery's picture of a map: p, t, m as the keys are, or a class."""
    cases = study.cases
    named = {"p": cases.predicted[i], "m": cases.predicted[i], "t": cases.rival[i]}
    raw = cases.class_maps[i, named[which] if which in named else int(which)]
    raw = raw - cases.class_maps[i, cases.rival[i]] if which == "m" else raw
    shown = display(raw[None], cases.pictures.shape[1], signed=which == "m")[0]
    picture = gallery.overlay(cases.pictures[i : i + 1], shown, signed=which == "m")[0]
    difference = np.abs(window.pixels(f"#error-{i} canvas") - picture.astype(int))
    assert difference.mean() < 1.5 and np.quantile(difference, 0.99) <= 8, (i, difference.mean(), difference.max())


def test_it_opens_with_every_error_and_builds_only_what_is_in_view(opened: Browser, study: Study):
    order = study.cases.select()
    assert_shown(opened, order)
    assert opened.run("return performance.getEntriesByType('resource').every((e) => e.name.startsWith('data:'))")
    seen = set()
    for _ in range(25):
        assert 0 < len(opened.shown()) < 100
        seen.update(opened.shown())
        opened.run("window.scrollBy(0, 700); dispatchEvent(new Event('scroll'))")
        opened.run("return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")
    end = opened.run("window.scrollTo(0, 1e9); return document.body.scrollHeight > 10000")
    opened.until(f"return document.getElementById('error-{order[-1]}') !== null")
    assert end and len(seen) > 300


def test_cells_and_bars_filter(opened: Browser, study: Study):
    errors = study.cases
    opened.click('#matrix [data-true="3"][data-pred="5"]')
    both = errors.select("loss", "cat", "dog")
    assert_shown(opened, both)
    pressed = "return [...document.querySelectorAll('[aria-pressed=true]')].map((b) => b.innerText)"
    assert opened.run(pressed) == [str(len(both))]
    opened.click("[aria-pressed=true]")
    assert_shown(opened, errors.select())
    opened.click('#bars [data-true="8"]')
    assert_shown(opened, errors.select("loss", "ship"))
    opened.click('#matrix thead [data-pred="1"]')
    assert_shown(opened, errors.select("loss", "any", "automobile"))
    opened.keys("r")
    assert_shown(opened, errors.select())


def test_ranges_the_disputed_and_their_reset(opened: Browser, study: Study):
    errors, order = study.cases, study.cases.select()
    confidence = errors.probability(errors.predicted)
    keep = np.ones(600, bool)
    for name, value, passes in (
        ("confidence-from", "40", confidence >= 0.4),
        ("confidence-to", "70", confidence <= 0.7),
        ("loss-from", "2", errors.loss >= 2),
        ("loss-to", "4.5", errors.loss <= 4.5),
        ("disputed", True, errors.disputed),
    ):
        opened.put(name, value)
        keep &= passes
        assert_shown(opened, order[keep[order]])
    assert 2 < keep.sum() < 100
    opened.click(".card")
    assert f"· 1 of {keep.sum()} shown" in opened.text("#detail")
    opened.click("#reset")
    assert_shown(opened, order)
    assert f"· {np.flatnonzero(keep[order])[0] + 1} of 600 shown" in opened.text("#detail")
    assert all(marked == errors.disputed[i] for i, marked in opened.cards("card.querySelector('.badge') !== null"))
    opened.put("loss-from", "99")
    assert_shown(opened, order[:0])
    assert opened.run("return ['nothing', 'detail'].map((id) => document.getElementById(id).hidden)") == [False, True]


@pytest.mark.parametrize("sort", ["loss", "confidence", "unsure", "index", "random"])
def test_orders(opened: Browser, study: Study, sort: str):
    opened.put("sort", sort)
    assert_shown(opened, study.cases.select("confidence")[::-1] if sort == "unsure" else study.cases.select(sort))


@pytest.mark.parametrize("key", [*"0123456789", "p", "t", "m"])
def test_keys_show_the_map_that_the_gallery_draws(opened: Browser, study: Study, key: str):
    opened.keys(key)
    for i in opened.shown()[:6:2]:
        assert_drawn(opened, study, i, key)
    if key.isdigit():
        tags = opened.cards("card.querySelector('.tag').innerText")
        none = {i for i, text in tags if text == "no positive evidence"}
        assert none == {i for i in opened.shown() if not (study.cases.class_maps[i, int(key)] > 0).any()}
        assert none or key != "2"


def test_the_pointer_on_a_bar_shows_that_class_until_it_leaves(opened: Browser, study: Study):
    i = opened.shown()[1]
    before = opened.pixels(f"#error-{i} canvas")
    for number in (2, 7):
        opened.point(f"#error-{i} .strip [data-which='{number}']")
        p = gallery.percent(round(study.cases.probabilities[i, number], 6))
        empty = not (study.cases.class_maps[i, number] > 0).any()
        said = f"{CLASSES[number]}: no positive evidence" if empty else f"{CLASSES[number]} {p}"
        assert opened.text(f"#error-{i} .tag") == said
        assert_drawn(opened, study, i, str(number))
    opened.point("#count")
    assert np.array_equal(opened.pixels(f"#error-{i} canvas"), before)


def test_the_overlay_slider(opened: Browser, study: Study):
    i = opened.shown()[0]
    full, bare = opened.pixels(f"#error-{i} canvas"), study.cases.pictures[i]
    opened.put("opacity", "0")
    assert np.array_equal(opened.pixels(f"#error-{i} canvas"), bare)
    opened.put("opacity", "0.65")
    assert np.array_equal(opened.pixels(f"#error-{i} canvas"), full)
    opened.keys("o")
    assert np.array_equal(opened.pixels(f"#error-{i} canvas"), bare)
    opened.keys("o", "]")
    assert np.abs(opened.pixels(f"#error-{i} canvas") - full).max() > 3


def test_the_keyboard_walks_through_the_errors_and_the_panel_says_what_the_table_says(opened: Browser, study: Study):
    errors, order = study.cases, study.cases.select()
    opened.run("document.getElementById('grid').focus()")
    right, left, up, down, end = "\ue014", "\ue012", "\ue013", "\ue015", "\ue010"
    opened.keys(right)  # the first
    columns = opened.run("return columns")
    for key, place in ((right, 1), (down, 1 + columns), (left, columns), (up, 0), (end, 599)):
        opened.keys(key)
        i = int(order[place])
        assert opened.text("#detail h2") == f"test image {errors.index[i]}"
        box = opened.box(f"#error-{i}")
        assert box["top"] >= opened.box("#controls")["bottom"] - 1
        assert box["bottom"] <= opened.run("return innerHeight") + 1
        assert opened.run("return document.querySelector('[aria-selected=true]').id") == f"error-{i}"
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


def test_the_address_keeps_what_is_shown(opened: Browser, study: Study):
    errors = study.cases
    opened.put("true", "3")
    opened.put("sort", "index")
    opened.keys("m")
    opened.click(".card")
    opened.open(opened.run("return location.href"))
    order = errors.select("index", "cat")
    assert_shown(opened, order)
    assert_drawn(opened, study, order[0], "m")
    assert opened.text("#detail h2") == f"test image {errors.index[order[0]]}"


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
    opened.click(".card")
    assert [entry for entry in opened.run(CONTRASTS) if entry[1] < 4.5] == []
    luminance = "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]"
    assert (opened.run(luminance) < 60) == dark
    opened.click("#theme")
    assert (opened.run(luminance) < 60) != dark
    opened.dark(False)


def test_on_a_phone_nothing_is_wider_than_the_screen_and_a_tap_opens_the_panel(start, view, content):
    phone = start(phone=True)
    phone.open(view(content))
    wide = "return [document.documentElement.scrollWidth, innerWidth]"
    assert phone.run(wide) == [390, 390]
    assert phone.box("#filters")["height"] == 0
    phone.click("#more")
    assert phone.box("#filters")["height"] > 0
    to_cards(phone)
    phone.run("document.querySelectorAll('.card')[3].click()")
    selected, sheet = phone.box("[aria-selected=true]"), phone.box("#detail")
    assert selected["top"] >= 0 and selected["bottom"] <= sheet["top"] + 1
    assert sheet["top"] > 250 and sheet["bottom"] <= 845
    assert phone.run(wide) == [390, 390]
    assert phone.complaints() == []


def test_names_of_own_pictures_are_words_not_markup(window: Browser, view):
    names = ("a/<img src=x onerror=alert(1)>.png", "</script><b>.png", "it's & \N{GREEK SMALL LETTER PI}.png")
    study = study_of(made_up(3, files=names, labels=None, name="own", total=3))
    view(rendered(study, images=("a",)))
    assert window.text("h1") == "3 pictures" and "notes<b>.txt" in window.text(".skipped")
    order = study.cases.select("confidence")
    assert_shown(window, order, 3)
    cards = [window.text(f"#error-{i} small") for i in range(3)]
    assert cards == ["<img src=x onerror=alert(1)>.png", "script><b>.png", names[2]]
    assert window.run("return document.querySelectorAll('#true, .card b b, .card img').length") == 0
    window.click(".card")
    assert window.text("#detail h2") == names[order[0]] and "second" in window.text("#detail")
    link = window.run("return document.querySelector('#detail h2 a').href")
    assert unquote(link) == "file://" + os.path.abspath(names[order[0]]) and "<" not in link


HTML = "</script><b title=\"it's\">&amp;"
WORDS = ("loss", "random", "any", "pred", "true", "false", "margin", " ", "7", "__proto__", "toString", HTML)


@pytest.fixture(scope="module")
def named() -> Study:
    """A page of classes that are named like words of the page, of JavaScript or of HTML."""
    return study_of(made_up(150, WORDS))


@pytest.mark.parametrize("place", range(len(WORDS)), ids=repr)
def test_what_it_opens_with_is_what_the_flags_mean_whatever_the_classes_are_called(
    window: Browser, view, named: Study, place: int
):
    name = WORDS[place]
    flags: dict[str, Any] = {"sort": "random", "pred": name} if place % 2 else {"sort": "loss", "true": name}
    options = GradcamOptions(out="a.html", target=name, **flags)
    view(page.render(named, layer4_maps(named.cases, name), None, options, "model.pt: a net"))
    expected = named.cases.select(options.sort, options.true, options.pred)
    assert_shown(window, expected, 150)
    meant = {"pred": "p", "true": "t", "margin": "m"}.get(name, str(place))
    assert_drawn(window, named, expected[0], meant)


def test_a_class_is_chosen_and_kept_in_the_address_whatever_it_is_called(window: Browser, view, named: Study):
    cases, order = named.cases, named.cases.select()
    path = view(rendered(named))
    for choice in ("true", "pred", "map"):
        script = "return [...document.getElementById(arguments[0]).options].map((one) => one.textContent)"
        options = window.run(script, choice)
        assert options[-len(WORDS) :] == list(WORDS)
    for place in range(len(WORDS)):
        window.put("true", str(place))
        window.put("map", str(place))
        window.open(path, window.run("return location.hash"))
        to_cards(window)
        own = order[cases.rival[order] == place]
        assert_shown(window, own, 150)
        assert_drawn(window, named, own[0], str(place))
    window.open(path, "#true=any&pred=loss&map=toString&sort=__proto__&chosen=")  # none of these is a class's number
    to_cards(window)
    assert_shown(window, order, 150)
    assert_drawn(window, named, order[0], "p")
    assert window.run("return document.getElementById('detail').hidden")


@pytest.mark.parametrize("count", [0, 1])
def test_none_or_one_error(window: Browser, view, count: int):
    study = study_of(made_up(count))
    view(rendered(study))
    assert window.text("h1") == f"{count} error{'s' if count != 1 else ''} of 10,000 test images"
    if count:
        assert_shown(window, study.cases.select(), 1)
    else:
        assert "There is nothing to show" in window.text("body")


@pytest.mark.parametrize(("count", "side"), [(2, 28), (120, 96)])
def test_pages_of_other_numbers_of_classes_and_other_sides(window: Browser, view, count: int, side: int):
    names = tuple(f"kind number {i} of {count}" for i in range(count))
    study = study_of(made_up(30, names, side))
    cases = study.cases
    view(rendered(study))
    assert window.run("return document.documentElement.scrollWidth <= innerWidth")
    i, few = window.shown()[0], min(count, 10)
    assert window.run(f"return document.querySelectorAll('#error-{i} .strip i').length") == few
    for key in "ptm":
        window.keys(key)
        assert_drawn(window, study, i, key)
    window.click(f"#error-{i}")
    assert f"ranked {cases.rank[i]} of {count}" in window.text("#detail")
    rows = window.run("return [...document.querySelectorAll('#detail .row .name')].map((name) => name.innerText)")
    kept = cases.likeliest(few, np.stack([cases.predicted, cases.rival], 1))[i].tolist()
    assert rows == [names[k] for k in (range(2) if count == 2 else kept)] + ["margin: predicted \N{MINUS SIGN} true"]
    badges = window.run("return [...document.querySelectorAll('#detail .row kbd')].map((key) => key.innerText)")
    assert badges == [str(k) for k in range(len(rows) - 1)] + ["m"]
    window.keys("1")
    assert window.text("#detail .row.now .name") == rows[1]
    last = int(cases.order[i, -1])
    window.put("map", str(last))
    assert ("none of its likeliest" in window.text(f"#error-{i} .tag")) == (last not in kept)
    assert study.matrix is not None
    true, said, _ = top_confusions(study.matrix, 1)[0]
    window.click(f'#matrix [data-true="{true}"][data-pred="{said}"]')
    to_cards(window)
    assert_shown(window, cases.select("loss", names[true], names[said]), 30)
