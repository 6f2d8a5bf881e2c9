"""How long a run will take here, from a few steps of a throwaway model at each of its resolutions."""

import statistics
import time
from collections import Counter

import torch

from engine import runtime
from engine.config import Config
from engine.learner import Learner
from engine.model import ResNet
from pipeline.synthetic import ConstantLoader


def train_seconds(
    config: Config, images: int, device: torch.device, precision: str, batch_size: int = 128
) -> float | None:
    """Seconds of training on `images` images an epoch, uncompiled, without loading and evaluation; costs a few steps.

    None on CUDA, where a few uncompiled steps say nothing about a run. Leaves torch's random state as it was.
    """
    if device.type == "cuda":
        return None
    epochs_at = Counter(config.resolution(epoch) for epoch in range(config.epochs))
    rates = {side: _images_per_second(config, side, device, precision, batch_size) for side in epochs_at}
    return sum(epochs * images / rates[side] for side, epochs in epochs_at.items())


def _images_per_second(config: Config, side: int, device: torch.device, precision: str, batch_size: int) -> float:
    batch_size = min(batch_size, config.batch_size)
    steps = 3
    with torch.random.fork_rng(devices=[]):
        model = ResNet(config.depth, config.width, side).to(device).to(memory_format=torch.channels_last)
    learner = Learner(model, config, steps, device, precision)
    model.train()
    seconds = []
    for images, labels in ConstantLoader(batch_size, side, device, steps):
        start = time.perf_counter()
        learner.train_step(images, labels)
        runtime.synchronise(device)
        seconds.append(time.perf_counter() - start)
    return batch_size / statistics.median(seconds[1:])
