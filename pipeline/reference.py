"""The loader that most people write, for comparison: torch's DataLoader over torchvision transforms, image by image."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from pipeline.cifar10 import Split


class _Pictures(Dataset[tuple[Tensor, int]]):
    def __init__(self, split: Split, transform: transforms.Compose) -> None:
        self.images, self.labels, self.transform = split.images, split.labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(np.asarray(self.images[index]))), int(self.labels[index])


def reference_loader(
    split: Split, batch_size: int, workers: int, normalise: tuple[tuple[float, ...], tuple[float, ...]] | None = None
) -> DataLoader[tuple[Tensor, int]]:
    """Shuffled batches with a reflect-padded random crop and a random flip, drawn anew for each image.

    Yields images (B, 3, 32, 32) NCHW, float32 normalised by (mean, deviation) in units of 0..1, or uint8 without
    `normalise`, and labels (B,) int64, on the CPU. The last, smaller batch is left out.
    """
    steps = [transforms.RandomCrop(32, padding=4, padding_mode="reflect"), transforms.RandomHorizontalFlip()]
    steps += [transforms.ToTensor(), transforms.Normalize(*normalise)] if normalise else [transforms.PILToTensor()]
    return DataLoader(
        _Pictures(split, transforms.Compose(steps)),
        batch_size,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
    )
