"""The loader that most people write, for comparison: torch's DataLoader over torchvision transforms, image by image."""

import gc
from collections.abc import Sequence

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
    split: Split,
    batch_size: int,
    workers: int,
    normalise: tuple[Sequence[float], Sequence[float]] | None = None,
    translate: int = 4,
    cutout: int = 0,
    resolution: int = 32,
) -> DataLoader[tuple[Tensor, int]]:
    """Shuffled batches with a reflect-padded random crop, a random flip and cutout, drawn anew for each image.

    Args:
        workers: processes that load; 0 for the caller's own.
        normalise: mean and deviation of each channel in units of 0..1 make the images float32; without, uint8.
        translate: largest shift in pixels.
        cutout: side of a square inside the image painted grey (0: none); torchvision's RandomErasing.
        resolution: side R in pixels, by torchvision's Resize.

    Yields images (B, 3, R, R) NCHW and labels (B,) int64, on the CPU. The last, smaller batch is left out.
    """
    steps: list[object] = [
        transforms.RandomCrop(32, padding=translate, padding_mode="reflect"),
        transforms.RandomHorizontalFlip(),
    ]
    if resolution != 32:
        steps.append(transforms.Resize(resolution))
    steps += [transforms.ToTensor(), transforms.Normalize(*normalise)] if normalise else [transforms.PILToTensor()]
    if cutout:
        share = (cutout / 32) ** 2
        steps.append(transforms.RandomErasing(p=1, scale=(share, share), ratio=(1, 1), value=0 if normalise else 125))
    return DataLoader(
        _Pictures(split, transforms.Compose(steps)),
        batch_size,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        worker_init_fn=_leave_inherited_alone,
    )


def _leave_inherited_alone(worker: int) -> None:
    """A worker is a fork: were it to collect a DALI pipeline that its parent had dropped, it would be aborted."""
    gc.freeze()
