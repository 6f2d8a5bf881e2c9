"""Packed pictures: what is stored, what training cuts out of it and evaluation sees, and where they meet the rest."""

import hashlib
import io
import os
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from nvidia.dali import fn, pipeline_def
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from ground.mistake import Mistake
from pipeline import folder, store
from pipeline.dali import DaliLoader, _decoding_graph, evaluation_loader
from pipeline.dataset import open_dataset
from pipeline.packed import PackedPictures
from pipeline.pictures import LONGEST, SPARE, Decoded, decode, decode_bytes, fitted
from pipeline.plan import Plan, random_regions
from pipeline.split import Split

CPU = torch.device("cpu")
SIDE = 96


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CIFAR10_DIR", raising=False)
    return tmp_path / "home"


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours with some edges, as JPEG is made for."""
    levels = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    picture = Image.fromarray(levels).resize((width, height), Image.Resampling.BICUBIC)
    picture.paste((seed * 40 % 256, 20, 200), (width // 3, height // 3, width // 2, height // 2))
    return picture


def own(root: Path, count: int = 10) -> Path:
    for i in range(2 * count):
        file = root / ("cat", "dog")[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        photograph(150 + 7 * i, 130 + 3 * i, i).save(file)
    return root


def train_split(root: Path, size: int = SIDE) -> Split:
    return open_dataset(str(root), size).load("train")


def packed(image: Image.Image, size: int = SIDE, fit: folder.Fit = "crop") -> tuple[Decoded, Image.Image]:
    file = io.BytesIO()
    image.save(file, "PNG")
    made = decode_bytes(file.getvalue(), size, fit)
    return made, Image.open(io.BytesIO(made.body))


@pytest.mark.parametrize(
    ("size", "fit", "expected"),
    [
        ((400, 300), "crop", (160, 120)),
        ((300, 400), "crop", (120, 160)),
        ((100, 90), "crop", (100, 90)),
        ((2000, 100), "crop", (300, 100)),
        ((1, 5000), "crop", (1, 3)),
        ((400, 300), "squash", (120, 120)),
        ((400, 300), "pad", (120, 120)),
        ((100, 40), "pad", (100, 100)),
    ],
)
def test_what_is_stored_has_room_around_the_square_and_is_never_enlarged(size, fit, expected):
    assert (SPARE, LONGEST) == (1.25, 3)
    made, image = packed(photograph(*size), fit=fit)
    assert image.format == "JPEG" and image.size == expected == made.shape[::-1] and (made.width, made.height) == size


def test_the_square_is_nearly_that_of_the_file_itself(tmp_path: Path):
    image = photograph(500, 320)
    image.save(tmp_path / "a.png")
    for fit in ("crop", "squash", "pad"):
        seen = decode(tmp_path / "a.png", SIDE, fit).astype(int)
        assert np.abs(seen - fitted(image, SIDE, fit)).mean() < 3, fit


def test_regions_are_those_of_torchvision_in_area_and_shape():
    """Two-sample Kolmogorov-Smirnov distances; 4,000 of each: above 0.043 in one of 1,000 pairs that are alike."""
    count, sizes = 4000, [(300, 400), (400, 300), (250, 250), (100, 300), (40, 120)]
    for height, width in sizes:
        regions = random_regions(np.random.default_rng(1), np.tile([height, width], (count, 1)), 0.35)
        torch.manual_seed(1)
        image = torch.zeros(1, height, width)
        theirs = [RandomResizedCrop.get_params(image, [0.35, 1.0], [3 / 4, 4 / 3]) for _ in range(count)]
        assert (regions[:, :2] >= 0).all() and (regions[:, 2:] >= 1).all()
        assert (regions[:, :2] + regions[:, 2:] <= (height, width)).all()
        for column, name in enumerate(("top", "left", "height", "width")):
            a, b = np.sort(regions[:, column]), np.sort([row[column] for row in theirs])
            every = np.unique(np.concatenate([a, b]))
            far = np.searchsorted(a, every, "right") - np.searchsorted(b, every, "right")
            assert np.abs(far).max() / count < 0.043, (name, height, width)


def test_all_ranks_together_cut_what_one_process_does(tmp_path: Path):
    split = train_split(own(tmp_path / "own"))
    plans = {world: [Plan.of(split, batch_size=7, rank=r, world=world) for r in range(world)] for world in (1, 2, 3)}
    for epoch, iteration in ((0, 0), (0, 1), (3, 1)):
        (whole,) = (plan.draws(epoch, iteration) for plan in plans[1])
        assert len(np.unique(whole.crop, axis=0)) > 4
        for world in (2, 3):
            for rank, plan in enumerate(plans[world]):
                assert np.array_equal(plan.draws(epoch, iteration).crop, whole.crop[rank::world])


@pytest.mark.parametrize("drawn", [{"flip": "random", "cutout": 32}, {"flip": "both"}, {"flip": "none"}])
def test_training_sees_the_regions_of_the_plan(tmp_path: Path, drawn):
    """Against Pillow's decoder and torch's resizing: DALI decodes to the same levels and resizes otherwise."""
    split = train_split(own(tmp_path / "own"))
    plan = Plan.of(split, batch_size=8, crop_area=0.35, **drawn)
    loader = DaliLoader(split, plan, CPU, 2, lambda epoch: (64, 80)[epoch])
    for epoch, side in enumerate((64, 80)):
        draws = plan.draws(epoch, 0)
        images, labels = next(loader.epoch(epoch))
        assert images.shape == (8, 3, side, side) and images.is_contiguous(memory_format=torch.channels_last)
        assert np.array_equal(labels, split.labels[draws.indices])
        for k, row in enumerate(draws.indices.tolist()):
            top, left, height, width = draws.crop[k].tolist()
            whole = Image.open(io.BytesIO(split.images.jpeg(row)))
            region = whole.crop((left, top, left + width, top + height)).resize((side, side), Image.Resampling.BILINEAR)
            expected = np.asarray(region).astype(int)
            expected = expected[:, ::-1] if draws.flip[k] & 1 else expected
            expected = expected[::-1] if draws.flip[k] & 2 else expected
            found = images[k].permute(1, 2, 0).numpy()
            kept = np.ones((side, side), bool)
            if plan.cutout:
                a, b, c, d = (draws.cutout[k] * side / SIDE).astype(int)
                assert (found[a + 1 : c - 1, b + 1 : d - 1] == split.mean_colour).all()
                kept[max(0, a - 1) : c + 1, max(0, b - 1) : d + 1] = False
            assert np.abs(found - expected)[kept].mean() < 1


def test_decoding_a_region_equals_decoding_all_and_slicing(tmp_path: Path):
    split = train_split(own(tmp_path / "own"))
    boxes = random_regions(np.random.default_rng(0), split.images.sizes, 0.35)
    inputs = [[np.frombuffer(split.images.jpeg(row), np.uint8) for row in range(len(split))]]
    inputs += [list(boxes[:, :2]), list(boxes[:, 2:])]

    @pipeline_def
    def both() -> Any:
        jpegs, corner, shape = fn.external_source(source=[inputs], num_outputs=3, batch=True)
        where: Any = {"axis_names": "HW", "normalized_anchor": False, "normalized_shape": False}
        return (
            fn.decoders.image_slice(jpegs, corner, shape, **where),
            fn.slice(fn.decoders.image(jpegs), corner, shape, **where),
        )

    pipe: Any = both(batch_size=len(split), num_threads=1, device_id=None)
    pipe.build()
    regions, slices = pipe.run()
    for row in range(len(split)):
        assert np.array_equal(np.array(regions.at(row)), np.array(slices.at(row)))


def test_the_graph_for_a_gpu_takes_these_arguments():
    """DALI checks them while it draws the graph, which needs no GPU; only building does."""
    settings = {"batch_size": 8, "num_threads": 1, "device_id": 0}
    graph: Any = _decoding_graph(iter([]), "gpu", 64, (1.0, 2.0, 3.0), **settings)
    images, labels = graph._graph_out
    assert labels.device == "gpu"
    places = []
    while images.source.inputs:
        places.append((images.source.name.strip("_").split("_")[0], images.device))
        images = images.source.inputs[0]
    assert places == [("Erase", "gpu"), ("Flip", "gpu"), ("Resize", "gpu"), ("ImageSlice", "gpu")]
    assert images.device == "cpu", "so the decoder takes bytes of the host: it is a mixed one"


def test_goes_on_anywhere_with_the_same_batches(tmp_path: Path):
    split = train_split(own(tmp_path / "own"))
    plan = Plan.of(split, batch_size=4, flip="random", crop_area=0.35)
    whole, again = (DaliLoader(split, plan, CPU, 2, lambda epoch: 64) for _ in range(2))
    expected = [images for images, _ in whole.epoch(2)]
    found = [images for images, _ in again.epoch(2, start=1)]
    assert len(expected) == 4 and all(torch.equal(a, b) for a, b in zip(expected[1:], found, strict=True))


def test_evaluation_sees_what_predict_gets(tmp_path: Path):
    split = train_split(own(tmp_path / "own"))
    loader = evaluation_loader(split, SIDE, CPU, 2, batch_size=5)
    for _ in range(2):
        images, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
        assert len(images) == 20 and labels[16:].tolist() == [-1] * 4
        assert np.array_equal(labels[:16], split.labels)
        for row, file in enumerate(split.files):
            assert np.array_equal(images[row].permute(1, 2, 0), decode(Path(file), SIDE, "crop"))
    shares = [evaluation_loader(split, SIDE, CPU, 1, 5, rank, 2) for rank in range(2)]
    assert torch.equal(next(iter(shares[1]))[0], images[5:10])
    assert sum(len(list(share)) for share in shares) == 4


def test_the_digest_tells_the_pictures_the_size_and_the_part(tmp_path: Path):
    root = own(tmp_path / "own")
    data = open_dataset(str(root), SIDE)
    splits = [data.load("train"), data.load("validation"), train_split(root, 104), train_split(own(tmp_path / "b", 9))]
    assert len({split.digest for split in splits}) == 4
    assert train_split(root).digest == splits[0].digest
    kept = splits[0].take(np.array([3, 1]), "training")
    assert isinstance(kept.images, PackedPictures) and kept.files == (splits[0].files[3], splits[0].files[1])
    assert np.array_equal(np.asarray(kept.images)[1], np.asarray(splits[0].images)[1])


def test_a_flipped_bit_is_found_before_training_and_the_store_made_anew(tmp_path: Path, home: Path):
    root = own(tmp_path / "own")
    expected = train_split(root)
    (path,) = home.rglob("*.pictures")
    data = bytearray(path.read_bytes())
    for place in (100, len(data) // 2, len(data) - 9):
        path.write_bytes(bytes([*data[:place], data[place] ^ 1, *data[place + 1 :]]))
        assert train_split(root).digest == expected.digest and path.read_bytes() == data


def test_a_store_that_is_cut_while_it_is_used_is_an_error_that_names_it(tmp_path: Path, home: Path):
    split = train_split(own(tmp_path / "own"))
    (path,) = home.rglob("*.pictures")
    os.truncate(path, 10)
    with pytest.raises(OSError, match="it was cut while it was read") as error:
        np.asarray(split.images)
    assert error.value.filename == str(path)


def test_a_full_disk_leaves_the_old_store(tmp_path: Path, home: Path, monkeypatch):
    root = own(tmp_path / "own")
    split = train_split(root)
    before = {path: path.read_bytes() for path in home.rglob("*.pictures")}
    photograph(200, 200, 99).save(root / "cat" / "new.png")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        train_split(root)
    assert {path: path.read_bytes() for path in home.rglob("*.pictures")} == before
    assert not list(home.rglob("*.tmp")) and len(np.asarray(split.images)) == 16


def test_packing_holds_no_more_than_some_pictures(tmp_path: Path, monkeypatch):
    """What is decoded waits for the disk, not in memory."""
    files = {hashlib.sha256(str(i).encode()).hexdigest(): Path(str(i)) for i in range(5000)}
    monkeypatch.setattr(folder, "read_bytes", lambda path: str(path).encode())
    monkeypatch.setattr("pipeline.contents.os.sched_getaffinity", lambda _: {0})
    decoded = Mock(return_value=Decoded(b"x", (1, 1), 1, 1, ()))
    monkeypatch.setattr(folder, "decode_bytes", decoded)
    entries = folder.decode_all(files, SIDE, "crop")
    for _ in range(10):
        next(entries)
    assert 10 <= decoded.call_count < 200


def test_an_empty_picture_folder_of_that_size_is_refused_in_a_line(tmp_path: Path):
    root = own(tmp_path / "own", 2)
    for path in root.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(Mistake, match="no picture to train on"):
        train_split(root)
    assert store.FORM
