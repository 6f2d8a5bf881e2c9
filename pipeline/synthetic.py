"""Data without a data set: generated images for tests, and one constant device batch, the compute ceiling."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from pipeline.cifar10 import CLASSES, Split


def generated(count: int, name: str = "generated", seed: int = 0) -> Split:
    """`count` easy images of ten classes: a coloured bar each, its colour and angle the class, in noise.

    Returns:
        Split of images (count, 32, 32, 3) uint8 and labels (count,) uint8, the same for the same arguments.
    """
    rng = np.random.default_rng([seed, count])
    labels = rng.integers(0, len(CLASSES), count, dtype=np.uint8)
    angle = labels * np.pi / len(CLASSES)
    y, x = np.mgrid[-16:16, -16:16][:, None] - rng.integers(-5, 6, (2, count, 1, 1))
    bar = np.abs(x * np.cos(angle)[:, None, None] + y * np.sin(angle)[:, None, None]) < 4
    colour = np.stack([np.cos(2 * angle + shift) for shift in (0, 2, 4)], 1) * 60 + 128
    noise = rng.integers(0, 100, (count, 32, 32, 3), dtype=np.uint8)
    images = np.where(bar[..., None], colour[:, None, None].astype(np.uint8), 40) + noise // 2
    return Split(images.astype(np.uint8), labels, name)


class ConstantLoader:
    """The same batch again and again, already on the device: what the model could eat if data cost nothing.

    Yields images (batch_size, 3, resolution, resolution) uint8 channels_last and labels (batch_size,) int64.
    """

    def __init__(self, batch_size: int, resolution: int, device: torch.device, steps: int) -> None:
        generator = torch.Generator().manual_seed(0)
        nhwc = torch.randint(0, 256, (batch_size, resolution, resolution, 3), dtype=torch.uint8, generator=generator)
        self.images: Tensor = nhwc.to(device).permute(0, 3, 1, 2)
        self.labels: Tensor = torch.randint(0, 10, (batch_size,), generator=generator).to(device)
        self.steps = steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(self.steps):
            yield self.images, self.labels
