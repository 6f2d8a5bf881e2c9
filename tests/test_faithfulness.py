"""explain/faithfulness.py: on maps whose score is known, and on the small trained net."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.model import ResNet
from explain import faithfulness
from explain.cases import Maps
from explain.explainer import Explainer
from explain.faithfulness import STEPS, Faithfulness, blur, gap, measure, randomised, rank_correlation
from tests.cases import explainer, layer4_maps, made_up
from tests.trained import trained, wrong_cases


def net() -> Explainer:
    return explainer(trained()[0])


@pytest.fixture(scope="module")
def maps() -> Maps:
    return net().explain(wrong_cases(), "layer4", "gradcam", "pred")


@pytest.fixture(scope="module")
def found(maps: Maps) -> Faithfulness:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faithfulness, "IMAGES", 120)
        patch.setattr(faithfulness, "DRAWS", 4)
        return measure(net(), maps)


class Chequered(ResNet):
    """Class 1's logit grows with the contrast of the left half, and nothing else counts."""

    def forward(self, images: Tensor) -> Tensor:
        contrast = images[..., : images.shape[-1] // 2].double().std((1, 2, 3)) / 255
        return torch.stack([torch.zeros_like(contrast), 16 * (contrast - 0.25)], 1)


def half(side: int = 8) -> tuple[Tensor, Tensor]:
    """An image that is a chessboard in the left half and grey in the right one, and a map of the left."""
    image = torch.full((1, 3, side, side), 128, dtype=torch.uint8)
    board = torch.arange(side)[:, None] + torch.arange(side // 2) & 1
    image[..., : side // 2] = 255 * board.to(torch.uint8)
    ranked = -torch.arange(side * side).view(side, side).T.float()  # from column to column
    return image, ranked[None]


def test_the_gap_is_the_area_between_the_two_curves():
    """Step by step in plain loops: pixels enter in the order of the map."""
    net, side = Chequered("ab", width=1), 8
    image, _ = half(side)
    ranked = torch.randn(1, side, side, generator=torch.Generator().manual_seed(3))
    order = np.argsort(-ranked.numpy().ravel(), kind="stable")
    start, end = blur(image).numpy().reshape(3, -1), image.numpy().reshape(3, -1)

    def probability(pixels: np.ndarray) -> float:
        contrast = pixels.reshape(3, side, side)[:, :, : side // 2].std(ddof=1) / 255
        return float(1 / (1 + np.exp(-16 * (contrast - 0.25))))

    curves = []
    for below, above in ((start, end), (end, start)):
        curve = []
        for step in range(STEPS + 1):
            mixed = below.copy()
            first = order[: round(step * side * side / STEPS)]
            mixed[:, first] = above[:, first]
            curve.append(probability(mixed))
        curves.append(np.trapezoid(curve, dx=1 / STEPS))
    found = float(gap(explainer(net), image, torch.tensor([1]), ranked))
    assert found == pytest.approx(curves[0] - curves[1], abs=1e-9)


def test_the_right_place_scores_high_the_wrong_one_as_low_and_no_place_nothing():
    half_seeing, (image, ranked) = explainer(Chequered("ab", width=1)), half()
    one = torch.tensor([1])
    right, wrong = (float(gap(half_seeing, image, one, m)) for m in (ranked, -ranked))
    assert right > 0.2 and wrong == pytest.approx(-right, abs=1e-9)
    assert abs(float(gap(half_seeing, image, one, ranked.transpose(1, 2)))) < 0.2 * right  # from row to row
    assert float(gap(half_seeing, image, one, 1e9 * ranked)) == pytest.approx(right)


def test_blurring_keeps_size_mean_and_plain_pictures():
    plain = torch.full((2, 3, 24, 24), 77, dtype=torch.uint8)
    assert torch.equal(blur(plain), plain)
    picture = trained()[1].inputs[:4]
    blurred = blur(picture)
    assert blurred.shape == picture.shape and blurred.dtype == torch.uint8
    assert blurred.float().var((2, 3)).mean() < 0.1 * picture.float().var((2, 3)).mean()
    assert (blurred.float().mean((2, 3)) - picture.float().mean((2, 3))).abs().max() < 6


def test_predicted_maps_beat_the_others_and_do_not_resemble_those_of_random_weights(found: Faithfulness):
    assert found.images > 100
    for other in ("true", "random"):
        assert found.leads[other].mean > 2 * found.leads[other].error > 0
        difference = found.gaps["predicted"].mean - found.gaps[other].mean
        assert found.leads[other].mean == pytest.approx(difference, abs=1e-9)
    assert abs(found.gaps["random"].mean) < 4 * found.gaps["random"].error + 0.02
    assert set(found.likeness) == {"linear layer", "weights"}
    assert all(abs(score.mean) < 0.35 for score in found.likeness.values())


def test_the_same_seed_gives_the_same_limited_sample_and_nothing_is_changed(maps: Maps, monkeypatch):
    monkeypatch.setattr(faithfulness, "IMAGES", 10)
    monkeypatch.setattr(faithfulness, "DRAWS", 2)
    found, wrong = measure(net(), maps, seed=1), maps.cases
    model = copy.deepcopy(trained()[0]).train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    assert measure(explainer(model), maps, seed=1) == found
    assert measure(explainer(model), maps) != found
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    sample = np.sort(np.random.default_rng(1).permutation(len(wrong))[:10])
    gaps = gap(net(), wrong.inputs[sample], torch.from_numpy(wrong.predicted[sample]), maps.predicted[sample])
    assert found.images == 10
    assert found.gaps["predicted"].mean == pytest.approx(float(gaps.mean()), abs=1e-6)
    assert found.gaps["predicted"].error == pytest.approx(gaps.numpy().std(ddof=1) / 10**0.5, abs=1e-6)


@pytest.mark.parametrize("part", ["linear layer", "weights"])
def test_only_the_named_part_is_drawn_anew(part: str):
    net = trained()[0]
    fresh = randomised(net, part)
    same = {name for name, value in fresh.named_parameters() if torch.equal(value, net.get_parameter(name))}
    assert ("stem.0.weight" in same) == (part == "linear layer")
    assert {"fc.weight", "fc.bias"} & same == set()


def test_rank_correlation_is_spearmans():
    a = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rank_correlation(a, a.exp()), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(rank_correlation(a, -a), -torch.ones(5, dtype=torch.float64))
    one = torch.ones(2, 1, 1)
    assert torch.equal(rank_correlation(one, one), torch.zeros(2, dtype=torch.float64))
    b = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(1))
    ranks = [np.argsort(np.argsort(x.numpy().reshape(5, -1), 1), 1) for x in (a, b)]
    expected = [np.corrcoef(x, y)[0, 1] for x, y in zip(*ranks, strict=True)]
    np.testing.assert_allclose(rank_correlation(a, b), expected, atol=1e-12)


def test_one_error_is_too_few():
    with pytest.raises(ValueError, match="two errors or more, and there are 1"):
        measure(net(), layer4_maps(made_up(1)))


def test_the_lines_say_each_number_with_its_standard_error(found: Faithfulness):
    text = "\n".join(found.lines()).replace("\N{MINUS SIGN}", "-")
    for scores in (found.gaps, found.leads, found.likeness):
        for name, score in scores.items():
            assert f"{name} {score.mean:.3f} ± {score.error:.3f}" in text
