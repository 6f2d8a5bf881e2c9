"""Do the heatmaps point at what the model used? Two checks that a map which only looks right fails.

    checks = measure(explainer, maps)

Insertion and deletion (Petsiuk et al. 2018, arXiv 1806.07421): pixels of the image replace those of its blurred copy,
or the reverse, in the order of the map; a faithful map raises the predicted class's probability early when inserting
and lowers it early when deleting. The gap is the area under the first curve minus that under the second; a map that
knows nothing has a gap of 0. Deletion alone misleads: independent noise scores best, since it breaks every shape.

Randomisation (Adebayo et al. 2018, arXiv 1810.03292): maps of a model with random weights must not resemble the
trained model's. `python gradcam.py --faithfulness` prints both.
"""

import copy
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.model import ResNet
from explain.cam import evaluating, heatmaps
from explain.cases import Ints, Maps
from explain.explainer import Explainer
from ground.mistake import Mistake
from ground.terminal import tracked

IMAGES, STEPS, DRAWS, BATCH = 200, 16, 10, 100
BLUR = 0.15  # deviation of the Gaussian blur, as a share of the image's side


@dataclass(frozen=True)
class Score:
    """A mean and its standard error."""

    mean: float
    error: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} \N{PLUS-MINUS SIGN} {self.error:.3f}".replace("-", "\N{MINUS SIGN}")


@dataclass(frozen=True)
class Faithfulness:
    """How faithful the maps of the predicted class are, on a random sample of the errors."""

    images: int
    gaps: dict[str, Score]  # insertion minus deletion of "predicted", "true" and "random" maps
    leads: dict[str, Score]  # of "predicted" over "true" and "random", image by image
    likeness: dict[str, Score]  # Spearman's, against a random "linear layer" or all "weights"

    def lines(self) -> list[str]:
        """For the terminal."""
        figures = {
            f"insertion minus deletion, {self.images} errors": self.gaps,
            "the predicted class's maps lead, image by image, over": self.leads,
            "rank correlation with the maps of a model of random parts": self.likeness,
        }
        words = [", ".join(f"{name} {score}" for name, score in row.items()) for row in figures.values()]
        return [f"{what}: {scores}" for what, scores in zip(figures, words, strict=True)]


def measure(explainer: Explainer, maps: Maps, seed: int = 0) -> Faithfulness:
    """Both checks on at most IMAGES errors, drawn by `seed`. Raises Mistake below two."""
    errors = maps.cases
    if len(errors) < 2:
        raise Mistake(f"--faithfulness needs two errors or more, and there are {len(errors)}")
    sample = np.sort(np.random.default_rng(seed).permutation(len(errors))[:IMAGES])
    generator = torch.Generator().manual_seed(seed)
    images, classes = errors.inputs[sample], torch.from_numpy(errors.predicted[sample])
    ranked = {
        "predicted": maps.predicted[sample],
        "true": maps.rival[sample],
        "random": torch.randn((len(sample), *maps.values.shape[2:]), generator=generator),
    }
    parts = tracked(torch.arange(len(sample)).split(BATCH), "faithfulness", len(sample), len)
    rows = [[gap(explainer, images[i], classes[i], some[i]) for some in ranked.values()] for i in parts]
    columns = zip(*rows, strict=True)
    gaps = {name: torch.cat(column) for name, column in zip(ranked, columns, strict=True)}
    return Faithfulness(
        images=len(sample),
        gaps={name: _score(values) for name, values in gaps.items()},
        leads={name: _score(gaps["predicted"] - gaps[name]) for name in ("true", "random")},
        likeness=_likeness(explainer, maps, sample, seed),
    )


def gap(explainer: Explainer, images: Tensor, classes: Tensor, maps: Tensor) -> Tensor:
    """Area under the insertion curve minus that under the deletion curve, (N,) float64 in [-1, 1], on the CPU.

    Follows the probability of classes (N,) of images (N, 3, R, R) uint8; the largest values of
    maps (N, h, w), raw, come first.
    """
    model, device, side = explainer.model, explainer.machine.device, images.shape[-1]
    images, classes = images.to(device), classes.to(device)
    enlarged = F.interpolate(maps[:, None].float(), (side, side), mode="bilinear", align_corners=False)
    order = enlarged.flatten(1).argsort(dim=1, descending=True, stable=True)
    place = order.argsort(dim=1).view(-1, 1, side, side).to(device)
    blurred = blur(images)

    def probability(inputs: Tensor) -> Tensor:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        return model(inputs).double().softmax(1).gather(1, classes[:, None])[:, 0]

    with evaluating(model), torch.no_grad(), explainer.autocast():
        # At both ends one curve shows the image and the other its blurred copy: they cancel in the trapezoidal rule.
        total = torch.zeros(len(images), dtype=torch.float64, device=device)
        for step in range(1, STEPS):
            first = place < round(step * side * side / STEPS)
            total += probability(torch.where(first, images, blurred))
            total -= probability(torch.where(first, blurred, images))
    return (total / STEPS).cpu()


def blur(images: Tensor) -> Tensor:
    """uint8 images (N, 3, R, R) after a Gaussian of BLUR of their side, mirrored at the borders."""
    deviation = BLUR * images.shape[-1]
    reach = min(math.ceil(2 * deviation), images.shape[-1] - 1)
    kernel = torch.exp(-(torch.arange(-reach, reach + 1, device=images.device) ** 2) / (2 * deviation**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    padded = F.pad(images.float(), (reach,) * 4, mode="reflect")
    rows = F.conv2d(padded, kernel, groups=3)
    return F.conv2d(rows, kernel.transpose(2, 3), groups=3).round_().clamp_(0, 255).to(torch.uint8)


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's, (N,) float64, over the cells of raw maps (N, h, w); 0 for maps of one cell."""
    ranks = [x.flatten(1).argsort(1).argsort(1).double() for x in (a, b)]
    left, right = (x - x.mean(1, keepdim=True) for x in ranks)
    return F.cosine_similarity(left, right)


def randomised(model: ResNet, part: str) -> ResNet:
    """A copy whose "linear layer" or all "weights" are drawn anew from torch's random state."""
    fresh = copy.deepcopy(model)
    for module in [fresh.fc] if part == "linear layer" else list(fresh.modules()):
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            module.reset_parameters()
    return fresh


def _likeness(explainer: Explainer, maps: Maps, sample: Ints, seed: int) -> dict[str, Score]:
    """Means over DRAWS draws: the maps of one draw depend on each other, so the error is that between draws."""
    device, reference = explainer.machine.device, maps.predicted[sample]
    images, classes = maps.cases.inputs[sample], torch.from_numpy(maps.cases.predicted[sample])

    def draw(part: str) -> Tensor:
        other = randomised(explainer.model, part)
        drawn = heatmaps(other, images, classes, maps.layer, maps.method, BATCH)
        return rank_correlation(reference, drawn.cpu()).mean()

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), explainer.autocast():
        torch.manual_seed(seed)
        parts = ("linear layer", "weights")
        return {part: _score(torch.stack([draw(part) for _ in range(DRAWS)])) for part in parts}


def _score(values: Tensor) -> Score:
    return Score(float(values.mean()), float(values.std() / math.sqrt(len(values))))
