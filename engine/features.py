"""Layer4's features, averaged over an image: what the last layer takes."""

from collections.abc import Iterable

import torch
from torch import Tensor

from engine.device import autocast
from engine.learner import Batch
from engine.machine import Machine
from engine.model import ResNet


def pooled(model: ResNet, images: Tensor, machine: Machine) -> Tensor:
    """(B, K) float32: layer4's activations, averaged over uint8 images (B, 3, H, W)."""
    with autocast(machine.device, machine.precision):
        return model.features(images).float().mean((2, 3))


@torch.no_grad()
def features(model: ResNet, batches: Iterable[Batch], machine: Machine) -> tuple[Tensor, Tensor]:
    """`pooled` (N, K) and labels (N,) of all images but those labelled -1, in eval mode."""
    was_training, parts = model.training, []
    model.eval()
    for images, labels in batches:
        seen = labels >= 0
        parts.append((pooled(model, images, machine)[seen], labels[seen]))
    model.train(was_training)
    columns = zip(*parts, strict=True)
    return tuple(torch.cat(column) for column in columns)  # type: ignore[return-value]
