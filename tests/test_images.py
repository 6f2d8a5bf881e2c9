"""explain/images.py: what is read, what is skipped with which reason, and that the model sees what predict() sees."""

import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engine.model import resize
from explain import images, study
from explain.images import find, read
from pipeline.pictures import decode, fitted
from tests.cases import explainer
from tests.trained import trained


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray, **how) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **how)
    return pixels


def only(path: Path, side: int = 32) -> np.ndarray:
    """What the model gets of one file, (side, side, 3)."""
    return read([str(path)], side, "crop").inputs[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("side", [24, 32])  # the network's own, and another, brought to it as in training
def test_probabilities_are_those_of_predict_whatever_the_size(tmp_path: Path, monkeypatch, side: int):
    net, test = trained()
    shapes = [(32, 32), (48, 64), (17, 90), (300, 200), (1, 1)]
    for i, shape in enumerate(shapes):
        save(tmp_path / f"{i}.png", noise(*shape, seed=i))
    for i in range(4):
        save(tmp_path / f"{len(shapes) + i}.png", test.images[i].numpy())
    monkeypatch.setattr(study, "BATCH", 4)
    found = study.of_pictures(explainer(net), [str(tmp_path)], side, "crop")
    cases = found.cases
    assert [Path(name).stem for name in cases.files] == [str(i) for i in range(9)] and found.skipped == ()
    for i in range(9):
        seen = decode(tmp_path / f"{i}.png", side, "crop")
        expected = net.predict(torch.from_numpy(seen.copy())[None])[0].numpy()
        np.testing.assert_allclose(cases.probabilities[i], expected, atol=1e-5)
        assert [cases.predicted[i], cases.rival[i]] == np.argsort(-expected)[:2].tolist()
    assert cases.labels is None and found.matrix is None and not cases.disputed.any()
    torch.testing.assert_close(cases.class_maps.sum((2, 3)) + net.fc.bias.detach(), cases.logits, rtol=1e-4, atol=1e-4)
    assert cases.pictures.shape == (9, images.TILE, images.TILE, 3)


# Which files


def test_folders_are_searched_in_the_order_of_names_and_files_taken_once(tmp_path: Path):
    for name in ("b.png", "a.png", "inner/c.png", ".hidden.png", ".git/d.png"):
        save(tmp_path / name, noise(4, 4))
    names = [str(path.relative_to(tmp_path)) for path in find([str(tmp_path / "b.png"), str(tmp_path)])]
    assert names == ["b.png", "a.png", "inner/c.png"]


def test_missing_paths_empty_folders_and_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        find([str(tmp_path / "nowhere")])
    with pytest.raises(ValueError, match="no files"):
        find([str(tmp_path)])
    monkeypatch.setattr(images, "MOST_FILES", 3)
    for name in ("a/1.png", "a/2.png", "b/3.png"):
        save(tmp_path / name, noise(4, 4))
    overlapping = [str(tmp_path / name) for name in "aab"]
    assert [path.stem for path in find(overlapping)] == list("123")
    (tmp_path / "4.png").touch()
    with pytest.raises(ValueError, match="more than 3 files"):
        find([str(tmp_path)])


def test_what_cannot_be_used_is_named_with_the_reason_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
):
    good = save(tmp_path / "good.png", noise(32, 32))
    data = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "flipped.png").write_bytes(data[:200] + bytes([data[200] ^ 255]) + data[201:])
    (tmp_path / "empty.png").touch()
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "drawing.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")
    for name, claimed in (("large.png", 10_000), ("bomb.png", 20_000)):
        header = data[12:16] + claimed.to_bytes(4, "big") * 2 + data[24:29]
        (tmp_path / name).write_bytes(data[:12] + header + zlib.crc32(header).to_bytes(4, "big") + data[33:])
    decoded: list[tuple[int, int]] = []
    load = Image.Image.load

    def watched(self):
        decoded.append(self.size)
        return load(self)

    monkeypatch.setattr(Image.Image, "load", watched)
    pictures = read([str(tmp_path)], 32, "crop")
    assert [Path(name).name for name in pictures.names] == ["good.png"]
    assert np.array_equal(pictures.inputs[0].permute(1, 2, 0).numpy(), good)
    assert max(width * height for width, height in decoded) < 10_000
    reasons = {Path(line.partition(": ")[0]).name: line.partition(": ")[2] for line in pictures.skipped}
    assert set(reasons) == {path.name for path in tmp_path.iterdir()} - {"good.png"}
    assert all(reasons.values())
    assert "10,000 x 10,000 pixels are more than 64 million" in reasons["large.png"]
    assert "exceeds limit" in reasons["bomb.png"]
    assert "not a regular file" in reasons["pipe.png"]
    assert "identify" in reasons["notes.txt"] and "identify" in reasons["drawing.eps"]
    assert not list(recwarn)
    with pytest.raises(ValueError, match=r"none of the 1 files is a picture.*notes\.txt"):
        read([str(tmp_path / "notes.txt")], 32, "crop")


# What a picture is


def test_kinds_of_files_and_of_pixels(tmp_path: Path):
    pixels = save(tmp_path / "a.png", noise(32, 32))
    for suffix in ("bmp", "ppm", "tiff", "webp"):
        save(tmp_path / f"a.{suffix}", pixels, **({"lossless": True} if suffix == "webp" else {}))
        assert np.array_equal(only(tmp_path / f"a.{suffix}"), pixels), suffix
    grey = pixels[..., 0]
    save(tmp_path / "grey.png", grey)
    assert np.array_equal(only(tmp_path / "grey.png"), np.repeat(grey[..., None], 3, 2))
    save(tmp_path / "deep.png", grey.astype(np.uint16) * 257)
    assert np.array_equal(only(tmp_path / "deep.png"), np.repeat(grey[..., None], 3, 2))
    Image.fromarray(grey).save(tmp_path / "first.gif", save_all=True, append_images=[Image.new("L", (32, 32))])
    assert np.array_equal(only(tmp_path / "first.gif"), np.repeat(grey[..., None], 3, 2))
    Image.fromarray(pixels).convert("CMYK").save(tmp_path / "print.tiff")
    assert np.abs(only(tmp_path / "print.tiff").astype(int) - pixels).max() <= 2


def test_transparent_parts_are_white_and_pictures_turned_as_their_exif_says(tmp_path: Path):
    pixels = np.dstack([noise(32, 32), np.full((32, 32), 255, np.uint8)])
    pixels[:16, :, 3] = 0
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "a.png", pixels, exif=exif)
    seen = np.rot90(only(tmp_path / "a.png"))
    assert (seen[:16] == 255).all() and np.array_equal(seen[16:], pixels[16:, :, :3])


def test_large_pictures_look_the_same(tmp_path: Path):
    coarse = noise(6, 6)
    large = coarse.repeat(300, 0).repeat(300, 1)
    save(tmp_path / "a.png", large)
    save(tmp_path / "a.jpg", large, quality=95)
    exact = resize(torch.from_numpy(large).permute(2, 0, 1)[None], 32)[0].permute(1, 2, 0).numpy().astype(int)
    assert np.abs(only(tmp_path / "a.png") - exact).max() <= 3
    assert np.abs(only(tmp_path / "a.jpg") - exact).mean() <= 4


def test_crop_keeps_the_middle_squash_all_and_pad_all_in_proportion():
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, :20], wide[:, 20:40], wide[:, 40:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    picture = Image.fromarray(wide)
    assert (fitted(picture, 20, "crop") == (0, 255, 0)).all()
    squashed = fitted(picture, 30, "squash")
    assert [squashed[15, x].argmax() for x in (4, 15, 25)] == [0, 1, 2]
    padded = fitted(picture, 30, "pad")
    assert (padded[:9] == 255).all() and (padded[21:] == 255).all() and (padded[15, 15] == (0, 255, 0)).all()
