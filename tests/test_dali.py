"""The DALI loader against an independent NumPy reference, and its promises about layout, order and memory."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.model import resize
from pipeline.dali import DaliLoader, evaluation_loader
from pipeline.plan import Plan
from pipeline.split import Split
from pipeline.synthetic import generated

CPU = torch.device("cpu")
FILL = (9, 8, 7)
DEVICES = [CPU, pytest.param(torch.device("cuda", 0), marks=pytest.mark.gpu)]


def loader(split, plan, side=32, device=CPU, pad_last=False):
    return DaliLoader(split, plan, device, 2, lambda epoch: side, pad_last)


def reference(split, plan, epoch, iteration):
    """What the plan asks for, one image at a time: (B, 32, 32, 3) uint8 and labels."""
    draws, pad = plan.draws(epoch, iteration), plan.translate
    images = []
    for k, index in enumerate(draws.indices):
        image = np.pad(split.images[index], ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
        image = image[:, ::-1] if draws.flip[k] & 1 else image
        image = image[::-1] if draws.flip[k] & 2 else image
        y, x = draws.crop[k][:2]
        image = image[y : y + 32, x : x + 32].copy()
        top, left, bottom, right = draws.cutout[k]
        image[top:bottom, left:right] = FILL
        images.append(image)
    return np.stack(images), split.labels[draws.indices]


def nhwc(images):
    return images.permute(0, 2, 3, 1).cpu().numpy()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "drawn",
    [
        {"batch_size": 64, "flip": "random", "cutout": 8, "translate": 4},
        {"batch_size": 100, "flip": "alternating", "translate": 4, "drop_last": False},
        {"batch_size": 5, "flip": "random", "cutout": 12, "translate": 2, "drop_last": False},
        {"batch_size": 128, "flip": "random", "cutout": 12, "translate": 2},
        {"batch_size": 100, "flip": "both", "cutout": 12, "translate": 4, "drop_last": False},
        {"batch_size": 333, "cutout": 8, "drop_last": False},
    ],
)
def test_equals_the_reference_exactly_over_two_epochs(device, drawn):
    split = replace(generated(334), known_statistics=(tuple(value / 255 for value in FILL), (1, 1, 1)))
    plan = Plan(side=32, count=334, seed=3, **drawn)
    if device.type == "cuda" and plan.batch_size < 8:
        with pytest.raises(ValueError, match="--batch-size is 5: on a GPU each process needs 8 images or more"):
            loader(split, plan, device=device)
        return
    source = loader(split, plan, device=device)
    kept = [(epoch, i, *batch) for epoch in range(2) for i, batch in enumerate(source.epoch(epoch))]
    assert len(kept) == 2 * plan.steps_per_epoch
    for epoch, i, images, labels in kept:  # compared only now: batches that were kept must have stayed intact
        expected, expected_labels = reference(split, plan, epoch, i)
        assert np.array_equal(nhwc(images), expected)
        assert np.array_equal(labels.cpu().numpy(), expected_labels)
        assert images.device.type == labels.device.type == device.type
        assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
        assert images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.gpu
def test_a_batch_stays_intact_until_the_gpu_has_read_it():
    split = generated(640)
    source = loader(split, Plan(side=32, count=640, batch_size=32, translate=4), device=torch.device("cuda", 0))
    expected = [images.cpu() for images, _ in source.epoch(0)]
    torch.cuda._sleep(1_000_000_000)  # cycles: the copies below wait for half a second, the host and DALI do not
    found = [images.clone() for images, _ in source.epoch(0)]
    assert all(torch.equal(a, b.cpu()) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("side", [8, 16, 20, 24, 31, 33, 48])
def test_resizing_never_mixes_neighbouring_images(device, side):
    values = np.array([0, 255], np.uint8)[np.arange(40) % 2]
    images = np.broadcast_to(values[:, None, None, None], (40, 32, 32, 3)).copy()
    split = Split(images=images, labels=values.astype(np.int64), name="checks", classes=("black", "white"))
    plan = Plan(side=32, count=40, batch_size=40, shuffle=False, translate=4, flip="random")
    images, labels = next(loader(split, plan, side=side, device=device).epoch(0))
    assert images.shape == (40, 3, side, side)
    assert (images == labels.to(torch.uint8)[:, None, None, None]).all()


def test_resizes_as_the_model_does():
    split = generated(64)
    images, _ = next(iter(evaluation_loader(split, 24, CPU, 2)))
    own = resize(torch.from_numpy(split.images).permute(0, 3, 1, 2), 24)
    difference = (images.int() - own.int()).abs().float()
    assert difference.max() <= 6  # measured: 5; DALI weighs the border differently
    assert difference.mean() < 0.2


def test_starts_anywhere_and_after_an_abandoned_epoch():
    split, plan = generated(300), Plan(side=32, count=300, batch_size=32, translate=4, flip="random", cutout=8)
    source = loader(split, plan)
    whole = [images for images, _ in source.epoch(2)]
    assert all(torch.equal(a, b) for a, (b, _) in zip(whole[4:], source.epoch(2, start=4), strict=True))
    abandoned = source.epoch(0)
    next(abandoned)
    assert all(torch.equal(a, b) for a, (b, _) in zip(whole, source.epoch(2), strict=True))


def test_resolution_may_change_between_epochs():
    plan = Plan(side=32, count=64, batch_size=32)
    source = DaliLoader(generated(64), plan, CPU, 2, lambda epoch: (16, 16, 32)[epoch])
    sides = [[images.shape[-1] for images, _ in source.epoch(epoch)] for epoch in range(3)]
    assert sides == [[16, 16], [16, 16], [32, 32]]


@pytest.mark.parametrize("device", DEVICES)
def test_evaluation_gives_all_images_once_in_order_as_they_are(device):
    split = generated(250)
    source = evaluation_loader(split, 32, device, 2, batch_size=100)
    for _ in range(2):
        images, labels = (torch.cat(parts) for parts in zip(*source, strict=True))
        assert len(images) == 300 and np.array_equal(nhwc(images[:250]), split.images)
        assert np.array_equal(labels[:250].cpu().numpy(), split.labels) and (labels[250:] == -1).all()


def test_a_plan_for_another_data_set_is_refused():
    with pytest.raises(ValueError, match="plan is for 10 images of 32 pixels, but the data set has 20 of 32"):
        loader(generated(20), Plan(side=32, count=10, batch_size=5))


def test_generated_images_are_the_same_each_time_and_have_all_classes():
    one, two = generated(200), generated(200)
    assert np.array_equal(one.images, two.images)
    assert set(one.labels.tolist()) == set(range(10))
    assert not np.array_equal(one.images, generated(200, seed=1).images)
