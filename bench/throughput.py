"""Images per second: of the loader alone, of our training loop, and of the loop that a student would write first."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import count

import torch
from torch import Tensor

from bench.clock import Batch, Rate, rate
from bench.seed_style import SeedStyle
from engine.config import Config
from engine.learner import Learner
from engine.model import MEAN, STD, create
from pipeline.cifar10 import Split
from pipeline.dali import DaliLoader
from pipeline.plan import Plan
from pipeline.reference import reference_loader


def loader_rate(split: Split, config: Config, device: torch.device, threads: int) -> Rate:
    """DALI alone with the config's full augmentation, at its last resolution and batch size."""
    return rate(_endless(_dali(split, config, device, threads)), _drop, device, warm_up=50, repeats=20, steps=100)


def torch_loader_rate(split: Split, batch_size: int, workers: int) -> Rate:
    """torch's DataLoader with torchvision's crop and flip."""
    source = reference_loader(split, batch_size, workers)
    return rate(source, _drop, torch.device("cpu"), warm_up=2, repeats=5, steps=4)


def training_rate(split: Split, config: Config, device: torch.device, precision: str, threads: int) -> Rate:
    """The real loop, loader and all, at the config's last resolution, uncompiled on a CPU."""
    model = create(config, split.images).to(device).to(memory_format=torch.channels_last)
    learner = Learner(model, config, 10_000, device, precision, compile=device.type == "cuda")
    learner.warm_up(config.batch_size)
    model.train()
    repeats, steps = (10, 20) if device.type == "cuda" else (5, 1)
    batches = _endless(_dali(split, config, device, threads))
    return rate(batches, learner.train_step, device, warm_up=2, repeats=repeats, steps=steps)


def seed_rate(split: Split, config: Config, device: torch.device) -> Rate:
    """The first version's style at the same width, depth and 32 px: see seed_style."""
    loop = SeedStyle(replace(config, resolutions=(32,)), device)
    source = reference_loader(split, 64, workers=2, normalise=(MEAN, STD))
    return rate(source, loop.train_step, device, warm_up=2, repeats=5, steps=2)


def _dali(split: Split, config: Config, device: torch.device, threads: int) -> DaliLoader:
    plan = Plan(
        count=len(split.images),
        batch_size=config.batch_size,
        translate=config.translate,
        flip=config.flip,
        cutout=config.cutout,
    )
    return DaliLoader(split, plan, device, threads, lambda epoch: config.resolutions[-1])


def _endless(loader: DaliLoader) -> Iterator[Batch]:
    for epoch in count():
        yield from loader.epoch(epoch)


def _drop(images: Tensor, labels: Tensor) -> None:
    """The consumer that only takes."""
