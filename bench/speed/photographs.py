"""What loads pictures of 96 px and more: our store and DALI, pixels in memory, torch's DataLoader from the files.

    python -m bench --only data --data FOLDER --size 128

All by the clock and, where they work in this process, by its CPU time, which other programs do not change.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from time import process_time

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from bench.core.clock import Batch, measure
from bench.core.record import Row
from bench.core.session import Say
from bench.core.setup import Setup
from bench.speed.ladder import for_ever
from pipeline.split import Split

PICTURES, BATCH = 512, 64  # pictures of the set, evenly chosen, by which the loaders are compared


def measure_photographs(setup: Setup, say: Say) -> list[Row]:
    """Pictures/s at the stored side, with random regions but for the pixels, which are shifted."""
    split = setup.split.take(np.linspace(0, len(setup.split) - 1, min(PICTURES, len(setup.split))).astype(int), "some")
    pixels, side, size = replace(split, images=np.asarray(split.images)), split.side, min(BATCH, len(split))
    cores, cpu = len(os.sched_getaffinity(0)), torch.device("cpu")

    def ours(split: Split, device: torch.device) -> Iterator[Batch]:
        return Setup(setup.config, split, setup.machine).dali(size, side, device)

    def theirs(workers: int) -> Iterator[Batch]:
        files = _Files(split, side, setup.config.crop_area)
        return for_ever(DataLoader(files, size, shuffle=True, num_workers=workers, drop_last=True))

    lanes = {
        "packed, decoded on the CPU": lambda: ours(split, cpu),
        "pixels in memory, shifted": lambda: ours(pixels, cpu),
        "files, torch DataLoader": lambda: theirs(0),
        f"files, torch DataLoader, {cores} workers": lambda: theirs(cores),
    }
    if setup.cuda:
        lanes["packed, decoded on the GPU"] = lambda: ours(split, setup.device)
    rows = []
    for name, start in lanes.items():
        say(name)
        count, before = [0], process_time()

        def step(images: Tensor, labels: Tensor, count: list[int] = count) -> None:
            count[0] += len(labels)

        rate = measure(start(), step, setup.device if "GPU" in name else cpu, setup.budget(3, warm_up_steps=6))
        seconds = process_time() - before
        rows.append(Row.of_rate("data", f"{name}, {side} px", rate))
        if "workers" not in name:
            by_cpu = count[0] / seconds
            rows.append(Row("data", f"{name}, {side} px, by CPU time", "images/s", by_cpu, note="a CPU-second"))
    return rows


class _Files(Dataset[tuple[Tensor, int]]):
    """Pictures as torchvision's examples read them: from their files, a random region of each."""

    def __init__(self, split: Split, side: int, least_area: float) -> None:
        self.split = split
        steps = [transforms.RandomResizedCrop(side, (least_area, 1.0)), transforms.RandomHorizontalFlip()]
        self.transform = transforms.Compose([*steps, transforms.PILToTensor()])

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with Image.open(self.split.files[index]) as picture:
            return self.transform(picture.convert("RGB")), int(self.split.labels[index])
