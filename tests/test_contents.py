"""What a data set is, by the contents of its files: identity, index of digests, cache of pixels; and odd pixels."""

import importlib.util
import os
import random
import re
import shutil
import struct
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from engine.config import Config, parse
from ground.data import kind_of
from ground.mistake import Mistake
from pipeline import contents, folder, store
from pipeline.dali import evaluation_loader
from pipeline.dataset import open_dataset
from pipeline.listing import Listing, identity
from pipeline.pictures import decode, decode_bytes, eight_bits, fitted
from pipeline.split import LEAST_DEVIATION, channel_statistics
from pipeline.synthetic import generated

ROOT = Path(__file__).resolve().parents[1]
LONG_AGO = 1_600_000_000
FLOAT, INT, SHORT = (partial(np.array, dtype=dtype) for dtype in (np.float32, np.int32, np.uint16))


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch) -> Path:
    place = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("CIFAR10_DIR", str(place))
    return place


def bitmap(path: Path, seed: int, side: int = 12) -> Path:
    """All of one length, all of one time, as an archive leaves them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "BMP")
    os.utime(path, (LONG_AGO, LONG_AGO))
    return path


def own(root: Path, count: int = 6) -> Path:
    for k, name in enumerate(("disc", "square")):
        for i in range(count):
            bitmap(root / name / f"{i}.bmp", 100 * k + i)
    return root


def listing(root: Path) -> Listing:
    return folder.prepare(root, 8, "crop")[0]


def settled(monkeypatch) -> None:
    """Files may be trusted from the first moment on, so that a test need not wait."""
    monkeypatch.setattr(contents, "SETTLED", -1.0)


def caches() -> list[Path]:
    return list(store.index_path(Path()).parent.iterdir())


# Identity


def test_the_same_pictures_are_the_same_by_any_name_place_table_and_time(tmp_path: Path):
    root = own(tmp_path / "own")
    first, train = identity(listing(root)), open_dataset(str(root), 8).load("train")
    (root / "disc" / "0.bmp").rename(root / "disc" / "another name.bmp")
    os.utime(root / "disc" / "1.bmp")
    assert identity(listing(root)) == first
    assert open_dataset(str(root), 8).load("train").digest == train.digest, "in the same order"
    shutil.copytree(root, tmp_path / "archive" / "copy")
    assert identity(listing(tmp_path / "archive")) == first
    table = tmp_path / "t.csv"
    rows = sorted(f"own/{path.parent.name}/{path.name};{path.parent.name}\n" for path in root.rglob("*.bmp"))
    table.write_text("file;class\n" + "".join(rows[::-1]))
    assert identity(listing(table)) == first
    assert open_dataset(str(table), 8).identity() == open_dataset(f"{root}/", 8).identity() == first


def test_one_bit_another_label_or_part_is_another(tmp_path: Path):
    root = own(tmp_path / "own")
    found, path = [identity(listing(root))], root / "square" / "3.bmp"
    data = bytearray(path.read_bytes())
    for place in (60, len(data) // 2, len(data) - 1):
        data[place] ^= 1
        path.write_bytes(data)
        os.utime(path, (LONG_AGO, LONG_AGO))
        found.append(identity(listing(root)))
    path.rename(root / "disc" / "3b.bmp")
    found.append(identity(listing(root)))
    (root / "square").rename(root / "zebra")
    found.append(identity(listing(root)))
    (root / "disc" / "0.bmp").unlink()
    found.append(identity(listing(root)))
    own(tmp_path / "parts" / "train")
    for file in ("0.bmp", "1.bmp"):
        for name in ("disc", "square"):
            (tmp_path / "parts" / "test" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "parts" / "train" / name / file).rename(tmp_path / "parts" / "test" / name / file)
        found.append(identity(listing(tmp_path / "parts")))
    assert len(set(found)) == len(found) == 9


@pytest.mark.parametrize("wait", [False, True])
def test_pictures_that_change_places_take_their_pixels_along(tmp_path: Path, monkeypatch, wait: bool):
    """Names, lengths and times stay as they were; in the same tick of the clock too, where nothing says so."""
    if wait:
        settled(monkeypatch)
    root = own(tmp_path / "own")
    one, other, aside = root / "disc" / "0.bmp", root / "square" / "0.bmp", root / "aside.bmp"
    expected = {path.parent.name: decode(path, 8, "crop") for path in (other, one)}
    before = listing(root)
    one.rename(aside), other.rename(one), aside.rename(other)
    after, images = folder.prepare(root, 8, "crop")
    assert after != before
    for name, pixels in (("disc", expected["square"]), ("square", expected["disc"])):
        row = [picture.name for picture in after.pictures].index(f"{name}/0.bmp")
        assert np.array_equal(images[row], pixels)
    one.write_bytes(other.read_bytes())  # in place: the same inode, length and time
    os.utime(one, (LONG_AGO, LONG_AGO))
    if not wait:
        left_out = sorted(map(str, listing(root).left_out))
        assert left_out == [f"{name}/0.bmp: the same picture is in two classes" for name in ("disc", "square")]


def test_unchanged_files_are_not_read_again(tmp_path: Path, monkeypatch):
    settled(monkeypatch)
    root, opened = own(tmp_path / "own"), Mock(wraps=contents.open_bounded)
    monkeypatch.setattr(contents, "open_bounded", opened)

    def read() -> int:
        opened.reset_mock()
        listing(root)
        return sum(str(call.args[0]).endswith(".bmp") for call in opened.call_args_list)

    assert [read(), read()] == [12, 0]
    os.utime(root / "disc" / "0.bmp")
    (root / "disc" / "1.bmp").rename(root / "disc" / "new.bmp")  # which changes its change time
    os.rename(root / "square", root / "oblong")
    assert [read(), read()] == [2, 0]


def test_a_file_of_this_very_moment_is_read_again(tmp_path: Path):
    root = own(tmp_path / "own")
    listing(root)
    index = store.index_path(root)
    assert contents.read_index(index) == {}, "nothing settled yet"


@pytest.mark.slow
def test_100_000_unchanged_pictures_take_three_seconds(tmp_path: Path, monkeypatch):
    settled(monkeypatch)
    data = own(tmp_path / "own", 1).joinpath("disc/0.bmp").read_bytes()
    for name in ("disc", "square"):
        for i in range(50_000):
            (tmp_path / "own" / name / f"{i}.bmp").write_bytes(data + struct.pack("<Q", i) + name.encode())
    times, found = [], []
    for _ in range(4):
        start = time.perf_counter()
        names = [file.name for file in folder.folder_inventory(tmp_path / "own", "auto").files]
        found.append(contents.digests(tmp_path / "own", names, tmp_path / "index"))
        times.append(time.perf_counter() - start)
    assert min(times[1:]) < 3 and found[1:] == found[:-1] and len(set(found[0][0])) == 100_000


# The cache


def sparse(path: Path, whole: bytes) -> None:
    path.touch()
    os.truncate(path, 3_000_000_000)


PLACES: dict[str, Callable[[Path, bytes], object]] = {
    "missing": lambda path, whole: None,
    "fifo": lambda path, whole: os.mkfifo(path),
    "zero": lambda path, whole: path.symlink_to("/dev/zero"),
    "loop": lambda path, whole: path.symlink_to(path.name),
    "long line": sparse,
    "other form": lambda path, whole: path.write_bytes(whole.replace(b"pictures", b"pictured")),
    "deep": lambda path, whole: path.write_bytes(b"[" * 100_000 + whole[-store.LAST_LINE :]),
    "cut": lambda path, whole: path.write_bytes(whole[:-1]),
    "half": lambda path, whole: path.write_bytes(whole[: len(whole) // 2]),
    "empty": lambda path, whole: path.touch(),
    "a bit": lambda path, whole: path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]),
    "json": lambda path, whole: path.write_bytes(b"{}"),
}


@pytest.mark.parametrize("put", PLACES.values(), ids=PLACES)
def test_anything_in_the_place_of_a_cache_is_made_anew(tmp_path: Path, monkeypatch, put):
    settled(monkeypatch)
    root = own(tmp_path / "own")
    expected = folder.prepare(root, 8, "crop")
    files = {path: path.read_bytes() for path in caches() if path.suffix}
    assert {path.suffix for path in files} == {".pictures", ".digests"}
    for path, whole in files.items():
        path.unlink()
        put(path, whole)
    start = time.process_time()
    found = folder.prepare(root, 8, "crop")
    assert found[0] == expected[0] and np.array_equal(found[1], expected[1])
    assert time.process_time() - start < 5
    assert {path: path.read_bytes() for path in caches() if path.suffix} == files


def test_a_cache_that_lies_is_not_believed(tmp_path: Path):
    """Records of other files, or of no form, with digests that fit."""
    root = own(tmp_path / "own")
    expected = folder.prepare(root, 8, "crop")
    (path,) = (path for path in caches() if path.suffix == ".pictures")
    body = bytes(8 * 8 * 3)
    whole: dict[str, Any] = {"digest": "0" * 64, "fault": "", "width": 9, "height": 9, "length": 192, "shape": (8, 8)}
    for lie in ({}, {"digest": 5}, {"width": -1}, {"length": "192"}, {"shape": (8,)}, {"shape": ()}):
        record = store.Record(**whole | lie)
        store.write(path, [(record, body)] * 12)
        assert np.array_equal(folder.prepare(root, 8, "crop")[1], expected[1])


def test_a_file_that_changes_while_it_is_read_ends_it(tmp_path: Path, monkeypatch):
    root, real = own(tmp_path / "own"), folder.read_bytes
    monkeypatch.setattr(folder, "read_bytes", lambda path: real(path)[:-1] + b"x")
    with pytest.raises(Mistake, match="changed while it was read: start again"):
        listing(root)


# What --data means


OURS = ("cifar10", "generated", "generated:48/16")
OWN = ("generated_faces", "./generated", "generated/", "generated:0/5", "cifar10/", "t.csv", "generated:48/16\n")


@pytest.mark.parametrize("name", (*OURS, *OWN, "CIFAR10"))
def test_one_function_says_what_data_means(name: str):
    kind = name.partition(":")[0] if name in OURS else "pictures"
    assert kind_of(name) == kind
    assert Config(data=name).own_pictures == (kind == "pictures")
    assert (parse([f"--data={name}"], "cpu")[0] == "pictures") == (kind == "pictures")


def test_a_folder_with_a_name_of_ours_is_told_how_to_be_called(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(own(tmp_path / "generated").parent)
    assert len(open_dataset("generated").load("train")) == 2048
    assert "--data generated is not the folder of that name: call that ./generated" in capsys.readouterr().err
    assert len(open_dataset("./generated", 8).load("train")) == 8
    own(tmp_path / "generated_faces")
    assert open_dataset("generated_faces", 8).load("train").classes == ("disc", "square")


# Pixels and memory


@pytest.mark.parametrize(
    ("numbers", "expected", "said"),
    [
        (FLOAT([[0, 0.5], [1, 0.25]]), [[0, 128], [255, 64]], "float numbers of 0 to 1"),
        (FLOAT([[-0.01, 0.5], [1.02, 0.25]]), [[0, 128], [255, 64]], "float numbers of 0 to 1"),
        (FLOAT([[0, 128], [255, 7]]), [[0, 128], [255, 7]], "float32 numbers of 0 to 255, taken"),
        (FLOAT([[-1, 0], [1, np.nan]]), [[0, 128], [255, 0]], "each picture's least and largest"),
        (INT([[0, 128], [255, 7]]), [[0, 128], [255, 7]], "int32 numbers of 0 to 255, taken"),
        (INT([[0, 257], [65535, 2570]]), [[0, 1], [255, 10]], ""),
        (SHORT([[0, 257], [65535, 2570]]), [[0, 1], [255, 10]], ""),
        (INT([[-1000, 0], [1000, 500]]), [[0, 128], [255, 191]], "each picture's least and largest"),
        (INT([[0, 10**6], [10**6, 0]]), [[0, 255], [255, 0]], "each picture's least and largest"),
        (np.full((2, 2), np.nan, np.float32), [[0, 0], [0, 0]], ""),
    ],
)
def test_numbers_of_other_forms_are_brought_to_8_bits(numbers, expected, said: str):
    levels, note = eight_bits(numbers)
    assert levels.tolist() == expected and levels.dtype == np.uint8 and said in note


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_tiffs_of_numbers_train_and_are_said(tmp_path: Path, dtype, capsys):
    for k, name in enumerate(("dark", "light")):
        (tmp_path / name).mkdir()
        for i in range(6):
            grey = np.random.default_rng(i).uniform(0.4 * k, 0.4 * k + 0.5, (20, 20)).astype(np.float32)
            numbers = grey if dtype == np.float32 else (grey * 10**6).astype(dtype)
            Image.fromarray(numbers).save(tmp_path / name / f"{i}.tif")
    images = folder.prepare(tmp_path, 8, "crop")[1]
    assert images.std() > 20
    assert re.search(rf"pictures: (float|{dtype.__name__}) numbers.*: 12 \(", capsys.readouterr().err)


def test_pictures_of_one_colour_are_counted(tmp_path: Path, capsys):
    root = own(tmp_path / "own")
    for i in range(3):
        Image.new("RGB", (30, 30), (i, 0, 0)).save(root / "disc" / f"flat {i}.png")
    listing(root)
    assert "of one colour all over: 3 (disc/flat 0.png)" in capsys.readouterr().err


SIZES = [(500, 1), (1, 500), (3000, 20), (65, 1), (64, 1), (63, 1), (1, 1), (40, 30), (333, 77)]


@pytest.mark.parametrize("size", SIZES)
def test_padded_strips_are_seen_and_all_else_is_as_pillow_pads(size):
    pixels = np.random.default_rng(0).integers(0, 90, (size[1], size[0], 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    ours = fitted(picture, 32, "pad")
    pillow = np.asarray(ImageOps.pad(picture, (32, 32), Image.Resampling.BILINEAR, color="white"))
    assert (ours < 100).all(2).sum() >= 32
    if (pillow < 100).any():
        assert np.array_equal(ours, pillow)


def chunk(name: bytes, data: bytes, wrong: bool = False) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data) ^ wrong)


LARGE = random.Random(0).randbytes(1_500_000)


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"zTXt", b"workflow\0\0" + zlib.compress(b"{'node': 1}, " * 160_000)),
        chunk(b"iTXt", b"note\0\1\0\0\0" + zlib.compress(bytes(3_000_000))),
        chunk(b"iCCP", b"press\0\0" + zlib.compress(LARGE)),
        chunk(b"tEXt", b"Comment\0" + LARGE),
        chunk(b"tEXt", b"Comment\0by hand", wrong=True),
        chunk(b"gAMA", b"\0\0\xb1\x8f", wrong=True),
        chunk(b"pHYs", bytes(3)),
    ],
    ids=["text", "itext", "profile", "plain text", "checksum", "gamma's checksum", "short"],
)
@pytest.mark.parametrize("place", ["before", "after"])
def test_what_stands_beside_the_pixels_of_a_png_does_not_matter(tmp_path: Path, extra: bytes, place: str):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    data = (tmp_path / "a.png").read_bytes()
    cut = 33 if place == "before" else len(data) - 12
    expected = decode(tmp_path / "a.png", 16, "crop")
    assert decode_bytes(data[:cut] + extra + data[cut:], 16, "crop").body == expected.tobytes()


@pytest.mark.skipif(importlib.util.find_spec("pillow_heif") is not None, reason="pillow-heif reads HEIC here")
def test_heic_is_named_with_its_package_and_avif_is_read(tmp_path: Path, capsys):
    root = own(tmp_path / "own")
    for i, brand in enumerate((b"heic", b"mif1", b"heix", b"avif")):
        head = b"\0\0\0\x1cftyp" + brand + b"\0\0\0\0mif1" + brand + b"miaf"
        (root / "disc" / f"{i}.HEIC").write_bytes(head + bytes(99))
    pixels = np.kron(np.random.default_rng(0).integers(0, 256, (3, 3, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    Image.fromarray(pixels).save(root / "disc" / "good.avif", quality=95)
    found = listing(root)
    reasons = {file.name: file.reason for file in found.left_out}
    assert all("pillow-heif: install it, or convert" in reasons[f"disc/{i}.HEIC"] for i in range(3))
    assert reasons["disc/3.HEIC"].startswith("AVIF that cannot be read: convert")
    assert "disc/good.avif" in {picture.name for picture in found.pictures}
    assert "3 HEIC is not read without the package pillow-heif" in capsys.readouterr().err


def test_a_refusal_says_what_was_left_out(tmp_path: Path):
    root = own(tmp_path / "own")
    for path in (root / "disc").iterdir():
        path.write_bytes(path.read_bytes()[:40])
    for _ in range(2):  # from the cache too
        with pytest.raises(Mistake, match="class disc has no picture to train on: 6 were left out, 6 damaged"):
            open_dataset(str(root), 8).splits(validate=False)


def test_a_channel_of_one_level_is_divided_by_no_less_than_the_floor():
    split = replace(generated(50), known_statistics=None)
    images = split.images.copy()
    assert split.statistics == channel_statistics(images)
    images[..., 2] = 0
    empty = replace(split, images=images)
    assert empty.statistics[1] == (*channel_statistics(images)[1][:2], LEAST_DEVIATION)


@pytest.mark.parametrize(
    ("side", "resolution", "batch"), [(32, 32, 1000), (32, 48, 1000), (64, 64, 250), (192, 192, 27), (32, 256, 15)]
)
def test_evaluation_takes_a_thousand_small_images_or_as_many_pixels(side: int, resolution: int, batch: int):
    split = replace(generated(1200), images=np.zeros((1200, side, side, 3), np.uint8))
    for given in (resolution, lambda epoch: (16, resolution)[epoch > 0]):
        assert evaluation_loader(split, given, torch.device("cpu"), 1).plan.batch_size == batch


def test_rows_of_missing_files_are_said_in_seconds(tmp_path: Path):
    table = tmp_path / "t.csv"
    table.write_text("path,label\n" + "".join(f"gone/{i}.png,{'ab'[i % 2]}\n" for i in range(30_000)))
    start = time.process_time()
    with pytest.raises(Mistake, match="no picture to train on: 15,000 were left out, 15,000 cannot be read"):
        open_dataset(str(table), 8).load("train")
    assert time.process_time() - start < 4


def test_ranks_say_it_once(tmp_path: Path, monkeypatch, capsys):
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        listing(own(tmp_path / "own"))
        assert ("12 files: 12 used, 0 left out" in capsys.readouterr().err) == (rank == "0")
