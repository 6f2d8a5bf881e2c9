"""What the commands that measure speed measure: loaders, models and learners, by their options."""

import warnings
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, count, repeat
from typing import Any, Self

import torch

from bench.core.clock import Batch, Budget
from bench.core.session import SpeedOptions
from engine.distributed import ALONE, World
from engine.learner import Learner
from engine.machine import Machine
from engine.model import ResNet, create
from engine.warm_up import needs_warm_up, warm_up
from pipeline.dali import DaliLoader
from pipeline.dataset import open_dataset
from pipeline.plan import Plan
from pipeline.split import Split

FOREVER = 10**9  # steps


class Setup:
    """One machine, one data set, one network: what all parts of a measurement share."""

    def __init__(self, config: SpeedOptions, split: Split, machine: Machine) -> None:
        self.config, self.split, self.machine = config, split, machine
        self.batch_size, self.side = config.batch_size, config.resolutions[-1]
        self.device, self.precision = machine.device, machine.precision
        self.cuda = self.device.type == "cuda"

    def changed(self, **settings: Any) -> Self:
        """The same with other settings."""
        return type(self)(replace(self.config, **settings), self.split, self.machine)

    def budget(self, seconds: float = 5.0, warm_up_steps: int = 2, lap_steps: int = 1) -> Budget:
        """A budget of about `seconds` timed seconds; a fraction of it with --quick."""
        seconds_laps_warm_up = (seconds / 10, 3, 1.0) if self.config.quick else (seconds, 7, 10.0)
        return Budget(*seconds_laps_warm_up, warm_up_steps, lap_steps)

    def plan(self) -> Plan:
        """What the batches hold; raises Mistake where a batch is larger than the data set."""
        world = self.machine.world
        return Plan.of(self.split, rank=world.rank, world=world.size, **self.config.drawn())

    def dali(self, batch_size: int, side: int, device: torch.device | None = None) -> Iterator[Batch]:
        """Our loader with the full augmentation, for ever, on `device` or else the setup's."""
        plan = self.changed(batch_size=batch_size).plan()
        loader = DaliLoader(self.split, plan, device or self.device, self.machine.threads, lambda epoch: side)
        return chain.from_iterable(map(loader.epoch, count()))

    def synthetic(self, batch_size: int) -> Iterator[Batch]:
        """One batch on the device, for ever: what the model could eat for free.

        Images (batch_size, 3, side, side) uint8 channels_last; labels (batch_size,) int64.
        """
        generator = torch.Generator().manual_seed(0)
        shape = batch_size, self.side, self.side, 3
        nhwc = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, len(self.split.classes), (batch_size,), generator=generator)
        return repeat((nhwc.to(self.device).permute(0, 3, 1, 2), labels.to(self.device)))

    def model(self) -> ResNet:
        """A fresh network on the device, channels_last, in training mode."""
        model = create(self.config, self.split).to(self.device)
        return model.to(memory_format=torch.channels_last).train()

    def cold_learner(self, compiled: bool | None = None, cuda_graph: bool | None = None) -> Learner:
        """A fresh network and its training, each step launched kernel by kernel until `warm_up`."""
        machine = self.machine if compiled is None else replace(self.machine, compiled=compiled)
        config = self.config if cuda_graph is None else replace(self.config, cuda_graph=cuda_graph)
        return Learner(self.model(), config, FOREVER, machine)

    def learner(self) -> Learner:
        """A fresh network and its training, compiled and recorded for this batch size as train.py begins.

        On a GPU it must be had before DALI's batches are: see engine.graph.
        """
        learner = self.cold_learner()
        if needs_warm_up(learner):
            for note in warm_up(learner, self.plan().share):
                warnings.warn(note, stacklevel=2)
        return learner


def prepare(config: SpeedOptions, world: World = ALONE) -> Setup:
    """Set torch up and load the images, all for one rank of `world`.

    Raises Mistake where the device is not here or the batch is larger than the data set, OSError as `open_dataset`.
    """
    machine = Machine.of(config, world)
    split, _ = open_dataset(config.data, config.size, config.fit, config.layout).splits(validate=True)
    setup = Setup(config, split, machine)
    setup.plan()  # refuses what cannot be, before any work
    return setup
