"""pipeline/layout.py: what is class and what is part, and that every file is accounted for."""

import os
import random
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from ground.mistake import Mistake
from pipeline.labels import one_spelling, part_name
from pipeline.layout import folder_inventory
from pipeline.listing import Inventory

EITHER = "it can be read in two ways"


def made(root: Path, *names: str) -> Path:
    """A folder with these files; those that a number follows, "a/b.png 3", so often. They look like pictures."""
    for name in names:
        name, _, count = name.partition(" x ")
        for i in range(int(count or 1)):
            path = root / (name.replace("*", str(i)))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return root


def counts_of(inventory: Inventory) -> dict[tuple[str, str], int]:
    """{(class, part): pictures}."""
    return dict(Counter((inventory.classes[file.label], file.part) for file in inventory.files))


def understood(root: Path, layout="auto") -> dict[tuple[str, str], int]:
    """The counts; and every file is accounted for."""
    inventory = folder_inventory(root, layout)
    accounted_for(root, inventory)
    return counts_of(inventory)


def accounted_for(root: Path, inventory: Inventory) -> None:
    """Every file exactly once."""
    there = sorted(os.path.relpath(Path(place, name), root) for place, _, names in os.walk(root) for name in names)
    assert sorted([one.name for one in inventory.files] + [one.name for one in inventory.left_out]) == there


# The places of pictures, % standing for either class, with their number; and other files.
@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ("% 3", {"": 3}),
        ("cat/a/b 3|dog 3", {"": 3}),
        ("archive/% 3|readme/note.txt", {"": 3}),
        ("a/b/c/% 3|a/cover.jpg", {"": 3}),
        ("%/images 3|dog/boxes.txt", {"": 3}),
        ("train/% 3|test/% 2", {"train": 3, "test": 2}),
        ("Training/% 3|Testing/% 1", {"train": 3, "test": 1}),
        ("seg_train/seg_train/% 3|seg_test/seg_test/% 1|seg_pred/seg_pred 9", {"train": 3, "test": 1}),
        ("training_set/training_set/% 3|test_set/test_set/% 1", {"train": 3, "test": 1}),
        ("x/ray/train/% 3|x/ray/val/% 1|x/__MACOSX/ray/train/cat/._1.png", {"train": 3, "validation": 1}),
        ("trainImages/% 3|ValImages/% 1", {"train": 3, "validation": 1}),
        ("train2017/% 3|val2017/% 1", {"train": 3, "validation": 1}),
        ("train/% 3|test 5", {"train": 3}),
        ("train/% 3|test/images 5|val/% 1", {"train": 3, "validation": 1}),
        ("train/% 3|test/% 1|docs/figure.png", {"train": 3, "test": 1}),
        ("%/train 3|%/test 1", {"train": 3, "test": 1}),
    ],
)
def test_what_the_folders_say(tmp_path: Path, places: str, expected: dict[str, int]):
    for place in places.split("|"):
        folder, _, count = place.partition(" ")
        made(tmp_path, *(f"{folder.replace('%', c)}/*.png x {count}" if count else folder for c in ("cat", "dog")))
    assert understood(tmp_path) == {(label, part): n for label in ("cat", "dog") for part, n in expected.items()}


def test_a_part_that_lacks_a_class_shifts_none_and_keeps_its_one_folder(tmp_path: Path):
    made(tmp_path, "train/ant/*.png x 3", "train/bee/*.png x 3", "val/bee/1.png", "test/images/bee/1.png")
    assert understood(tmp_path) == {
        ("ant", "train"): 3, ("bee", "train"): 3, ("bee", "validation"): 1, ("bee", "test"): 1
    }  # fmt: skip


@pytest.mark.parametrize("names", ["train plane car", "test cat dog", "Validation Set,cat", "val id,x y"])
def test_a_class_may_have_the_name_of_a_part(tmp_path: Path, names: str):
    classes = sorted(names.split("," if "," in names else " "))
    made(tmp_path / "a", *(f"{name}/*.png x 3" for name in classes))
    assert understood(tmp_path / "a") == {(name, ""): 3 for name in classes}
    made(tmp_path / "b", *(f"{part}/{name}/*.png x 2" for name in classes for part in ("train", "test")))
    expected = {(name, part): 2 for name in classes for part in ("train", "test")}
    assert understood(tmp_path / "b") == expected


@pytest.mark.parametrize(
    ("names", "classes", "parts"),
    [
        ("cat/in/1.png|cat/out/1.png|dog/in/1.png|dog/out/1.png", "cat dog", "in out"),
        ("2019/cat/1.png|2019/dog/1.png|2020/cat/1.png|2020/dog/1.png|2021/cat/1.png", "2019 2020 2021", "cat dog"),
        ("train/a/1.png|train/b/1.png|plane/1.png|car/1.png", "car plane train", "a b"),
        ("steam train/day/1.png|steam train/night/1.png|crash test/day/1.png|crash test/night/1.png",
         "crash test,steam train", "day night"),
        ("train/train/1.png|train/test/1.png|test/train/1.png|test/test/1.png", "test train", "test train"),
        ("val/cat/1.png|val/dog/1.png|test/cat/1.png|test/dog/1.png", "test val", "cat dog"),
    ],
)  # fmt: skip
def test_what_can_be_read_in_two_ways_is_not_guessed(tmp_path: Path, names: str, classes: str, parts: str):
    made(tmp_path, *names.split("|"))
    named = [sorted(some.split("," if "," in some else " ")) for some in (classes, parts)]
    with pytest.raises(Mistake, match=EITHER) as caught:
        folder_inventory(tmp_path, "auto")
    assert all(f"{len(some)} classes ({', '.join(some)})" in str(caught.value) for some in named)
    assert "\n" not in str(caught.value)
    for layout, some in zip(("classes", "parts"), named, strict=True):
        assert sorted({label for label, _ in understood(tmp_path, layout)}) == some


def test_parts_without_classes_are_not_classes_unless_a_person_says_so(tmp_path: Path):
    made(tmp_path, "train/*.png x 4", "test/*.png x 2")
    with pytest.raises(Mistake, match=r"as parts, test, train do not hold two folders .* or say --layout classes"):
        folder_inventory(tmp_path, "auto")
    assert understood(tmp_path, "classes") == {("test", ""): 2, ("train", ""): 4}
    with pytest.raises(Mistake, match=r"no two folders in it|do not hold two folders"):
        folder_inventory(tmp_path, "parts")


def test_tiny_imagenet_as_it_is_unpacked(tmp_path: Path):
    for label in ("n01", "n02"):
        made(tmp_path, f"train/{label}/images/{label}_*.JPEG x 3", f"train/{label}/{label}_boxes.txt")
    made(tmp_path, "val/images/val_*.JPEG x 5", "test/images/test_*.JPEG x 4", "wnids.txt", "words.txt")
    rows = [f"val_{i}.JPEG\tn0{i % 2 + 1}\t0\t0\t62\t62" for i in range(4)]
    (tmp_path / "val" / "val_annotations.txt").write_text("\n".join(rows))
    assert understood(tmp_path) == {
        ("n01", "train"): 3, ("n02", "train"): 3, ("n01", "validation"): 2, ("n02", "validation"): 2
    }  # fmt: skip
    inventory = folder_inventory(tmp_path, "auto")
    assert "the classes of val are those of val/val_annotations.txt" in inventory.notes
    reasons = Counter(file.reason for file in inventory.left_out if file.name.endswith("JPEG"))
    assert reasons == {
        "val/val_annotations.txt names no class of it": 1, "in test, which has no folder of a class": 4
    }  # fmt: skip


def test_left_out_is_said_of_every_file(tmp_path: Path):
    made(tmp_path, "cat/*.png x 2", "dog/*.jpg x 2", "loose.png", "cat/.DS_Store", "cat/Thumbs.db", "cat/noSuffix")
    made(tmp_path, ".git/objects/1", "__MACOSX/cat/._0.png", "dog/a/b/notes.TXT", "dog/raw.CR2")
    (tmp_path / "dog" / "photo").write_bytes(b"\xff\xd8\xff\xe0 begins as a JPEG does")
    (tmp_path / "dog" / "gone.png").symlink_to("nowhere")
    os.mkfifo(tmp_path / "dog" / "pipe.png")
    inventory = folder_inventory(tmp_path, "auto")
    accounted_for(tmp_path, inventory)
    assert sorted(file.name for file in inventory.files) == [
        "cat/0.png", "cat/1.png", "dog/0.jpg", "dog/1.jpg", "dog/photo"
    ]  # fmt: skip
    assert Counter(file.kind for file in inventory.left_out) == {
        "hidden": 3, "no picture, .db": 1, "no picture, no suffix": 1, "no picture, .txt": 1, "no picture, .cr2": 1,
        "not in the folder of a class": 1, "cannot be read": 1, "not a regular file": 1,
    }  # fmt: skip


def test_links_are_followed_once_and_never_in_a_circle(tmp_path: Path):
    root = made(tmp_path / "own", "disc/*.png x 10", "square/*.png x 40")
    made(tmp_path / "elsewhere", "disc/*.jpg x 30", "disc/deep/*.jpg x 2", "ring/*.png x 5")
    (root / "disc" / "more").symlink_to(tmp_path / "elsewhere" / "disc")
    (root / "ring").symlink_to("../elsewhere/ring")
    expected = {("disc", ""): 42, ("square", ""): 40, ("ring", ""): 5}
    assert counts_of(folder_inventory(root, "auto")) == expected
    (root / "disc" / "up").symlink_to("..")
    (root / "square" / "whole").symlink_to("/")
    (root / "square" / "again").symlink_to(tmp_path / "elsewhere" / "disc" / "deep")
    (root / "square" / "self").symlink_to("self")
    inventory = folder_inventory(root, "auto")
    assert counts_of(inventory) == expected
    reasons = {file.name: file.kind for file in inventory.left_out}
    here = "a link to a folder that is here already, or holds this one"
    assert reasons == {
        "disc/up": here, "square/whole": here, "square/again": here, "square/self": "cannot be read"
    }  # fmt: skip


def test_labels_that_nobody_can_tell_apart_are_one(tmp_path: Path):
    composed, apart = "caf\u00e9", "cafe\u0301"
    several = ["disc", " disc", "disc ", "disc", "Disc", composed, apart, "a b", "a\u00a0 b", "A", "a"]
    meant, notes = one_spelling(several)
    assert meant == {
        "disc": "disc", " disc": "disc", "disc ": "disc", "Disc": "disc", composed: composed, apart: composed,
        "a b": "a b", "a\u00a0 b": "a b", "A": "A", "a": "a",
    }  # fmt: skip
    assert len(notes) == 3 and "' disc', 'Disc', 'disc', 'disc ' are one class" in notes
    made(tmp_path, "Cat/1.png", "cat/2.png", "cat/3.png", "dog/1.png")
    assert understood(tmp_path) == {("cat", ""): 3, ("dog", ""): 1}


@pytest.mark.parametrize(
    ("name", "meaning"),
    [("Training_Set", "train"), ("x_test", "test"), ("validation-images", "validation"), ("TestData", "test"),
     ("train_val", ""), ("Valid", "validation"), ("invalid", ""), ("contest", ""), ("cat", "")],
)  # fmt: skip
def test_names_of_parts(name: str, meaning: str):
    found = part_name(name)
    assert (found[0] if found else "") == meaning


# Any tree

WORDS = ["cat", "dog", "a b", "Zürich", "test", "val", "0", "x" * 60, "naïve", "train", "<b>", "'q'", "set", "n01"]


def drawn(root: Path, rng: random.Random) -> dict[tuple[str, str], int]:
    """A random tree, and {(class, part): pictures} as drawn."""
    classes = rng.sample(WORDS, rng.randint(2, 5))
    if all(map(part_name, classes)):  # nothing but train and test: these are parts to anybody
        classes.append("cat")
    way = rng.choice([("train", "test"), ("Training", "Valid", "testing"), ("seg_train", "seg_test"), (), (), ()])
    depth = "".join(f"{name}/" for name in rng.sample(["archive", "data v2", "images"], rng.randint(0, 2)))
    counts: dict[tuple[str, str], int] = {}
    places: dict[tuple[str, str], Path] = {}
    for top in way or ("",):
        part = part_name(top)[0] if top else ""  # type: ignore[index]
        alone = rng.choice(["", f"{top}/"]) if top else ""
        for label in classes:
            if top and part != "train" and len(classes) > 2 and rng.random() < 0.2:
                continue
            place = f"{depth}{top}/{alone}{label}" if top else f"{depth}{label}"
            below = rng.choice(["", "", "images/", "camera 1/", "camera 1/2024/"])
            count = rng.randint(1, 3)
            for i in range(count):
                made(root, f"{place}/{below}{i}.{rng.choice(('png', 'JPG', 'webp'))}")
            if rng.random() < 0.2:
                made(root, f"{place}/{rng.choice(('notes.txt', '.hidden', 'Thumbs.db', 'boxes.xml'))}")
            counts[label, part], places[label, part] = count, root / place
    for name in rng.sample(["readme.md", "cover.jpg", ".DS_Store", ".git/config", "docs/a.pdf"], rng.randint(0, 3)):
        made(root, name)
    if rng.random() < 0.3:
        elsewhere = made(root.with_name(f"{root.name}-elsewhere"), "more.png", "deep/more.png")
        chosen = rng.choice(list(counts))
        (places[chosen] / "link").symlink_to(elsewhere)
        (places[chosen] / "circle").symlink_to(root)
        counts[chosen] += 2
    return counts


@pytest.mark.parametrize("trials", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_any_tree_is_read_as_drawn_or_both_readings_are_named(tmp_path: Path, trials: int):
    rng, read = random.Random(trials), 0
    for trial in range(trials):
        root = tmp_path / f"tree {trial}"
        counts = drawn(root, rng)
        try:
            inventory = folder_inventory(root, "auto")
        except Mistake as error:
            said = str(error)
            assert re.search(f"{EITHER}: .*; or .*: say which|as parts, .* or say --layout", said), said
            shutil.rmtree(root)
            continue
        read += 1
        there = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() or path.name == "circle"}
        for link in root.rglob("link"):
            there |= {f"{link.relative_to(root)}/{name}" for name in ("more.png", "deep/more.png")}
        every = [one.name for one in inventory.files] + [one.name for one in inventory.left_out]
        assert sorted(every) == sorted(there)
        assert counts_of(inventory) == counts, sorted(there)
        shutil.rmtree(root)
    assert read > trials * 0.7
