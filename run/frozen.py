"""The last layer alone, on features that a pretrained network gives without learning: an answer in seconds.

    fit_head(model, in_order(train), machine)      # before the Learner is made
    model.fc                                       # now tells the new classes apart

Kornblith et al. 2019, arXiv 1805.08974, fit the same logistic regression on frozen features. All layers start from
it then: the first large steps of a random last layer would spoil what the others know. So would a head that is too
sure: with each feature brought to a deviation of 1 those that hardly vary got large weights, and the loss of the first
random crops was 15 to 60 nats. Hence one deviation for all, a strong prior, and the label smoothing of what follows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.features import features
from engine.machine import Machine
from engine.model import ResNet
from ground.terminal import tracked
from pipeline.dali import EvaluationLoader

PRIOR = 20.0  # penalty of the weights, for features of deviation 1 and the sum of the losses: docs/LOG.md
ROUNDS = 100  # of L-BFGS at most


def fit_head(model: ResNet, loader: EvaluationLoader, machine: Machine, label_smoothing: float = 0.0) -> None:
    """Give the last layer the weights that tell the loader's images apart best, all other layers as they are.

    Multinomial logistic regression with PRIOR; where the model weighs its classes, by these weights.
    """
    batches = tracked(loader.epoch(0), "features", len(loader))
    inputs, labels = features(model, batches, machine)
    mean = inputs.mean(0)
    deviation = (inputs - mean).square().mean().sqrt().clamp(min=1e-6)
    inputs = (inputs - mean) / deviation
    classes, width = model.fc.weight.shape
    weight = torch.zeros(classes, width, device=inputs.device, requires_grad=True)
    bias = torch.zeros(classes, device=inputs.device, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=ROUNDS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        logits, decay = inputs @ weight.T + bias, PRIOR / len(labels)
        loss = F.cross_entropy(logits, labels, model.loss_weights, label_smoothing=label_smoothing)
        loss += decay / 2 * weight.square().sum()
        loss.backward()
        return loss

    solver.step(closure)
    with torch.no_grad():
        model.fc.weight.copy_(weight / deviation)
        model.fc.bias.copy_(bias - model.fc.weight @ mean)
