"""When a model does not know: its probability is too small, or the picture unlike all it learnt.

    known = fit_known(model, train, unseen, temperature, machine)  # once, at the end of a training
    promise = known.keep(0.98)  # of the answers that it lets pass 98% are right
    passes = promise(pooled, probabilities)

The promise is for pictures like those that it is fitted on, neither trained on nor tested; 95 of 100
fits keep it. It is Learn then Test (Angelopoulos et al. 2021, arXiv 2110.01052): of fixed
thresholds, tested from strict to lax, the last one before the first that fails, each tested by the
binomial tail (Geifman and El-Yaniv 2017, arXiv 1705.08500). Of 100 fits on 5,000 images of CIFAR-10
each, at 95, 98 and 99%, one at most broke it for the other 10,000.

Unlike is what lies far from every class's mean in layer4's features, by their shared covariance (Lee
et al. 2018, arXiv 1807.03888), all features brought to a length of 1 (Mueller and Hein 2025, arXiv
2505.18032). Chosen among twelve scores, on a CIFAR-10 model of width 16 (86% right) against noise,
blots, plain colours, drawn shapes, digits and photographs: mean AUROC 0.94; without the length of 1
it is 0.85, by the logits' energy 0.83, by the 10th nearest of 3,000 training images 0.93.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.features import pooled
from engine.learner import Batch
from engine.machine import Machine
from engine.model import SAMPLE_PIXELS, ResNet
from engine.temperature import FEWEST
from ground.interval import wilson
from ground.mistake import Mistake

PROMISE = 0.98  # the usual one
SAMPLE = 5_000  # training images that are looked at, at most
SHRINKAGE = 0.1  # of the covariance, towards that of a ball
UNLIKE = 0.02  # share of unseen pictures that may be called unlike the others
STARTS = 4  # thresholds that tests start from: those that answer 1/4, 2/4, 3/4 and all pictures
LEVEL = 0.05 / STARTS  # of each test, so that 5% of the fits break their promise at most
BINS, LOWEST, STEP = 256, -4.0, 1 / 16  # thresholds: log odds; all below are in bin 0
MOST_IMAGES = 10_000_000  # unseen ones, of a file that may claim any number
FARTHEST, HALVINGS = 2.0**20, 50  # how the distance is found


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
    """(2, BINS) int64: unseen pictures within it by the bin of their probability; the right ones."""
    total: int
    """Unseen pictures, the distant ones too."""

    def __post_init__(self) -> None:
        pictures, right = self.answers
        if bool((right < 0).any() | (right > pictures).any()) or int(pictures.sum()) > self.total:
            raise Mistake("the checkpoint's promise is spoilt: more answers are right than were given")

    def unlike(self, features: Tensor) -> Tensor:
        """(N,) bool: whether a picture with these features (N, K) is unlike those trained on."""
        return _distances(features, self.centres, self.whitener) > self.distance

    def keep(self, share: float = PROMISE) -> "Promise":
        """The lowest threshold by which that share of the answers, above 0 and below 1, is right."""
        # Of the pictures in bin b and above: how many there are, and how many are right.
        sums = self.answers.flip(1).cumsum(1).flip(1).tolist()
        answered, right = ([*counts, 0] for counts in sums)
        lowest = BINS
        for start in range(1, STARTS + 1):
            b = max(b for b in range(BINS) if answered[b] * STARTS >= answered[0] * start)
            while b >= 0 and binomial_tail(answered[b] - right[b], answered[b], 1 - share) <= LEVEL:
                lowest, b = min(b, lowest), b - 1
        least = 1 / (1 + math.exp(-LOWEST - STEP * lowest)) if lowest else 0.0
        least = math.inf if lowest == BINS else least
        return Promise(self, share, least, answered[lowest], right[lowest])


@dataclass(frozen=True, eq=False)
class Promise:
    """Which answers pass, so that a share of them is right."""

    known: Known
    share: float
    probability: float
    """The least that passes; 0: all do; infinite: none does, as no threshold keeps the promise."""
    answered: int
    """Pictures that it was fitted on and whose answers pass."""
    right: int
    """How many of these."""

    def __call__(self, features: Tensor, probabilities: Tensor) -> Tensor:
        """(N,) bool, by `pooled` features (N, K) and the probabilities of all classes (N, C)."""
        return (probabilities.amax(1) >= self.probability) & ~self.known.unlike(features)

    def facts(self) -> dict[str, Any]:
        """For JSON; the counts are of the pictures that it was fitted on."""
        facts = {"promise": self.share, "least_probability": self.probability}
        facts |= {"fitted_on": self.known.total, "fit_answered": self.answered}
        return facts | {"fit_right": self.right, "promise_in_words": str(self)}

    def __str__(self) -> str:
        start = f"promise {self.share:.4g}, fitted on {self.known.total:,} pictures: "
        if not self.answered:
            return start + "no probability keeps it, so nothing is known; try a smaller one"
        low, high = wilson(self.right, self.answered)
        return (
            f"{start}known from a probability of {self.probability:.3f} on; so it answers "
            f"{self.answered / self.known.total:.1%}, right on {self.right / self.answered:.2%} "
            f"(95% interval {low:.2%} to {high:.2%})"
        )


def binomial_tail(hits: int, count: int, share: float) -> float:
    """The probability of so few hits, or fewer, of `count` that are hits with probability `share`; 1
    where there are no fewer than are to be expected: how much less, nobody asks."""
    if hits >= count * share:
        return 1.0
    n, p = torch.tensor([count, share], dtype=torch.float64)
    k = torch.arange(hits + 1, dtype=torch.float64)
    ways = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    return float((ways + k * p.log() + (n - k) * torch.log1p(-p)).exp().sum())


def sample(count: int, side: int) -> np.ndarray:
    """Which of `count` training images of `side` pixels to look at: (n,) int64, evenly spaced."""
    some = min(count, SAMPLE, SAMPLE_PIXELS // side**2)
    return np.linspace(0, count - 1, some).astype(np.int64)


@torch.no_grad()
def fit_known(
    model: ResNet, train: Iterable[Batch], unseen: Iterable[Batch], temperature: float,
    machine: Machine, after_batch: Callable[[], None] = lambda: None,
) -> Known | None:  # fmt: skip
    """By images trained on, and images that were not; None of fewer than FEWEST of these.

    The model is in eval mode, its logits not yet divided by the temperature. Labels of -1 are
    padding. Each rank gives its own batches, none of them too, and gets the result of all.
    """
    classes, width = model.fc.weight.shape
    zeros: Any = {"dtype": torch.float64, "device": machine.device}
    sums, counts = torch.zeros(classes, width, **zeros), torch.zeros(classes, 1, **zeros)
    products, unit = torch.zeros(width, width, **zeros), torch.eye(width, **zeros)
    for images, labels in train:
        features = _unit(pooled(model, images, machine)[labels >= 0]).double()
        sums.index_add_(0, labels[labels >= 0], features)
        counts += labels[labels >= 0].bincount(minlength=classes)[:, None]
        products += features.T @ features
        after_batch()
    for tensor in (sums, counts, products):
        machine.world.sum_(tensor)
    means = (sums / counts)[counts[:, 0] > 0]
    covariance = (products - sums.T @ (sums / counts.clamp(min=1))) / counts.sum()
    ball = covariance.trace() / width * unit
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * ball + 1e-12 * unit
    whitener = torch.linalg.inv(torch.linalg.cholesky(covariance)).float()
    centres = (means @ whitener.T.double()).float()

    parts = []
    for images, labels in unseen:
        features, labels = pooled(model, images, machine)[labels >= 0], labels[labels >= 0]
        p, said = (model.fc(features).double() / temperature).softmax(1).max(1)
        parts.append((_distances(features, centres, whitener), _bins(p), said == labels))
        after_batch()

    def counted(distance: float) -> Tensor:
        """(2, BINS) as `Known.answers`, of the pictures within a distance."""
        answers = torch.zeros(2, BINS, **zeros)
        for distances, bins, right in parts:
            answers[0] += bins[distances <= distance].bincount(minlength=BINS)
            answers[1] += bins[(distances <= distance) & right].bincount(minlength=BINS)
        return machine.world.sum_(answers)

    total, low, high = int(counted(math.inf)[0].sum()), 0.0, FARTHEST
    if total < FEWEST:
        return None
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        few = bool(counted(middle)[0].sum() < (1 - UNLIKE) * total)
        low, high = (middle, high) if few else (low, middle)
    return Known(centres.cpu(), whitener.cpu(), high, counted(high).long().cpu(), total)


def _unit(features: Tensor) -> Tensor:
    return features / features.norm(dim=1, keepdim=True).clamp(min=1e-12)


def _distances(features: Tensor, centres: Tensor, whitener: Tensor) -> Tensor:
    """(N,) from features (N, K) to the nearest centre."""
    own = _unit(features) @ whitener.T
    # Not torch.cdist, which ONNX has not; nor a sum, which export.py would quantise to int8.
    less = 2 * own @ centres.T - centres.square().sum(1)
    return (own.square().sum(1, keepdim=True) - less).amin(1).clamp(min=0).sqrt()


def _bins(probabilities: Tensor) -> Tensor:
    odds = probabilities.double().logit()
    return ((odds - LOWEST) / STEP).floor().clamp(0, BINS - 1).long()
