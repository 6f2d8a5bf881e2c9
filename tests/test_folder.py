"""pipeline/folder.py: which pictures of a folder are used, for what, and that nothing is lost or written there."""

import os
import shutil
import subprocess
import sys
from collections import Counter
from itertools import count
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter

import gradcam
import pipeline.__main__ as entry
import train
from engine import checkpoint
from explain.options import GradcamOptions
from ground.mistake import Mistake
from pipeline import folder, store
from pipeline import home as caches
from pipeline.dali import DaliLoader
from pipeline.dataset import open_dataset
from pipeline.listing import Listing
from pipeline.plan import Plan
from pipeline.synthetic import generated
from tests.commands import call

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch):
    """An empty folder for caches."""
    place = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("CIFAR10_DIR", str(place))
    return place


def picture(path: Path, seed: int = 0, side: int = 12) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "PNG")
    return path


def flat(root: Path, seed: int = 0, **counts: int) -> Path:
    """A folder of so many different pictures of each class."""
    seeds = count(seed)
    for name, many in counts.items():
        for i in range(many):
            picture(root / name / f"{i}.png", next(seeds))
    return root


def listing(root: Path, size: int = 8) -> Listing:
    return folder.prepare(root, size, "crop")[0]


def left_out(root: Path) -> list[str]:
    return sorted(map(str, listing(root).left_out))


def parts_of(found: Listing, name: str) -> Counter:
    return Counter(one.part for one in found.pictures if found.classes[one.label] == name)


# Parts, classes and tables


def test_classes_alone_are_split_by_content_whatever_the_names(tmp_path: Path):
    found = listing(flat(tmp_path / "a", cat=40, dog=5, eel=2, fox=1))
    assert parts_of(found, "cat") == {"train": 32, "validation": 4, "test": 4}
    assert parts_of(found, "dog") == {"train": 3, "validation": 1, "test": 1}
    assert parts_of(found, "eel") == {"train": 1, "test": 1} and parts_of(found, "fox") == {"train": 1}
    other = tmp_path / "b"
    for one in found.pictures:
        target = other / found.classes[one.label] / f"renamed {one.digest[:9]}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "a" / one.name, target)
    again = {one.digest: one.part for one in listing(other).pictures}
    assert again == {one.digest: one.part for one in found.pictures}


def test_copies_of_a_picture_are_in_one_part_and_counted(tmp_path: Path, capsys):
    root = flat(tmp_path / "own", cat=30, dog=30)
    for i in range(30):
        shutil.copy(root / "cat" / f"{i}.png", root / "cat" / f"copy {i}.png")
    found = listing(root)
    parts: dict[str, str] = {}
    for one in found.pictures:
        assert parts.setdefault(one.digest, one.part) == one.part
    entry.main(["--data", str(root), "--size", "8", "--sheet", str(tmp_path / "s.png")])
    assert "90 pictures, 30 of them copies of another one in their class" in capsys.readouterr().out


@pytest.mark.parametrize("names", ["train val test", "Training valid eval", "train dev testing"])
def test_parts_may_have_their_usual_names(tmp_path: Path, names):
    train, validation, test = names.split()
    flat(tmp_path / train, 0, cat=6, bee=6)
    flat(tmp_path / validation, 100, cat=2)  # a part that lacks a class shifts no label
    flat(tmp_path / test, 200, cat=3, bee=3)
    data = open_dataset(str(tmp_path), 8)
    train, reported = data.splits(validate=False)
    _, validation = data.splits(validate=True)
    assert train.classes == ("bee", "cat") and (len(train), len(reported), len(validation)) == (12, 6, 2)
    assert validation.labels.tolist() == [1, 1] and (reported.name, validation.name) == ("test", "validation")
    assert all(Path(name).is_file() for name in train.files) and train.images.shape == (12, 8, 8, 3)


def test_without_a_test_part_validation_is_reported(tmp_path: Path):
    for seed, part in ((0, "train"), (100, "val")):
        flat(tmp_path / part, seed, cat=4, dog=4)
    assert open_dataset(str(tmp_path), 8).splits(validate=False)[1].name == "validation"


def test_what_would_make_the_report_dishonest_is_left_out(tmp_path: Path):
    root = flat(tmp_path / "flat", cat=9, dog=9)
    shutil.copy(root / "cat" / "3.png", root / "dog" / "cat.png")
    both = ("cat/3.png", "dog/cat.png")
    assert left_out(root) == [f"{name}: the same picture is in two classes" for name in both]
    root = tmp_path / "parts"
    flat(root / "train", cat=5, dog=5)
    flat(root / "test", 500, cat=1, dog=1)
    shutil.copy(root / "train" / "cat" / "2.png", root / "test" / "cat" / "seen.png")
    assert left_out(root) == ["train/cat/2.png: the same picture is among those for test"]
    for name in ("cat/2.png", "dog/4.png"):
        (root / "val" / name).parent.mkdir(parents=True)
        shutil.copy(root / "train" / name, root / "val" / name)
    assert left_out(root) == [
        "train/cat/2.png: the same picture is among those for test",
        "train/dog/4.png: the same picture is among those for validation",
        "val/cat/2.png: the same picture is among those for test",
    ]


def test_a_class_that_is_renamed_or_goes_is_not_remembered(tmp_path: Path):
    root = flat(tmp_path, a=4, b=4, c=1)
    assert listing(root).classes == ("a", "b", "c")
    shutil.rmtree(root / "c")
    assert listing(root).classes == ("a", "b")
    table = tmp_path / "pictures.csv"
    for names in (("no", "yes"), ("old", "young")):
        rows = (f"{place}/{i}.png,{name}\n" for place, name in zip("ab", names, strict=True) for i in range(4))
        table.write_text("".join(["path,label\n", *rows]))
        assert listing(table).classes == names


def test_the_pictures_are_those_of_the_files(tmp_path: Path):
    """CIFAR-10's form written out as PNG comes back as the same arrays, so that it trains the same weights."""
    split = generated(60)
    for i, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
        (tmp_path / "train" / f"{label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "train" / f"{label}" / f"{i:03}.png")
    found = open_dataset(str(tmp_path), 32).load("train")
    numbers = [int(Path(name).stem) for name in found.files]
    assert sorted(numbers) == [*range(60)] and (np.diff(found.labels) >= 0).all()
    assert np.array_equal(found.images, split.images[numbers])
    assert np.array_equal(found.labels, split.labels[numbers])


def test_a_table_names_the_files_their_labels_and_parts(tmp_path: Path):
    root = flat(tmp_path / "somewhere", x=12)
    table = root / "pictures.csv"
    lines = [f"x/{i}.png,{'bee' if i % 2 else 'ant'},{'train' if i < 8 else 'Val'}" for i in range(12)]
    table.write_text("\n".join(["path,label,split", *lines]))
    found = listing(table)
    assert found.classes == ("ant", "bee") and parts_of(found, "bee") == {"train": 4, "validation": 2}
    train = open_dataset(str(table), 8).load("train")
    assert str(root / "x" / "0.png") in train.files and len(train) == 8
    table.write_text("\n".join(["label,path", *(f"{i % 2},../somewhere/x/{i}.png" for i in range(12))]))
    assert parts_of(listing(table), "0") == {"train": 4, "validation": 1, "test": 1}


@pytest.mark.parametrize(("side", "size"), [(28, 32), (47, 32), (48, 64), (300, 64)])
def test_the_size_follows_the_pictures(tmp_path: Path, side, size):
    for i in range(6):
        picture(tmp_path / "ab"[i % 2] / f"{i}.png", i, side if i < 4 else 20)
    assert open_dataset(str(tmp_path)).load("train").side == size


def test_what_memory_has_no_room_for_stays_in_files(tmp_path: Path, home: Path, monkeypatch):
    root = flat(tmp_path, cat=600, dog=5)
    usual = open_dataset(str(root), 8).load("train")
    monkeypatch.setattr(caches, "SHARE", 10**12)
    next(home.rglob("*.pictures")).unlink()
    split = open_dataset(str(root), 8).load("train")
    assert isinstance(split.images, np.memmap) and split.digest == usual.digest
    os.truncate(next(home.rglob("*.pictures")), 10)  # which ends no process that has read it
    assert split.images.sum() == usual.images.sum()
    plan = Plan(count=len(split), side=8, batch_size=16, translate=2, flip="random")
    loaders = [DaliLoader(each, plan, torch.device("cpu"), 1, lambda epoch: 8) for each in (usual, split)]
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(*(each.epoch(0) for each in loaders), strict=True))
    assert {one.suffix for one in (home / "pictures").iterdir() if one.name != "lock"} == {".pictures", ".digests"}


# Mistakes and damage


def test_a_file_that_cannot_be_read_is_named_and_the_others_go_on(tmp_path: Path, capfd):
    root = flat(tmp_path, cat=9, dog=9)
    whole = (root / "cat" / "0.png").read_bytes()
    strange = os.fsdecode(b"\xff\n<script>alert(1)</script> 'x'.png")
    picture(root / "cat" / strange, 77)
    (root / "cat" / "cut.png").write_bytes(whole[:80])
    (root / "cat" / "empty.png").touch()
    (root / "cat" / "notes.jpg").write_text("no picture")
    (root / "cat" / "nowhere.png").symlink_to("missing")
    os.mkfifo(root / "cat" / "pipe.png")
    before = sorted(root.rglob("*"))
    found = folder.prepare(root, 8, "crop")[0]
    assert len(found.pictures) == 19
    assert {file.name: file.kind for file in found.left_out} == {
        "cat/cut.png": "damaged",
        "cat/empty.png": "empty file",
        "cat/notes.jpg": "cannot identify it as a picture",
        "cat/nowhere.png": "cannot be read",
        "cat/pipe.png": "not a regular file",
    }
    assert all(str(line).isprintable() for line in found.left_out)
    assert all((root / one.name).is_file() for one in found.pictures)
    assert sorted(root.rglob("*")) == before, "nothing is written there"
    said = capfd.readouterr().err
    assert "pictures: 24 files: 19 used, 5 left out: " in said and "1 damaged (cat/cut.png)" in said
    folder.prepare(root, 8, "crop")
    assert capfd.readouterr().err == said, "from the cache too"


@pytest.mark.parametrize(
    ("counts", "said"), [({}, "none"), ({"cat": 3}, "cat"), ({"cat": 3, "dog": 0}, r"cat \(without pictures: dog\)")]
)
def test_too_little_is_a_line_that_says_what_to_do(tmp_path: Path, counts, said):
    flat(tmp_path, **counts)
    for name in counts:
        (tmp_path / name).mkdir(exist_ok=True)
    with pytest.raises(Mistake, match=f"must have two folders or more, one for each class, .* it has {said}$"):
        open_dataset(str(tmp_path), 8).splits(validate=False)


def trained(root: Path, place: Path, *flags: str) -> checkpoint.Checkpoint:
    out = place / "m.pt"
    usual = "pictures --epochs 2 --width 4 --size 16 --resolutions 16 --device cpu --precision fp32 --threads 1".split()
    train.main([*usual, "--data", str(root), "--out", str(out), "--run-dir", str(place / "run"), *flags])
    return checkpoint.load(out)


@pytest.mark.parametrize("level", [0, 255])
def test_a_channel_that_says_nothing_does_not_stop_the_training(tmp_path: Path, level: int):
    root = flat(tmp_path / "own", cat=20, dog=20)
    for i, path in enumerate(sorted(root.rglob("*.png"))):
        pixels = np.asarray(Image.open(path)).copy()
        pixels[..., 2] = 0
        pixels[0, 0, 2] = 0 if i else level
        Image.fromarray(pixels).save(path)
    assert np.isfinite(trained(root, tmp_path).metrics["test_loss"])


def test_three_hundred_classes_and_a_class_of_one_picture(tmp_path: Path):
    root = flat(tmp_path / "own", **{f"kind {i}": 2 for i in range(299)}, **{"only one": 1})
    found = trained(root, tmp_path)
    assert len(found.model.classes) == 300 and found.metrics["test_total"] == 299


@pytest.mark.parametrize("flags", [(), ("--run-dir", "a/run"), ("--run-dir", "../holiday/run")])
def test_a_run_leaves_nothing_among_the_pictures(tmp_path: Path, monkeypatch, capsys, flags):
    root = flat(tmp_path / "holiday", cat=10, dog=10)
    before = sorted(root.rglob("*"))
    monkeypatch.chdir(root)
    code, _, stderr = call(capsys, "smoke", "--data", ".", *flags, "--out", str(tmp_path / "m.pt"))
    assert code == 2 and stderr.count("\n") == 1 and "lies in ., among what this command reads" in stderr
    assert sorted(root.rglob("*")) == before


def test_two_pictures_are_too_few(tmp_path: Path):
    said = "it has no pictures for validation: add some, .*; without parts a class of two or more gives one"
    with pytest.raises(ValueError, match=said):
        trained(flat(tmp_path / "own", cat=1, dog=1), tmp_path)
    assert trained(flat(tmp_path / "more", cat=2, dog=2), tmp_path).metrics["test_total"] == 2


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch):
    root = flat(tmp_path, cat=3, dog=3)
    (root / "cat" / "1.png").chmod(0)
    real = os.open

    def refused(path, *how, **named):  # root may read what nobody may
        if str(path).endswith("cat/1.png"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *how, **named)

    monkeypatch.setattr(os, "open", refused)
    assert left_out(root) == ["cat/1.png: cannot be read: Permission denied"]


# The cache


def test_pictures_are_decoded_once_and_again_when_anything_changes(tmp_path: Path, home: Path, monkeypatch):
    root = flat(tmp_path, cat=4, dog=4)
    decoded = Mock(wraps=folder.decode_bytes)
    monkeypatch.setattr(folder, "decode_bytes", decoded)

    def work(size: int, fit: folder.Fit = "crop") -> int:
        decoded.reset_mock()
        folder.prepare(root, size, fit)
        return len(decoded.call_args_list)

    assert [work(8), work(8), work(9), work(8, "pad"), work(8, "pad")] == [8, 0, 8, 8, 0]
    (root / "cat" / "0.png").rename(root / "cat" / "another name.png")
    assert work(8) == 0
    root = root.rename(tmp_path.with_name("moved"))
    assert work(8) == 0
    picture(root / "cat" / "new.png", 99)
    assert [work(8), work(8)] == [9, 0]
    picture(root / "cat" / "new.png", 98, side=13)
    assert work(8) == 9
    assert not list(home.rglob("*.tmp"))


@pytest.mark.parametrize("size", [64, 96])
def test_killed_while_decoding_it_begins_anew(tmp_path: Path, home: Path, size: int):
    root = flat(tmp_path, cat=300, dog=300)
    code = f"""
import time
from pathlib import Path
from pipeline import folder
real, done = folder.decode_bytes, []
folder.decode_bytes = lambda *how: done.append(0) or time.sleep(60 * (len(done) > 500)) or real(*how)
folder.prepare(Path({str(root)!r}), {size}, "crop")
"""
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=4, capture_output=True)
    assert not list(home.rglob("*.pictures")) and list(home.rglob(".*.pictures.*.tmp"))
    assert len(listing(root, size).pictures) == 600
    assert not list(home.rglob(".*.tmp"))


def test_the_newest_caches_of_a_folder_stay_and_those_of_others(tmp_path: Path, home: Path, capfd):
    one, other = (flat(tmp_path / name, seed, cat=3, dog=3) for seed, name in enumerate(("one", "other")))
    listing(other)
    for size in range(8, 8 + store.KEPT + 2):
        listing(one, size)
    assert len(list(home.rglob("*.pictures"))) == store.KEPT + 1
    assert capfd.readouterr().err.count("removed the oldest cache of this folder") == 2


# From a folder to a page


def test_a_folder_trains_and_every_error_is_explained_with_its_file(tmp_path: Path):
    split, root = generated(160), tmp_path / "own"
    for i, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
        if label < 3:
            (root / f"class <b>{label}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).resize((40, 32)).save(root / f"class <b>{label}" / f"{i} <script>.png")
    trained(root, tmp_path, "--resolutions", "8", "16", "--batch-size", "8")
    out, page = str(tmp_path / "m.pt"), tmp_path / "errors.html"
    result = gradcam.explain_errors(GradcamOptions(ckpt=out, out=str(page), device="cpu", threads=1))
    assert result["split"] == "test" and result["total"] == len(open_dataset(str(root), 16).load("test"))
    rows = (tmp_path / "errors.csv").read_text().splitlines()
    assert rows[0].endswith(",file") and len(rows) == 1 + result["errors"]
    assert all(Path(row.rpartition(",")[2]).is_file() for row in rows[1:])
    assert "<script>.png" not in page.read_text()


def test_the_command_says_what_is_there(tmp_path: Path):
    root = flat(tmp_path / "own", cat=10, dog=10)
    (root / "dog" / "notes.txt").write_text("no picture")
    command = [sys.executable, "-m", "pipeline", "--data", str(root), "--size", "8", "--sheet", str(tmp_path / "s.png")]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert said.returncode == 0 and "left out dog/notes.txt: no picture, .txt" in said.stdout
    assert "20 pictures, 0 of them copies" in said.stdout and (tmp_path / "s.png").stat().st_size
    with pytest.raises(Mistake, match="no such folder"):
        entry.main(["--data", "nowhere"])


def test_the_sheet_replaces_no_picture_of_a_person_and_no_link(tmp_path: Path, monkeypatch):
    root = flat(tmp_path / "own", cat=3, dog=3)
    monkeypatch.chdir(tmp_path)

    def sheet(path: str) -> bytes:
        entry.main(["--data", "own", "--size", "8", "--sheet", path])
        return Path(path).read_bytes()

    first = sheet("sheet.png")
    assert sheet("sheet.png") == first
    mine = picture(tmp_path / "mine.png").read_bytes()
    with pytest.raises(Mistake, match=r"mine.png would be overwritten, and is not of this program"):
        sheet("mine.png")
    assert Path("mine.png").read_bytes() == mine
    Path("link.png").symlink_to("sheet.png")
    assert sheet("link.png") == first and Path("link.png").is_symlink()
    with pytest.raises(Mistake, match="lies in own"):
        sheet("own/sheet.png")
    assert not (root / "sheet.png").exists()


# Near copies


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
def test_the_command_names_near_copies_across_parts(copies: int, tmp_path: Path, capsys):
    root, seeds = tmp_path / "holiday", count(1)
    for place, many in (("train/beach", 5), ("train/city", 5), ("test/beach", 3), ("test/city", 3)):
        (root / place).mkdir(parents=True)
        for i in range(many):
            drawn(next(seeds)).save(root / place / f"{i}.png")
    for i in range(copies):
        drawn(1 + i).save(root / "test" / "beach" / f"again{i}.jpg", quality=70)
    entry.main(["--data", str(root), "--sheet", str(tmp_path / "sheet.png")])
    lines = [line for line in capsys.readouterr().out.splitlines() if "nearly the same" in line]
    said = "test: 2 of 8 are nearly the same as a picture to train on: "
    assert len(lines) == bool(copies) and all(line.startswith(said) for line in lines)
    for i in range(copies):
        assert f"test/beach/again{i}.jpg and train/beach/{i}.png" in lines[0]
