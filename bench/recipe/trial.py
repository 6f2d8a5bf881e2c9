"""Whole trainings one after the other in one process, for what a recipe reaches rather than how fast a step is."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from time import perf_counter
from typing import TypeVar

import torch
import tyro

from engine import runtime
from engine.config import Config, parse
from engine.learner import Evaluation, Learner, NonFiniteLoss
from engine.machine import Machine
from engine.model import MEAN_COLOUR, ResNet, create
from pipeline.dali import DaliLoader, evaluation_loader
from pipeline.plan import Plan
from pipeline.splits import training_splits

NOT_RECIPE = ("out", "run_dir", "resume", "checkpoint_every")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Flags of the commands that train; all other flags are train.py's."""

    seeds: int = 5
    """Trainings, with the seeds --seed, --seed + 1, ..."""
    out: str = "docs/results"
    """Folder for the results."""


T = TypeVar("T", bound=Options)


@dataclass(frozen=True)
class Trial:
    """What one training came to, at its last epoch."""

    plain: Evaluation
    flipped: Evaluation
    train_seconds: float
    """Of training alone: no compiling, no evaluation."""
    images: int


def parse_options(
    options: type[T], arguments: Sequence[str], prog: str, description: str, preset: str
) -> tuple[T, str, Config]:
    """`[PRESET] [flags]` -> the command's own options, the preset's name and the recipe."""
    name, rest = ([arguments[0]], arguments[1:]) if arguments and not arguments[0].startswith("-") else ([], arguments)
    description += " Every flag of train.py changes the recipe."
    own, others = tyro.cli(options, args=list(rest), prog=prog, description=description, return_unknown_args=True)
    if not 1 <= own.seeds <= 1000:
        raise ValueError(f"--seeds is {own.seeds}: it must be 1 to 1000")
    preset, config = parse([*name, *others], preset)
    if config.resume:
        raise ValueError("--resume is for train.py: here every training starts from its seed")
    return own, preset, config


class Trainer:
    """Trains recipes on one data set; what was compiled for a network and its resolutions is used again.

    Args:
        config: device, precision, threads, data and whether to hold images out come from it, for all trainings.
    """

    def __init__(self, config: Config) -> None:
        self.machine = Machine.of(config)
        self.train, self.held_out = training_splits(config.validate, config.generated)
        self._models: dict[tuple[int, int], ResNet] = {}

    def run(self, config: Config, say: Callable[[str], None]) -> Trial:
        """One training by the recipe and its seed, as train.py does it."""
        plan = Plan(count=len(self.train.images), **config.drawn())
        loader = DaliLoader(self.train, plan, self.machine.device, self.machine.threads, config.resolution, MEAN_COLOUR)
        learner = Learner(self._model(config), config, plan.steps_per_epoch, self.machine)
        if self.machine.compiled:
            say("compiling")
            learner.warm_up(plan.batch_size)
        seconds, images = 0.0, 0
        with runtime.memory_advice(config.batch_size, self.machine.device):
            for epoch in range(config.epochs):
                say(f"epoch {epoch + 1}/{config.epochs}")
                start = perf_counter()
                try:
                    images += learner.train_epoch(loader.epoch(epoch)).images  # which waits for the device at its end
                except NonFiniteLoss as error:
                    raise ValueError(f"seed {config.seed}: {error}: try a smaller --max-lr") from None
                seconds += perf_counter() - start
        del loader
        gc.collect()  # DALI's graph and its loader hold each other, and 390 MB of images
        say("evaluating")
        test = evaluation_loader(self.held_out, config.resolutions[-1], self.machine.device, self.machine.threads)
        plain, flipped = (learner.evaluate(test, flip) for flip in (False, True))
        return Trial(plain, flipped, seconds, images)

    def _model(self, config: Config) -> ResNet:
        """The recipe's starting weights, in the same module as before where that fits: graphs belong to modules."""
        fresh = create(config, self.train.images)
        model = self._models.get((config.depth, config.width))
        if model is None:
            model = fresh.to(self.machine.device).to(memory_format=torch.channels_last)
            self._models[config.depth, config.width] = model
        model.load_state_dict(fresh.state_dict())
        return model


def described(config: Config, preset: str, trainer: Trainer) -> dict[str, object]:
    """The recipe and what it ran on, for the record."""
    recipe = {name: value for name, value in asdict(config).items() if name not in NOT_RECIPE}
    return recipe | {"preset": preset, "compiled": trainer.machine.compiled, "data": trainer.held_out.name}


def seeds_of(config: Config, seeds: int) -> list[Config]:
    """The recipe with each seed."""
    return [replace(config, seed=config.seed + i) for i in range(seeds)]
