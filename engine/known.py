"""When a model does not know: where its probability is too small, or the picture is unlike all that it was trained on.

    known = fit_known(model, train, unseen, temperature, machine)    # once, at the end of a training
    answered = known.keep(0.98)           # the probability from which on 98% of its answers are right
    is_known = answered.of(probabilities) & ~known.unlike(pooled)

The promise: of the pictures that it answers a share P is right, of pictures like those that it was fitted on, and this
holds for 95 of 100 such fits. It is Learn then Test (Angelopoulos et al. 2021, arXiv 2110.01052): of fixed
thresholds, tested one after the other from the strict ones on, the last one before the first that fails. Each is tested
by the binomial tail, as in selective classification (Geifman and El-Yaniv 2017, arXiv 1705.08500).

Unlike is what lies far from every class's mean in layer4's features, of length 1, by their shared covariance (Lee et
al. 2018, arXiv 1807.03888; with the length of 1 Mueller and Hein 2025, arXiv 2505.18032). Chosen among twelve scores,
on a CIFAR-10 model of width 16 (86% right) against noise, blots, plain colours, drawn shapes, digits and photographs:
mean AUROC 0.94; without the length of 1 0.85, k nearest of 3,000 neighbours 0.93.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.config import COLDEST, HOTTEST
from engine.device import autocast
from engine.learner import Batch
from engine.machine import Machine
from engine.model import ResNet
from engine.temperature import FEWEST
from ground.interval import wilson
from ground.mistake import Mistake

SAMPLE, SAMPLE_PIXELS = 5_000, 5_000 * 96 * 96  # at most, of the training images whose features are looked at
SHRINKAGE = 0.1  # of the covariance, towards that of a ball
UNLIKE = 0.02  # share of unseen pictures that may be called unlike the others
ERROR = 0.05  # share of fits whose promise may be broken
STARTS = 4  # thresholds that the tests start from, those that answer 1/4, 2/4, 3/4 and all of the pictures
BINS, LOWEST, STEP = 256, -4.0, 1 / 16  # of a probability's log odds: the thresholds; in the first is all below, too
MOST_IMAGES = 10_000_000  # unseen ones, of a file that may claim any number
LENGTHS = 4096  # bins of a distance's logarithm


@dataclass(frozen=True)
class Answered:
    """A threshold, and how it does on the pictures that it was fitted on."""

    bin: int
    pictures: int  # that are answered
    right: int  # of these
    total: int

    @property
    def probability(self) -> float:
        """The least that is answered; 0: all are."""
        edge = torch.tensor(LOWEST + STEP * self.bin, dtype=torch.float64)
        return edge.sigmoid().item() if self.bin else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """That of their accuracy."""
        low, high = wilson(self.right, self.pictures)
        return float(low), float(high)

    def of(self, probabilities: Tensor) -> Tensor:
        """(N,) bool: whether probabilities (N,) of predicted classes are large enough."""
        return _bins(probabilities) >= self.bin


@dataclass(frozen=True, eq=False)
class Known:
    """What a checkpoint keeps; features are those of layer4, averaged over the image."""

    centres: Tensor
    """(c, K) float32: mean of each class's features, of length 1, as `whitener` makes them."""
    whitener: Tensor
    """(K, K) float32: brings differences of features to a covariance of 1."""
    distance: float
    """Beyond it a picture is unlike all others."""
    answers: Tensor
    """(2, BINS) int64: unseen pictures within that distance by the bin of their probability, and the right ones."""
    total: int
    """Unseen pictures, the distant ones too."""

    def __post_init__(self) -> None:
        pictures, right = self.answers
        if bool((right < 0).any() | (right > pictures).any()) or int(pictures.sum()) > self.total:
            raise Mistake("the checkpoint's promise is spoilt: it counts more right answers than answers")

    def unlike(self, features: Tensor) -> Tensor:
        """(N,) bool: whether a picture with these features (N, K) is unlike those trained on."""
        return _distances(features, self.centres, self.whitener) > self.distance

    def keep(self, promise: float) -> Answered | None:
        """The lowest threshold that keeps the promise, a share above 0 and below 1; None where none does."""
        # Bins 0 .. 255 of a rising probability: at or above bin b are answered[b], of them right[b].
        answered, right = self.answers.flip(1).cumsum(1).flip(1).tolist()
        lowest = None
        for start in range(1, STARTS + 1):
            enough = [b for b in range(BINS) if answered[b] >= answered[0] * start / STARTS]
            for b in range(enough[-1] if enough else -1, -1, -1):
                wrong = answered[b] - right[b]
                if not answered[b] or binomial_tail(wrong, answered[b], 1 - promise) > ERROR / STARTS:
                    break
                lowest = min(b, lowest if lowest is not None else b)
        return None if lowest is None else Answered(lowest, answered[lowest], right[lowest], self.total)


def binomial_tail(hits: int, count: int, share: float) -> float:
    """The probability of so few hits, or fewer, among `count` that are hits with probability `share`; 1 where there are
    no fewer than are to be expected, as then nothing hangs on how much less it is."""
    if hits >= count * share:
        return 1.0
    n, k, p = (torch.tensor(value, dtype=torch.float64) for value in (count, range(hits + 1), share))
    ways = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    return float((ways + k * p.log() + (n - k) * torch.log1p(-p)).exp().sum())


def sample(count: int, side: int) -> np.ndarray:
    """Which of `count` training images of `side` pixels are looked at: indices (n,) int64, evenly spaced."""
    return np.linspace(0, count - 1, min(count, SAMPLE, SAMPLE_PIXELS // side**2)).astype(np.int64)


@torch.no_grad()
def fit_known(
    model: ResNet, train: Iterable[Batch], unseen: Iterable[Batch], temperature: float, machine: Machine,
    after_batch: Callable[[], None] = lambda: None,
) -> Known | None:  # fmt: skip
    """By images trained on, some of each class, and images that were not; None of fewer than FEWEST of these.

    The model is in eval mode, its logits not yet divided by the temperature. Labels of -1 are padding. Each rank gives
    its own batches, none of them too, and gets the result of all.
    """
    device, (classes, width) = machine.device, model.fc.weight.shape
    zeros: Any = {"dtype": torch.float64, "device": device}
    sums, counts, products = (torch.zeros(*shape, **zeros) for shape in ((classes, width), (classes,), (width, width)))
    for images, labels in train:
        features = _unit(pooled(model, images, machine)[labels >= 0]).double()
        sums.index_add_(0, labels[labels >= 0], features)
        counts += labels[labels >= 0].bincount(minlength=classes)
        products += features.T @ features
        after_batch()
    for tensor in (sums, counts, products):
        machine.world.sum_(tensor)
    present = counts > 0
    if not bool(present.any()):
        return None
    means = sums[present] / counts[present, None]
    covariance = (products - (means * counts[present, None]).T @ means) / counts.sum()
    ball = covariance.trace() / width * torch.eye(width, **zeros)
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * ball + 1e-12 * torch.eye(width, **zeros)
    whitener = torch.linalg.inv(torch.linalg.cholesky(covariance))
    centres = (means @ whitener.T).float()

    parts = []
    lengths, answers = torch.zeros(LENGTHS, **zeros), torch.zeros(2, BINS, **zeros)
    for images, labels in unseen:
        features, labels = pooled(model, images, machine)[labels >= 0], labels[labels >= 0]
        top = (model.fc(features).double() / temperature).softmax(1).max(1)
        parts.append((_distances(features, centres, whitener.float()), top.values, top.indices == labels))
        lengths += _length_bins(parts[-1][0]).bincount(minlength=LENGTHS)
        after_batch()
    total = int(machine.world.sum_(lengths).sum())
    if total < FEWEST or not COLDEST <= temperature <= HOTTEST:
        return None
    last = int((lengths.cumsum(0) < (1 - UNLIKE) * total).sum())
    distance = _length(last + 1)
    for distances, probabilities, right in parts:
        bins = _bins(probabilities)[distances <= distance]
        answers[0] += bins.bincount(minlength=BINS)
        answers[1] += bins[right[distances <= distance]].bincount(minlength=BINS)
    answers = machine.world.sum_(answers).long().cpu()
    return Known(centres.cpu(), whitener.float().cpu(), distance, answers, total)


def pooled(model: ResNet, images: Tensor, machine: Machine) -> Tensor:
    """(B, K) float32: layer4's activations averaged over uint8 images (B, 3, H, W), as the last layer takes them."""
    with autocast(machine.device, machine.precision):
        return model.features(images).float().mean((2, 3))


def _unit(features: Tensor) -> Tensor:
    return features / features.norm(dim=1, keepdim=True).clamp(min=1e-12)


def _distances(features: Tensor, centres: Tensor, whitener: Tensor) -> Tensor:
    """(N,) from features (N, K) to the nearest centre."""
    return torch.cdist(_unit(features) @ whitener.T, centres).amin(1)


def _bins(probabilities: Tensor) -> Tensor:
    odds = probabilities.double().logit()
    return ((odds - LOWEST) / STEP).floor().clamp(0, BINS - 1).long()


def _length_bins(distances: Tensor) -> Tensor:
    """Bins of distances from 1/256 to 65,536, each 0.4% longer than the one before."""
    return ((distances.double().log2() + 8) / 24 * LENGTHS).floor().clamp(0, LENGTHS - 1).long()


def _length(place: int) -> float:
    """Where the bin of this number begins."""
    return 2.0 ** (place / LENGTHS * 24 - 8)
