"""What is measured: the settings from the command line, and the loaders, models and learners they mean."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import count
from typing import Literal, TypeVar

import torch
import tyro

from bench.core.clock import Batch, Budget
from engine import runtime
from engine.config import PRESETS, Config
from engine.distributed import ALONE, World
from engine.learner import Learner
from engine.machine import Machine
from engine.model import MEAN, MEAN_COLOUR, STD, ResNet, create
from pipeline.cifar10 import Split
from pipeline.dali import DaliLoader
from pipeline.plan import Plan
from pipeline.reference import reference_loader
from pipeline.splits import training_splits
from pipeline.synthetic import ConstantLoader

FOREVER = 10**9  # steps
Say = Callable[[str], None]  # what is measured now


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Flags that every measuring command knows; the recipe is that of the `full` preset."""

    quick: bool = False
    """Fewer and shorter measurements: a first look."""
    batch_size: int | None = None
    """Images a step (default: the preset's on CUDA, 128 on a CPU, 64 there with --quick)."""
    resolution: int = 32
    """Side of the training images in pixels."""
    depth: Literal[18, 34] = 18
    """Layers of the ResNet."""
    width: int = 64
    """Channels of the first stage; 64 is the standard network."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Where to measure; auto takes a CUDA GPU where there is one."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Type of convolutions; auto takes what this hardware is fast at."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile; auto is on for CUDA and off for a CPU, where it costs a minute."""
    threads: int = 0
    """CPU threads for the model and for DALI (0: one per core)."""
    deterministic: bool = False
    """On CUDA, only algorithms that repeat bit for bit."""
    generated: bool = False
    """Measure on generated images instead of CIFAR-10: the same sizes, no data set."""
    out: str = "docs/results"
    """Folder for the results."""


S = TypeVar("S", bound=Settings)


def parse(settings: type[S], arguments: Sequence[str], prog: str, description: str) -> S:
    """Flags -> settings; help, or one message on stderr, ends in SystemExit as command lines do."""
    return tyro.cli(settings, args=list(arguments), prog=prog, description=description)


@dataclass(frozen=True)
class Setup:
    """One machine, one data set, one network: what all parts of a measurement share."""

    config: Config
    split: Split
    device: torch.device
    precision: str
    threads: int
    compiled: bool
    quick: bool
    world: World = ALONE

    @property
    def batch_size(self) -> int:
        return self.config.batch_size

    @property
    def side(self) -> int:
        return self.config.resolutions[-1]

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def budget(self, seconds: float = 5.0, warm_up_steps: int = 2, lap_steps: int = 1) -> Budget:
        """A budget of about `seconds` timed seconds; a fraction of it with --quick."""
        seconds, laps, warming = (seconds / 10, 3, 1.0) if self.quick else (seconds, 7, 10.0)
        return Budget(
            seconds=seconds, laps=laps, warm_up_seconds=warming, warm_up_steps=warm_up_steps, lap_steps=lap_steps
        )

    def plan(self, batch_size: int) -> Plan:
        """The full augmentation in batches of that size."""
        drawn = self.config.drawn() | {"batch_size": batch_size}
        return Plan(count=len(self.split.images), rank=self.world.rank, world=self.world.size, **drawn)

    def dali(self, batch_size: int, side: int, device: torch.device | None = None) -> Iterator[Batch]:
        """Our loader, for ever; on `device`, by default that of the setup."""
        plan, device = self.plan(batch_size), device or self.device
        return endless(DaliLoader(self.split, plan, device, self.threads, lambda epoch: side, MEAN_COLOUR))

    def torch_batches(self, batch_size: int, workers: int, normalised: bool = False) -> Iterator[Batch]:
        """torch's DataLoader with the same augmentation, for ever, on the CPU: uint8, or float32 `normalised`."""
        warnings.filterwarnings("ignore", message="This DataLoader will create")  # more workers than cores: on purpose
        statistics = (MEAN, STD) if normalised else None
        config = self.config
        loader = reference_loader(
            self.split, batch_size, workers, statistics, config.translate, config.cutout, self.side
        )
        while True:
            yield from loader

    def synthetic(self, batch_size: int, device: torch.device | None = None) -> ConstantLoader:
        """One constant batch, for ever."""
        return ConstantLoader(batch_size, self.side, device or self.device, FOREVER)

    def autocast(self) -> AbstractContextManager[None]:
        """The setup's mixed precision."""
        return runtime.autocast(self.device, self.precision)

    def model(self) -> ResNet:
        """A fresh network on the device, channels_last, in training mode."""
        model = create(self.config, self.split.images).to(self.device)
        return model.to(memory_format=torch.channels_last).train()

    def learner(self, compiled: bool | None = None) -> Learner:
        """A fresh network and its training; `compiled` instead of the setup's. Nothing is compiled before a step."""
        compiled = self.compiled if compiled is None else compiled
        machine = Machine(self.device, self.precision, self.threads, compiled, self.world)
        return Learner(self.model(), self.config, FOREVER, machine)


def prepare(settings: Settings, world: World = ALONE) -> Setup:
    """Check the settings, set torch up and load the images, all for one rank of `world`.

    Raises:
        ValueError: a setting is out of range, or the device is not here.
        OSError: the data set is not here and cannot be had.
    """
    device = world.device(settings.device)
    precision = runtime.pick_precision(device, settings.precision)
    size = settings.batch_size
    if size is None:
        size = PRESETS["full"].batch_size if device.type == "cuda" else 64 if settings.quick else 128
    config = replace(
        PRESETS["full"],
        batch_size=size,
        resolutions=(settings.resolution,),
        depth=settings.depth,
        width=settings.width,
        threads=settings.threads,
        generated=settings.generated,
        deterministic=settings.deterministic,
        compile=settings.compile,
    )
    threads = runtime.configure(device, world.threads(settings.threads), settings.deterministic)
    split = training_splits(True, settings.generated)[0]
    Plan(count=len(split.images), batch_size=size)  # refuses a batch larger than the data set, before any work
    compiled = config.compiles(device.type == "cuda")
    return Setup(config, split, device, precision, threads, compiled, settings.quick, world)


def endless(loader: DaliLoader) -> Iterator[Batch]:
    """Epoch after epoch."""
    for epoch in count():
        yield from loader.epoch(epoch)
