"""Data sets by name, their splits, and the rules for what is held out and what stands for all."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from pipeline.cifar10 import cache
from pipeline.dataset import VALIDATION, fold_indices, hold_out, open_dataset
from pipeline.split import Split, channel_statistics
from pipeline.synthetic import generated


def by_class(*sizes: int, side: int = 4) -> Split:
    """Random images, sorted by their class as a folder of folders gives them: so many of each."""
    count = sum(sizes)
    images = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    files = tuple(f"{label}/{i}.png" for i, label in enumerate(labels))
    return Split(images=images, labels=labels, name="train", classes=tuple("abcdefghij"[: len(sizes)]), files=files)


def test_validate_holds_out_the_last_tenth_of_cifar10_and_never_opens_the_test_set(monkeypatch):
    opened = []

    def load(part):
        opened.append(part)
        return generated(500 if part == "train" else 10, part)

    whole = generated(500, "train")
    monkeypatch.setattr(cache, "load", load)
    cifar10 = open_dataset("cifar10")
    assert opened == []
    train, held_out = cifar10.splits(validate=True)
    assert opened == ["train"]
    assert (len(train), train.name, len(held_out), held_out.name) == (450, "training", 50, "validation")
    assert held_out.digest == whole.take(slice(450, None), "").digest
    assert train.digest == whole.take(slice(450), "").digest and train.statistics == whole.statistics
    assert [split.name for split in cifar10.splits(validate=False)] == ["train", "test"]
    assert opened == ["train", "train", "test"]
    assert (cifar10.reported(False).name, opened[3:]) == ("test", ["test"])
    assert (cifar10.reported(True).name, opened[4:]) == ("validation", ["train"])


def test_a_shuffled_set_is_cut_without_a_copy():
    train, held_out = hold_out(whole := generated(100), VALIDATION)
    assert np.shares_memory(train.images, whole.images) and np.shares_memory(held_out.images, whole.images)


def test_of_a_set_sorted_by_class_each_class_gives_a_tenth():
    whole = by_class(100, 57, 9, 2, 1)
    train, held_out = hold_out(whole, VALIDATION)
    assert np.bincount(held_out.labels, minlength=5).tolist() == [10, 6, 1, 1, 0]
    assert sorted(train.files + held_out.files) == sorted(whole.files)
    for split in (train, held_out):
        for image, label, file in zip(split.images, split.labels, split.files, strict=True):
            place = whole.files.index(file)
            assert np.array_equal(image, whole.images[place]) and label == whole.labels[place]


def test_the_same_images_are_held_out_in_any_order_and_copies_stay_together():
    whole = by_class(60, 40)
    copied = whole.take(np.repeat(np.arange(100), 3), "train")
    order = np.random.default_rng(1).permutation(300)
    one, other = (hold_out(split, VALIDATION)[1] for split in (copied, copied.take(order, "train")))
    assert {image.tobytes() for image in one.images} == {image.tobytes() for image in other.images}
    train = {image.tobytes() for image in hold_out(copied, VALIDATION)[0].images}
    assert train.isdisjoint(image.tobytes() for image in one.images)
    assert len(one) == 30


@pytest.mark.parametrize("shuffled", [True, False])
def test_folds_hold_every_image_once_but_a_class_s_only_one(shuffled: bool):
    whole = replace(by_class(23, 9, 2, 1), shuffled=shuffled)
    held = np.sort(np.concatenate([fold_indices(whole, f"{k}/4") for k in (1, 2, 3, 4)]))
    assert held.tolist() == list(range(35 if shuffled else 34))
    train, second = hold_out(whole, "2/4")
    assert np.array_equal(second.images, whole.images[fold_indices(whole, "2/4")]) and len(train) + len(second) == 35
    assert set(train.files) | set(second.files) == set(whole.files) and second.name == "validation"
    with pytest.raises(ValueError, match="none is in fold 1/99"):
        hold_out(whole.take(slice(34, None), "train"), "1/99")


def test_a_sample_stands_for_all_classes():
    whole = by_class(30, 30, 30)
    colours = {bytes(image[0, 0]): label for image, label in zip(whole.images, whole.labels, strict=True)}
    assert [colours[bytes(image[0, 0])] for image in whole.sample(6)] == [0, 0, 1, 1, 2, 2]
    assert np.array_equal(replace(whole, shuffled=True).sample(6), whole.images[:6])
    assert len(whole.sample(1000)) == 90


def test_a_part_keeps_what_is_known_of_its_images():
    whole = replace(by_class(5, 5), disputed=(1, 4, 8))
    part = whole.take(np.array([8, 2, 1]), "some")
    assert part.disputed == (0, 2)
    assert part.files == ("1/8.png", "0/2.png", "0/1.png")
    assert whole.take(slice(4, None), "rest").disputed == (0, 4)
    assert (part.name, len(part), part.side, part.classes) == ("some", 3, 4, ("a", "b"))


def test_the_digest_is_of_images_and_labels():
    whole = by_class(3, 4)
    expected = hashlib.sha256(whole.images.tobytes() + whole.labels.astype(np.uint8).tobytes())
    assert whole.digest == expected.hexdigest()  # resume states of every version hold it
    assert replace(whole, labels=whole.labels[::-1]).digest != whole.digest
    assert replace(whole, images=whole.images[::-1]).digest != whole.digest
    assert replace(whole, labels=whole.labels + 300).digest != replace(whole, labels=whole.labels + 44).digest


def test_statistics_are_those_of_all_pixels_unless_known():
    images = np.random.default_rng(0).integers(0, 256, (5003, 4, 4, 3), np.uint8)
    images[..., 1] //= 4
    mean, deviation = channel_statistics(images)
    np.testing.assert_allclose(mean, (images / 255).mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(deviation, (images / 255).std(axis=(0, 1, 2)), rtol=1e-12)
    split = replace(by_class(2), images=images[:2])
    assert split.statistics == channel_statistics(images[:2])
    known = replace(split, known_statistics=((0.1, 0.2, 1.0), (1.0, 1.0, 1.0)))
    assert known.statistics[0] == (0.1, 0.2, 1.0) and known.mean_colour == (26, 51, 255)


@pytest.mark.parametrize(("name", "sizes"), [("generated", (2048, 512)), ("generated:30/7", (30, 7))])
def test_generated_sets_have_the_sizes_that_are_asked_for(name, sizes):
    train, test = open_dataset(name).splits(validate=False)
    assert (len(train), len(test)) == sizes
    assert not np.array_equal(train.images[:7], test.images[:7])


@pytest.mark.parametrize("name", ["", "CIFAR10", "generated:", "generated:0/5", "generated:5", "holiday", "/data/x"])
def test_an_unknown_name_is_refused_in_a_line(name):
    with pytest.raises(ValueError, match=r"^--data is .*it must be cifar10, generated, .* there is no such folder"):
        open_dataset(name)
