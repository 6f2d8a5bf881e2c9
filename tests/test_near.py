"""Near copies of pictures to train on: what is found, and what the command says."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

import pipeline.__main__ as entry


def drawn(seed: int, side: int = 96) -> Image.Image:
    """A picture that is as smooth as a photograph."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)


def stack(*pictures: Image.Image) -> np.ndarray:
    return np.stack([np.asarray(one.resize((64, 64), Image.Resampling.BILINEAR)) for one in pictures])


def test_a_picture_that_was_changed_a_little_is_found_and_another_is_not():
    one = drawn(0, 400)
    changed = [one.resize((100, 100)), one.crop((6, 6, 400, 400)), one.rotate(1)]
    changed += [one.filter(ImageFilter.GaussianBlur(3)), ImageEnhance.Brightness(one).enhance(0.7)]
    likeness, which = entry.nearest(stack(*changed, drawn(1)), stack(drawn(2), one, drawn(3)))
    assert (likeness[:-1] >= entry.ALIKE).all() and (which[:-1] == 1).all()
    assert likeness[-1] < 0.8


def test_a_colour_in_common_or_one_colour_makes_nothing_alike():
    leaves = np.random.default_rng(0).normal((60, 140, 50), 10, (9, 64, 64, 3)).clip(0, 255).astype(np.uint8)
    assert entry.nearest(leaves[:3], leaves[3:])[0].max() < 0.5
    assert entry.nearest(np.full((2, 8, 8, 3), 255, np.uint8), np.zeros((3, 8, 8, 3), np.uint8))[0].max() == 0


def test_the_most_alike_is_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch):
    images, others = stack(*map(drawn, range(4))), stack(*map(drawn, range(9, 1, -1)))
    likeness, which = entry.nearest(images, others)
    own, its = (x.astype(float) - x.mean((1, 2), keepdims=True) for x in (images, others))
    direct = [[np.corrcoef(a.ravel(), b.ravel())[0, 1] for b in its] for a in own]
    assert which[2:].tolist() == [7, 6] and which.tolist() == np.argmax(direct, 1).tolist()
    monkeypatch.setattr(entry, "BLOCK", 3)
    in_blocks = entry.nearest(images, others)
    assert np.allclose(in_blocks[0], likeness, atol=1e-5) and np.array_equal(in_blocks[1], which)


@pytest.mark.parametrize("copies", [0, 2])
def test_the_command_names_near_copies_across_parts(
    copies: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    root, seed = tmp_path / "holiday", 0
    for part, many in (("train", 5), ("test", 3)):
        for name in ("beach", "city"):
            (root / part / name).mkdir(parents=True)
            for i in range(many):
                drawn(seed := seed + 1).save(root / part / name / f"{i}.png")
    for i in range(copies):
        drawn(1 + i).save(root / "test" / "beach" / f"again{i}.jpg", quality=70)
    monkeypatch.setenv("CIFAR10_DIR", str(tmp_path / "cache"))
    entry.main(["--data", str(root), "--sheet", str(tmp_path / "sheet.png")])
    lines = [line for line in capsys.readouterr().out.splitlines() if "nearly the same" in line]
    said = "test: 2 of 8 are nearly the same as a picture to train on: "
    assert len(lines) == bool(copies) and all(line.startswith(said) for line in lines)
    for i in range(copies):
        assert f"test/beach/again{i}.jpg and train/beach/{i}.png" in lines[0]
