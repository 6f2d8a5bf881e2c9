"""The network: its size, its stages, its start, and what it does with pictures."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import engine.model
from engine.config import Config
from engine.model import STAGES, ResNet, create, dirac_, parameter_groups, resize, whiten_stem_
from pipeline.synthetic import generated


def pictures(count=4, side=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(("depth", "width", "count"), [(18, 64, 11_173_962), (34, 64, 21_282_122), (18, 8, 176_402)])
def test_parameter_count(depth, width, count):
    with torch.device("meta"):
        model = ResNet("abcdefghij", depth, width)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_stage_shapes_and_forward_is_head_of_features():
    model = ResNet("abcdefghij", width=8).eval()
    images = pictures()
    shapes = [tuple(model.features(images, stage).shape[1:]) for stage in STAGES]
    assert shapes == [(8, 32, 32), (8, 32, 32), (16, 16, 16), (32, 8, 8), (64, 4, 4)]
    for stage in STAGES:
        assert torch.equal(model.from_stage(model.features(images, stage), stage), model(images))
    with pytest.raises(ValueError, match="stage 'layer5' is unknown"):
        model.features(images, "layer5")


@pytest.mark.parametrize("depth", [18, 34])
def test_the_stem_of_imagenet_s_networks_leaves_7x7_of_224(depth):
    model = ResNet("abcdefghij", depth, 2, stem="imagenet").eval()
    images = pictures(1, 224)
    shapes = [tuple(model.features(images, stage).shape[1:]) for stage in STAGES]
    assert shapes == [(2, 56, 56), (2, 56, 56), (4, 28, 28), (8, 14, 14), (16, 7, 7)]
    for stage in STAGES:
        assert torch.equal(model.from_stage(model.features(images, stage), stage), model(images))
    assert model.state_dict().keys() == ResNet("abcdefghij", depth, 2).state_dict().keys()


def test_normalises_first_to_the_training_sets_mean_and_deviation():
    images = generated(200)
    train = replace(images, known_statistics=None, images=images.images // np.array([1, 2, 3], np.uint8))
    model = create(Config(width=8, whiten=False), train)
    normal = model.normalise(torch.from_numpy(train.images).permute(0, 3, 1, 2)).double()
    assert normal.mean((0, 2, 3)).abs().max() < 1e-5
    assert (normal.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-5
    assert {"mean", "std"} <= set(model.state_dict())
    known = create(Config(width=8), images)
    assert known.mean.flatten().tolist() == pytest.approx([255 * channel for channel in images.statistics[0]])
    assert known.classes == images.classes and known.fc.out_features == len(images.classes)


def test_head_runs_in_float32_under_autocast():
    model = ResNet("abcdefghij", width=8)
    with torch.autocast("cpu", torch.bfloat16):
        features = model.features(pictures())
        logits = model.head(features)
    assert (features.dtype, logits.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(logits, F.linear(features.float().mean((2, 3)), model.fc.weight, model.fc.bias))


def test_predict_resizes_and_gives_probabilities():
    model = ResNet("abcdefghij", width=8, resolution=24).eval()
    images = pictures(side=48).permute(0, 2, 3, 1)
    expected = model(resize(images.permute(0, 3, 1, 2), 24)).softmax(1)
    assert torch.equal(model.predict(images), expected)
    assert torch.allclose(expected.sum(1), torch.ones(4))
    for wrong in (images.float(), images.permute(0, 3, 1, 2), images[0]):
        with pytest.raises(ValueError, match=r"uint8 images \(N, H, W, 3\)"):
            model.predict(wrong)


def test_resize_keeps_flat_colour_and_size():
    flat = torch.full((1, 3, 32, 32), 77, dtype=torch.uint8)
    assert torch.equal(resize(flat, 20), flat[..., :20, :20]) and resize(flat, 32) is flat


def test_whitened_stem_gives_uncorrelated_channels_of_equal_power_and_their_negatives():
    model = ResNet("abcdefghij", width=64)
    images = torch.from_numpy(generated(500).images).permute(0, 3, 1, 2)
    before = model.get_parameter("stem.0.weight").clone()
    whiten_stem_(model, images, eps=0.0)
    after = model.get_parameter("stem.0.weight")
    assert torch.equal(after[54:], before[54:])
    assert torch.equal(after[:27], -after[27:54])
    answers = F.conv2d(model.normalise(images), after[:27]).detach().transpose(0, 1).flatten(1).double()
    power = answers @ answers.T / answers.shape[1]
    # The filters come from every fourth patch, so the identity holds nearly.
    assert (power - torch.eye(27)).abs().max() < 0.1


def test_whitening_takes_many_or_large_images_in_pieces(monkeypatch):
    images = torch.from_numpy(generated(70).images).permute(0, 3, 1, 2)

    def filters(pixels):
        monkeypatch.setattr(engine.model, "WHITENING_PIXELS", pixels)
        torch.manual_seed(0)
        model = ResNet("abcdefghij", width=54)
        whiten_stem_(model, images)
        return model.get_parameter("stem.0.weight")

    for pieces in (1, 32 * 32 * 20):
        torch.testing.assert_close(filters(pieces), filters(70 * 32 * 32), rtol=1e-4, atol=1e-5)


def test_dirac_makes_convolutions_pass_through():
    model = ResNet("abcdefghij", width=8)
    dirac_(model)
    x = torch.randn(2, 8, 6, 6)
    for name in ("layer1.0.conv1", "layer1.1.conv2"):
        assert torch.equal(model.get_submodule(name)(x), x)
    wider = model.get_submodule("layer2.0.conv1")
    assert torch.equal(F.conv2d(x, wider.get_parameter("weight"), padding=1)[:, :8], x)


def test_a_start_depends_on_the_seed_alone():
    images = generated(64)
    config = Config(width=8)
    one, two = (create(config, images).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    other = create(Config(width=8, seed=1), images).state_dict()
    assert not torch.equal(one["fc.weight"], other["fc.weight"])


def test_parameter_groups_are_what_they_say():
    model = ResNet("abcdefghij", width=8)
    filters, weights, gains, biases = parameter_groups(model)
    assert all(p.ndim == 4 for p in filters) and len(filters) == 19
    assert [tuple(p.shape) for p in weights] == [(8, 3, 3, 3), (10, 64)]
    assert all((p == 1).all() for p in gains)
    assert any(p is model.fc.bias for p in biases)


@pytest.mark.parametrize("wrong", [{"depth": 50}, {"width": 0}, {"stem": "large"}, {"classes": ()}])
def test_impossible_networks_are_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        ResNet(**({"classes": "ab"} | wrong))

