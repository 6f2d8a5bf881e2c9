"""pipeline/folder.py: which pictures of a folder are used, for what, and that nothing is lost or written there."""

import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import gradcam
import pipeline.__main__ as entry
import train
from engine import checkpoint
from explain.options import GradcamOptions
from ground.mistake import Mistake
from pipeline import folder, memory, store
from pipeline.dali import DaliLoader
from pipeline.dataset import DataSet, open_dataset
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


def parts_of(found: Listing) -> dict[str, Counter]:
    return {
        name: Counter(one.part for one in found.pictures if one.label == label)
        for label, name in enumerate(found.classes)
    }


# Layouts


def test_classes_alone_are_split_by_content_whatever_the_names(tmp_path: Path):
    found = listing(flat(tmp_path / "a", cat=40, dog=5, eel=2, fox=1))
    counts = parts_of(found)
    assert counts["cat"] == {"train": 32, "validation": 4, "test": 4}
    assert counts["dog"] == {"train": 3, "validation": 1, "test": 1}
    assert counts["eel"] == {"train": 1, "test": 1} and counts["fox"] == {"train": 1}
    other = tmp_path / "b"
    for one in found.pictures:
        target = other / found.classes[one.label] / f"renamed {one.digest[:9]}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((tmp_path / "a" / one.name).read_bytes())
    again = {one.digest: one.part for one in listing(other).pictures}
    assert again == {one.digest: one.part for one in found.pictures}


def test_copies_of_a_picture_are_in_one_part_and_counted(tmp_path: Path):
    root = flat(tmp_path, cat=30, dog=30)
    for i in range(30):
        (root / "cat" / f"copy {i}.png").write_bytes((root / "cat" / f"{i}.png").read_bytes())
    found = listing(root)
    parts: dict[str, str] = {}
    for one in found.pictures:
        assert parts.setdefault(one.digest, one.part) == one.part
    assert found.copies == 30 and len(found.pictures) == 90


@pytest.mark.parametrize("names", [n.split() for n in ("train val test", "Training valid eval", "train dev testing")])
def test_parts_may_have_their_usual_names(tmp_path: Path, names):
    counts = dict(zip(names, (6, 2, 3), strict=True))
    for k, (name, many) in enumerate(counts.items()):
        for i in range(many):
            picture(tmp_path / name / "cat" / f"{i}.png", 100 * k + i)
            if name != names[1]:  # a part that lacks a class shifts no label
                picture(tmp_path / name / "bee" / f"{i}.png", 1000 + 100 * k + i)
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
    (root / "dog" / "cat.png").write_bytes((root / "cat" / "3.png").read_bytes())
    both = ("cat/3.png", "dog/cat.png")
    assert left_out(root) == [f"{name}: the same picture is in two classes" for name in both]
    root = tmp_path / "parts"
    flat(root / "train", cat=5, dog=5)
    for name in ("cat", "dog"):
        picture(root / "test" / name / "new.png", 500 + len(name) + ord(name[0]))
    (root / "test" / "cat" / "seen.png").write_bytes((root / "train" / "cat" / "2.png").read_bytes())
    assert left_out(root) == ["train/cat/2.png: the same picture is among those for test"]
    for place, name in (("val/cat", "2.png"), ("val/dog", "4.png")):
        (root / place).mkdir(parents=True)
        (root / place / name).write_bytes((root / "train" / place[4:] / name).read_bytes())
    assert left_out(root) == [
        "train/cat/2.png: the same picture is among those for test",
        "train/dog/4.png: the same picture is among those for validation",
        "val/cat/2.png: the same picture is among those for test",
    ]


def test_a_class_that_is_renamed_or_goes_is_not_remembered(tmp_path: Path):
    root = flat(tmp_path, a=4, b=4)
    picture(root / "c" / "0.png", 99)
    assert listing(root).classes == ("a", "b", "c")
    shutil.rmtree(root / "c")
    assert listing(root).classes == ("a", "b")
    table = tmp_path / "pictures.csv"
    for names in (("no", "yes"), ("old", "young")):
        table.write_text(
            "path,label\n" + "".join(f"{c}/{i}.png,{n}\n" for c, n in zip("ab", names, strict=True) for i in range(4))
        )
        assert listing(table).classes == names


def test_the_pictures_are_those_of_the_files(tmp_path: Path):
    """CIFAR-10's form written out as PNG comes back as the same arrays."""
    split = generated(60)
    for i, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
        path = tmp_path / "train" / f"{label}" / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
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
    assert found.classes == ("ant", "bee") and parts_of(found)["bee"] == {"train": 4, "validation": 2}
    train = open_dataset(str(table), 8).load("train")
    assert str(root / "x" / "0.png") in train.files and len(train) == 8
    table.write_text("\n".join(["label,path", *(f"{i % 2},../somewhere/x/{i}.png" for i in range(12))]))
    assert parts_of(listing(table))["0"] == {"train": 4, "validation": 1, "test": 1}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("where,label\nx/0.png,a\n", "columns path and label; path is missing; it names where, label"),
        ("path,label,split\nx/0.png,a,train\nx/1.png,b,\n", "line 3: it needs a path, a label and"),
        ("path,label\nx/0.png,a\nx/1.png\n", "line 3: it needs"),
        ("path,label\nx/0.png,a\nx/1.png,a\n", "it must have two labels or more"),
        ("", "columns path and label"),
        ("path,label\n\udc81,a", "can't decode .*: save it as UTF-8"),
    ],
)
def test_a_table_with_a_mistake_is_a_line(tmp_path: Path, text, said):
    table = tmp_path / "pictures.csv"
    table.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=f"--data is {table}: .*{said}"):
        open_dataset(str(table), 8).load("train")


@pytest.mark.parametrize(("side", "size"), [(28, 32), (47, 32), (48, 64), (300, 64)])
def test_the_size_follows_the_pictures(tmp_path: Path, side, size):
    for i in range(6):
        picture(tmp_path / "ab"[i % 2] / f"{i}.png", i, side if i < 4 else 20)
    assert open_dataset(str(tmp_path)).load("train").side == size


def test_what_memory_has_no_room_for_stays_in_files(tmp_path: Path, home: Path, monkeypatch):
    root = flat(tmp_path, cat=600, dog=5)
    usual = open_dataset(str(root), 8).load("train")
    monkeypatch.setattr(memory, "SHARE", 10**12)
    next(home.rglob("*.pictures")).unlink()
    split = open_dataset(str(root), 8).load("train")
    assert isinstance(split.images, np.memmap) and split.digest == usual.digest
    os.truncate(next(home.rglob("*.pictures")), 10)  # which ends no process that has read it
    assert split.images.sum() == usual.images.sum()
    plan = Plan(count=len(split), side=8, batch_size=16, translate=2, flip="random")
    batches = [
        [images.clone() for images, _ in DaliLoader(each, plan, torch.device("cpu"), 1, lambda epoch: 8).epoch(0)]
        for each in (usual, split)
    ]
    assert all(map(torch.equal, *batches))
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
    ("counts", "said"),
    [
        ({}, "it must have two folders or more, one for each class, .* it has none"),
        ({"cat": 3}, "it must have two folders or more, one for each class, .* it has cat"),
        ({"cat": 3, "dog": 0}, r"it has cat \(without pictures: dog\)"),
    ],
)
def test_too_little_is_a_line_that_says_what_to_do(tmp_path: Path, counts, said):
    flat(tmp_path, **counts)
    for name in counts:
        (tmp_path / name).mkdir(exist_ok=True)
    with pytest.raises(ValueError, match=said):
        open_dataset(str(tmp_path), 8).splits(validate=False)


def trained(root: Path, place: Path, *flags: str) -> checkpoint.Checkpoint:
    out = place / "m.pt"
    usual = "pictures --epochs 2 --width 4 --size 16 --resolutions 16 --device cpu --precision fp32 --threads 1".split()
    train.main([*usual, "--data", str(root), "--out", str(out), "--run-dir", str(place / "run"), *flags])
    return checkpoint.load(out)


def test_the_same_arrays_give_the_same_weights(tmp_path: Path, monkeypatch):
    """A part of CIFAR-10's form as PNG, against the arrays themselves."""
    split = generated(120)
    split = split.take(np.argsort(split.labels, kind="stable"), "train")
    for part in ("train", "test"):
        for i, (image, label) in enumerate(zip(split.images, split.labels.tolist(), strict=True)):
            path = tmp_path / "own" / part / split.classes[label] / f"{part} {i:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image if part == "train" else image[:, ::-1]).save(path)
    ours = trained(tmp_path / "own", tmp_path, "--size", "32")
    order = tuple(np.argsort(split.classes))  # a folder's classes are in the order of their names
    labels = np.argsort(order)[split.labels]
    arrays = replace(split, classes=tuple(split.classes[i] for i in order), labels=labels, shuffled=False)
    names = open_dataset(str(tmp_path / "own"), 32).load("train").files
    numbers = np.array([int(Path(name).stem[-3:]) for name in names])
    arrays = replace(arrays, known_statistics=None).take(numbers, "train")
    monkeypatch.setattr(train, "open_dataset", lambda *_: DataSet(lambda part: replace(arrays, name=part)))
    (tmp_path / "b").mkdir()
    theirs = trained(tmp_path / "own", tmp_path / "b", "--size", "32")
    state = theirs.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in ours.model.state_dict().items())


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

    def refused(path, *how, **named):
        if str(path).endswith("cat/1.png"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *how, **named)

    monkeypatch.setattr(os, "open", refused)  # root may read what nobody may
    assert left_out(root) == ["cat/1.png: cannot be read: Permission denied"]


def test_no_such_folder_is_a_line(tmp_path: Path):
    with pytest.raises(ValueError, match="there is no such folder"):
        open_dataset(str(tmp_path / "none"))


# The cache


def test_pictures_are_decoded_once_and_again_when_anything_changes(tmp_path: Path, home: Path, monkeypatch):
    root = flat(tmp_path, cat=4, dog=4)
    decoded = []
    real = folder.decode_bytes

    def watched(*how):
        decoded.append(how)
        return real(*how)

    monkeypatch.setattr(folder, "decode_bytes", watched)

    def work(size: int, fit: folder.Fit = "crop") -> int:
        decoded.clear()
        folder.prepare(root, size, fit)
        return len(decoded)

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


def test_killed_while_decoding_it_begins_anew(tmp_path: Path, home: Path):
    root = flat(tmp_path, cat=300, dog=300)
    code = f"""
import time
from pathlib import Path
from pipeline import folder
real, done = folder.decode_bytes, []
folder.decode_bytes = lambda *how: done.append(0) or time.sleep(60 * (len(done) > 500)) or real(*how)
folder.prepare(Path({str(root)!r}), 64, "crop")
"""
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=4, capture_output=True)
    assert not list(home.rglob("*.pictures"))
    assert len(listing(root, 64).pictures) == 600


def test_a_damaged_cache_is_made_anew(tmp_path: Path, home: Path):
    root = flat(tmp_path, cat=4, dog=4)
    first = folder.prepare(root, 8, "crop")[1]
    (path,) = home.rglob("*.pictures")
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[: len(whole) // 2], b"", whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:], b"{}"):
        path.write_bytes(damaged)
        assert np.array_equal(folder.prepare(root, 8, "crop")[1], first)
        assert path.read_bytes() == whole


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
            path = root / f"class <b>{label}" / f"{i} <script>.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).resize((40, 32)).save(path)
    out = tmp_path / "m.pt"
    train.main(
        ["--data", str(root), "--size", "16", "--resolutions", "8", "16", "--epochs", "2", "--batch-size", "8",
         "--width", "4", "--device", "cpu", "--threads", "1", "--out", str(out), "--run-dir", str(tmp_path / "run")]
    )  # fmt: skip
    page = tmp_path / "errors.html"
    result = gradcam.explain_errors(GradcamOptions(ckpt=str(out), out=str(page), device="cpu", threads=1))
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
    assert "20 pictures, 0 of them copies" in said.stdout
    wrong = subprocess.run([*command[:4], "nowhere"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and "no such folder" in wrong.stderr


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
