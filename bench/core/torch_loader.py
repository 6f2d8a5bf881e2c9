"""The loader that most people write, for comparison: torch's DataLoader over torchvision transforms, image by image."""

import gc
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from bench.core.clock import Batch
from engine.config import Config
from ground.mistake import Mistake
from pipeline.split import Split

Loader = DataLoader[tuple[Tensor, int]]


class _Pictures(Dataset[tuple[Tensor, int]]):
    def __init__(self, split: Split, transform: transforms.Compose) -> None:
        self.images, self.labels, self.transform = split.images, split.labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(np.asarray(self.images[index]))), int(self.labels[index])


def torch_loader(split: Split, config: Config, batch_size: int, workers: int, normalise: bool = False) -> Loader:
    """Shuffled batches with a reflect-padded random crop, a random flip and cutout, drawn anew for each image.

    Args:
        config: its `translate` and `cutout`, and the last of its resolutions R.
        workers: processes that load; 0 for the caller's own.
        normalise: float32 of mean 0 and deviation 1 by the split's statistics; else uint8.

    Yields images (B, 3, R, R) NCHW and labels (B,) int64, on the CPU. The last, smaller batch is left out.
    """
    steps: list[object] = [
        transforms.RandomCrop(split.side, padding=config.translate, padding_mode="reflect"),
        transforms.RandomHorizontalFlip(),
    ]
    if config.resolutions[-1] != split.side:
        steps.append(transforms.Resize(config.resolutions[-1]))
    floats = [transforms.ToTensor(), transforms.Normalize(*split.statistics)]
    steps += floats if normalise else [transforms.PILToTensor()]
    if config.cutout:
        share, fill = (config.cutout / split.side) ** 2, 0 if normalise else split.mean_colour
        steps.append(transforms.RandomErasing(p=1, scale=(share, share), ratio=(1, 1), value=fill))
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


def for_ever(loader: Loader) -> Iterator[Batch]:
    """The loader's batches, epoch after epoch; raises Mistake where its workers find no room in shared memory."""
    warnings.filterwarnings("ignore", message="This DataLoader will create")  # more workers than cores: on purpose
    try:
        while True:
            yield from loader
    except RuntimeError as error:
        if "shared memory" not in str(error):
            raise
        advice = "make it larger (docker run --shm-size 1g), or leave out the parts data and ladder (--only)"
        raise Mistake(f"/dev/shm is too small for the workers of torch's DataLoader: {advice}") from None


def _leave_inherited_alone(worker: int) -> None:
    """A worker is a fork: were it to collect a DALI pipeline that its parent had dropped, it would be aborted."""
    gc.freeze()
