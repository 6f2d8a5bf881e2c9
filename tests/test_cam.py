"""explain/cam.py: heatmaps against independent mathematics and another library, and all that may not change them."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from engine.model import STAGES, ResNet, resize
from explain.cam import METHODS, check_class_maps, class_maps, display, evaluating, heatmaps
from tests.trained import trained

LAYERS = ("layer1", "layer2", "layer3", "layer4")


@pytest.fixture(scope="module")
def net() -> ResNet:
    return trained()[0]


@pytest.fixture(scope="module")
def images() -> Tensor:
    return trained()[1].inputs[:12]


@pytest.fixture(scope="module")
def targets() -> Tensor:
    return torch.arange(12) % 10


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


class Float64(ResNet):
    """The same network in float64 from end to end."""

    def head(self, features: Tensor) -> Tensor:
        return self.fc(features.mean((2, 3)))


@pytest.fixture(scope="module")
def exact(net: ResNet) -> Float64:
    double = Float64(net.classes, net.depth, net.width, net.resolution)
    double.load_state_dict(net.state_dict())
    return double.double().eval()


# The mathematics


def oracle(forward: Callable[[Tensor], Tensor], layer: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """captum's Grad-CAM, raw and signed, of inputs that can have a gradient."""
    attr: Any = pytest.importorskip("captum.attr", reason="captum is not installed (requirements-dev.txt)")
    maps = attr.LayerGradCam(forward, layer).attribute(inputs, targets, relu_attributions=False)
    return maps[:, 0].detach()


@pytest.mark.parametrize("layer", LAYERS)
def test_gradcam_equals_captum(net: ResNet, exact: ResNet, images: Tensor, targets: Tensor, layer: str):
    for model, tolerance in ((net, 1e-5), (exact, 1e-12)):
        stages = [model.get_submodule(name) for name in STAGES]
        forward = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), model.fc)
        expected = oracle(forward, model.get_submodule(layer), model.normalise(images), targets)
        assert relative(heatmaps(model, images, targets, layer), expected) <= tolerance


def test_hirescam_is_the_directional_derivative(exact: ResNet, images: Tensor, targets: Tensor):
    """By definition dy/dt of the activations scaled by (1 + t) in one place is that place's HiResCAM: no autograd."""
    layer, step = "layer3", 1e-6
    maps = heatmaps(exact, images, targets, layer, "hirescam")
    with torch.no_grad():
        activations = exact.features(images, layer)
        for i, j in ((0, 0), (2, 3), (5, 4)):
            scaled = [activations.clone(), activations.clone()]
            for sign, copied in zip((1, -1), scaled, strict=True):
                copied[:, :, i, j] *= 1 + sign * step
            up, down = (exact.from_stage(a, layer).gather(1, targets[:, None])[:, 0] for a in scaled)
            torch.testing.assert_close(maps[:, i, j], (up - down) / (2 * step), rtol=1e-4, atol=1e-6)


def test_class_maps_are_the_last_layers_gradcam_for_all_classes(net: ResNet, images: Tensor):
    analytic = class_maps(net.features(images), net.fc)
    every = torch.arange(10).expand(len(images), 10)
    for method in METHODS:
        assert relative(heatmaps(net, images, every, "layer4", method), analytic) <= 1e-5
    assert check_class_maps(net, images) <= 1e-5


def test_the_check_of_class_maps_refuses_another_head(net: ResNet, images: Tensor):
    class Squared(ResNet):
        def head(self, features: Tensor) -> Tensor:
            return self.fc(features.mean((2, 3)).square())

    odd = Squared("abcdefghij", width=8, resolution=net.resolution)
    odd.load_state_dict(net.state_dict())
    with pytest.raises(ValueError, match="differ from autograd"):
        check_class_maps(odd, images)


# What one image's map may depend on


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layer", ["stem", "layer2", "layer3", "layer4"])
def test_batch_mates_do_not_matter(net: ResNet, images: Tensor, targets: Tensor, layer: str, method: str):
    whole = heatmaps(net, images, targets, layer, method)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    for size in (1, 5, 12):
        permuted = heatmaps(net, images[order], targets[order], layer, method, batch_size=size)
        assert relative(permuted, whole[order]) <= 1e-5


def test_images_of_another_size_are_resized_as_predict_does(net: ResNet):
    images = trained()[1].images[:4].permute(0, 3, 1, 2)
    assert images.shape[2] != net.resolution
    targets = torch.arange(4)
    assert torch.equal(heatmaps(net, images, targets), heatmaps(net, resize(images, net.resolution), targets))


# What the model may be, and what it keeps


def test_wrapped_compiled_frozen_and_training_models_give_the_same_maps(net: ResNet, images: Tensor, targets: Tensor):
    expected = heatmaps(net, images, targets, "layer3")
    compiled = copy.deepcopy(net)
    compiled.compile(backend="eager")
    compiled(images)
    variants: dict[str, nn.Module] = {
        "compiled in place": compiled,
        "compiled": torch.compile(copy.deepcopy(net), backend="eager"),  # type: ignore[dict-item]
        "wrapped": nn.DataParallel(copy.deepcopy(net)),
        "frozen": copy.deepcopy(net).requires_grad_(False),
        "training": copy.deepcopy(net).train(),
    }
    for name, model in variants.items():
        assert torch.equal(heatmaps(model, images, targets, "layer3"), expected), name
    with torch.no_grad():
        assert torch.equal(heatmaps(net, images, targets, "layer3"), expected)
    with torch.inference_mode():
        assert torch.equal(heatmaps(net, images.clone(), targets.clone(), "layer3"), expected)


def test_autocast_around_the_call_is_followed_even_after_inference_mode(net: ResNet, images: Tensor, targets: Tensor):
    """Autocast caches casts; torch before 2.11 kept those of inference_mode, which no backward pass can use."""
    full = heatmaps(net, images, targets, "layer2")
    with torch.autocast("cpu", torch.bfloat16):
        with torch.inference_mode():
            net(images)
        mixed = heatmaps(net, images, targets, "layer2")
    assert mixed.dtype == torch.float32
    assert 1e-4 < relative(mixed, full) < 0.1


def state(model: nn.Module) -> tuple[Any, ...]:
    return (
        [module.training for module in model.modules()],
        [(p.requires_grad, p.grad) for p in model.parameters()],
        [t.clone() for t in model.state_dict().values()],
        torch.get_rng_state(),
        torch.is_grad_enabled(),
        torch.is_autocast_cache_enabled(),
    )


def assert_same_state(a: tuple[Any, ...], b: tuple[Any, ...]) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("layer", ["layer2", "layer4"])
def test_the_model_is_left_as_it_was_also_after_an_exception(
    net: ResNet, images: Tensor, targets: Tensor, layer: str, monkeypatch: pytest.MonkeyPatch
):
    model = copy.deepcopy(net).train()
    model.get_submodule("layer2").eval()  # flags that differ from module to module
    next(model.parameters()).requires_grad_(False)
    before = state(model)
    heatmaps(model, images, targets, layer)
    assert_same_state(state(model), before)

    def fail(features: Tensor) -> Tensor:
        raise KeyError("head")

    monkeypatch.setattr(model, "head", fail)
    with pytest.raises(KeyError):
        heatmaps(model, images, targets, layer)
    assert_same_state(state(model), before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer": "layer5"}, "layer 'layer5' is unknown"),
        ({"method": "cam"}, "method 'cam' is unknown"),
        ({"targets": torch.zeros(11, dtype=torch.long)}, "12 images need"),
        ({"targets": torch.tensor(3)}, "12 images need"),
        ({"targets": torch.full((12,), 10)}, "must be 0 to 9"),
        ({"targets": torch.full((12,), -1)}, "must be 0 to 9"),
        ({"targets": torch.zeros(12)}, "must be integers"),
    ],
)
def test_bad_arguments_are_named(net: ResNet, images: Tensor, targets: Tensor, arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        heatmaps(net, images, **{"targets": targets} | arguments)


# Other people's networks


@pytest.fixture(scope="module")
def foreign() -> nn.Module:
    """torchvision's ResNet-18, with running statistics that are not those of its start."""
    from torchvision.models import resnet18

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = resnet18(num_classes=10)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                nn.init.uniform_(module.running_mean, -0.5, 0.5)
                nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.train()


@pytest.mark.parametrize("layer", ["bn1", "layer1", "layer2.1.conv2", "layer3", "layer4", "layer4.1.bn2"])
def test_a_torchvision_resnet_has_the_maps_that_captum_finds(foreign: nn.Module, layer: str):
    photos = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    before, targets = state(foreign), torch.tensor([7, 1, 4])
    maps = heatmaps(foreign, photos, targets, layer, batch_size=2)
    assert_same_state(state(foreign), before)
    with evaluating(foreign):
        assert relative(maps, oracle(foreign, foreign.get_submodule(layer), photos, targets)) <= 1e-5


def test_another_network_may_be_compiled_in_place_frozen_and_wrapped():
    class Small(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).mean((2, 3))

    model, x, targets = Small(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)).eval(), torch.rand(2, 3, 8, 8), torch.arange(2)
    expected = heatmaps(model, x, targets, "0")
    assert torch.equal(heatmaps(nn.DataParallel(copy.deepcopy(model)), x, targets, "0"), expected)
    model.requires_grad_(False).compile(backend="eager")
    with torch.no_grad():
        model(x)  # whose graph would not see a hook
    assert torch.equal(heatmaps(model, x, targets, "0"), expected)


def test_hooks_and_stages_give_the_same_maps(net: ResNet, images: Tensor, targets: Tensor):
    class Wrapped(nn.Module):  # no wrapper that is known, and so no ResNet
        def __init__(self) -> None:
            super().__init__()
            self.net, self.other = net, nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    for layer in STAGES:
        assert torch.equal(heatmaps(Wrapped(), images, targets, f"net.{layer}"), heatmaps(net, images, targets, layer))


@pytest.mark.parametrize(
    ("layer", "targets", "message"),
    [
        ("layer5", [0], "layer 'layer5' is unknown: it must be one of layer4, layer3, layer2"),
        ("", [0], "layer '' is unknown: it must be one of conv1, bn1, relu, maxpool, layer1"),
        ("fc", [0], "layer 'fc' gives no maps: it must run once"),
        ("layer1.0.relu", [0], "layer 'layer1.0.relu' gives no maps: it must run once"),
        ("layer4", [10], "targets run from 10 to 10: they must be 0 to 9"),
        ("layer4", [-1], "targets run from -1 to -1: they must be 0 to 9"),
    ],
)
def test_what_gives_no_maps_of_another_network_is_named(foreign: nn.Module, layer: str, targets: list, message: str):
    with pytest.raises(ValueError, match=message):
        heatmaps(foreign, torch.zeros(1, 3, 32, 32), torch.tensor(targets), layer)
    assert not any(module._forward_hooks for module in foreign.modules())


# Where the evidence is


class RedDetector(ResNet):
    """Logit 0 is the mean redness: stages halve the side, channel 0 keeps what is red and not green."""

    def features(self, images: Tensor, stage: str = "layer4") -> Tensor:
        x = images.float() / 255
        x = torch.stack([(x[:, 0] - x[:, 1]).relu(), x[:, 2], x[:, 1]], 1)
        return nn.functional.avg_pool2d(x, 2 ** max(0, STAGES.index(stage) - 1))

    def from_stage(self, activations: Tensor, stage: str) -> Tensor:
        return self.head(nn.functional.avg_pool2d(activations, 2 ** (4 - max(1, STAGES.index(stage)))))


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("method", METHODS)
def test_a_red_square_holds_the_mass_of_its_own_logit(layer: str, method: str):
    net = RedDetector("abcdefghij", width=8)
    net.fc = nn.Linear(3, 10)
    with torch.no_grad():
        net.fc.weight[:] = torch.tensor([0.0, 1.0, 1.0])
        net.fc.weight[0] = torch.tensor([2.0, 0.0, 0.0])
    grey = torch.randint(90, 110, (4, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    images = grey.expand(4, 3, 32, 32).to(torch.uint8).clone()
    for k, (top, left) in enumerate(((0, 0), (0, 24), (24, 0), (24, 24))):
        images[k, 0, top : top + 8, left : left + 8] = 250
        images[k, 1:, top : top + 8, left : left + 8] = 10
    shown, empty = display(heatmaps(net, images, torch.zeros(4, dtype=torch.long), layer, method), 32)
    assert not empty.any()
    quadrants = shown.unfold(1, 16, 16).unfold(2, 16, 16).sum((3, 4)).flatten(1)
    assert (quadrants.diagonal() >= 0.95 * quadrants.sum(1)).all()


# What is shown


@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1e9, 1e30])
def test_scale_does_not_matter(scale: float):
    maps = torch.randn(20, 4, 4, generator=torch.Generator().manual_seed(0))
    for signed in (False, True):
        torch.testing.assert_close(display(maps * scale, 32, signed)[0], display(maps, 32, signed)[0])


def test_constant_positive_maps_are_ones_and_maps_without_evidence_are_flagged():
    maps = torch.stack([torch.full((3, 3), value) for value in (5.0, 1e-20, 0.0, -2.0)])
    shown, empty = display(maps, 32)
    torch.testing.assert_close(shown[:2], torch.ones(2, 32, 32))
    assert (shown[2:] == 0).all()
    assert empty.tolist() == [False, False, True, True]
    signed, zero = display(maps, 32, signed=True)
    torch.testing.assert_close(signed[3], -torch.ones(32, 32))
    assert zero.tolist() == [False, False, True, False]


def test_evidence_everywhere_is_not_hidden_by_the_smallest():
    shown, _ = display(torch.tensor([[[2.0, 2.0], [1.0, 1.0]]]), 8)
    torch.testing.assert_close(shown[0, -1], torch.full((8,), 0.5))


def test_maps_are_enlarged_about_the_centres_of_their_cells():
    """NumPy's linear interpolation, cell by cell, is the oracle."""
    values = [3.0, 1.0, 4.0, 2.0]
    shown, _ = display(torch.tensor(values).expand(1, 4, 4), 32)
    expected = np.interp((np.arange(32) + 0.5) / 8 - 0.5, range(4), values)
    np.testing.assert_allclose(shown[0].numpy(), np.tile(expected / expected.max(), (32, 1)), rtol=1e-6)


def test_maps_that_are_not_finite_are_refused():
    for bad in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match="not finite"):
            display(torch.tensor([[[bad, 1.0], [0.0, 2.0]]]), 32)
