"""One number by which logits are divided, so that a class is as often right as the model is sure of it.

Label smoothing makes a network less sure than it could be, long training surer; one division mends both, and
changes no likeliest class (Guo et al. 2017, arXiv 1706.04599).
"""

from collections.abc import Callable, Iterable

import torch
from torch import nn

from engine.config import COLDEST, HOTTEST
from engine.learner import Batch, predict_logits
from engine.machine import Machine

FEWEST = 100  # images: fewer say too little
HALVINGS = 40


@torch.no_grad()
def fit_temperature(
    model: nn.Module, batches: Iterable[Batch], machine: Machine, after_batch: Callable[[], None] = lambda: None
) -> float | None:
    """The temperature, COLDEST to HOTTEST, of the smallest cross-entropy on these images, which the model, in eval
    mode, must not have been trained on; None of fewer than FEWEST images.

    In effect one more of the N images is wrong: of each label 1 / (N + 2), after Laplace's rule of succession, goes
    to the likeliest other class. Else a model that is right on all of them would be made as sure as can be.

    Labels of -1 are padding. Each rank gives its own batches, none of them too, and gets the result of all.
    """
    parts = []
    for images, labels in batches:
        logits = predict_logits(model, images, machine.device, machine.precision).double()
        parts.append((logits[labels >= 0], labels[labels >= 0]))
        after_batch()
    sums = torch.zeros(3, dtype=torch.float64, device=machine.device)
    low, high = 1 / HOTTEST, 1 / COLDEST
    for _ in range(HALVINGS):  # the cross-entropy is convex in 1 / temperature: its slope changes sign once
        middle = (low * high) ** 0.5
        sums.zero_()
        for logits, labels in parts:
            expected = ((logits * middle).softmax(1) * logits).sum(1)
            true = logits.gather(1, labels[:, None])[:, 0]
            sums[0] += (expected - true).sum()
            sums[1] += (true - logits.scatter(1, labels[:, None], -torch.inf).amax(1)).sum()
            sums[2] += len(labels)
        machine.world.sum_(sums)
        slope, lead, images = sums.tolist()
        if images < FEWEST:
            return None
        low, high = (low, middle) if slope + lead / (images + 2) > 0 else (middle, high)
    return (low * high) ** -0.5
