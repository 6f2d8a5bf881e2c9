"""Accuracy of a recipe over seeds: mean and deviation, plain and flip-TTA, at the last epoch, with time and images/s.

    python -m bench accuracy cpu --seeds 3
    python -m bench accuracy full --seeds 5 --epochs 10     # any flag of train.py

All seeds train in one process, so that compiling is paid once. The result is written anew after each of them.
"""

import gc
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Self

import torch

from bench.core.record import Row
from bench.core.session import BenchOptions, parse, session
from engine.config import C, Config, default_preset, given_flags, setting
from engine.learner import Evaluation, Learner, NonFiniteLoss
from engine.machine import Machine
from engine.model import ResNet, create
from engine.warm_up import needs_warm_up, warm_up
from ground.memory import memory_advice
from ground.mistake import Mistake
from ground.spread import quartiles
from pipeline.dali import DaliLoader, evaluation_loader
from pipeline.dataset import open_dataset
from pipeline.plan import Plan
from run.budget import decide
from run.resume import State


@dataclass(frozen=True, kw_only=True)
class TrialOptions(BenchOptions):
    seeds: int = setting(5, ge=1, le=1000)
    """Trainings, with the seeds --seed, --seed + 1, ..."""

    def each(self) -> list[Self]:
        """The recipe with each seed."""
        return [replace(self, seed=self.seed + i) for i in range(self.seeds)]


@dataclass(frozen=True)
class Trial:
    """What one training came to, at its last epoch."""

    plain: Evaluation
    flipped: Evaluation
    train_seconds: float
    """Those of training alone: no compiling, no evaluation."""
    images: int


class Trainer:
    """Trains recipes on the machine and data of `config`; what was compiled for a network is used again."""

    def __init__(self, config: Config) -> None:
        self.machine = Machine.of(config)
        data = open_dataset(config.data, config.size, config.fit, config.layout)
        self.train, self.held_out = data.splits(config.validate, config.fold)
        self._models: dict[tuple[int, ...], ResNet] = {}

    def decide(self, config: C, arguments: Sequence[str]) -> C:
        """The recipe with what the images and `--minutes` decide, but for what the flags give."""
        return decide(config, given_flags(arguments), State(), self.train, len(self.held_out), self.machine)

    def run(self, config: Config, say: Callable[[str], None]) -> Trial:
        """One training by the recipe and its seed, as train.py does it."""
        machine = self.machine
        plan = Plan.of(self.train, **config.drawn())
        loader = DaliLoader(self.train, plan, machine.device, machine.threads, config.resolution)
        learner = Learner(self._model(config), config, plan.steps_per_epoch, machine)
        if needs_warm_up(learner):
            say("compiling")
            for note in warm_up(learner, plan.batch_size):
                say(note)
        seconds, images = 0.0, 0
        try:
            with memory_advice(config.batch_size, machine.device):
                for epoch in range(config.epochs):
                    say(f"epoch {epoch + 1}/{config.epochs}")
                    start = perf_counter()
                    for batch in loader.epoch(epoch):
                        learner.train_step(*batch)
                    images += learner.end_epoch().images  # which waits for the device
                    seconds += perf_counter() - start
        except NonFiniteLoss as error:
            raise Mistake(f"seed {config.seed}: {error}: try a smaller --max-lr") from None
        del loader
        gc.collect()  # DALI's graph and its loader hold each other, and 390 MB of images
        say("evaluating")
        test = evaluation_loader(self.held_out, config.model_side, machine.device, machine.threads)
        plain, flipped = (learner.evaluate(test, flip) for flip in (False, True))
        return Trial(plain, flipped, seconds, images)

    def _model(self, config: Config) -> ResNet:
        """Starting weights, in the same module as before where that fits: graphs belong to modules."""
        fresh = create(config, self.train).to(self.machine.device).to(memory_format=torch.channels_last)
        model = self._models.setdefault(tuple(config.values("network").values()), fresh)
        model.load_state_dict(fresh.state_dict())
        return model


def main(arguments: Sequence[str]) -> None:
    options = parse(TrialOptions, arguments, "accuracy", __doc__, default_preset(torch.cuda.is_available()))
    trainer = Trainer(options)
    options = trainer.decide(options, arguments)
    trials: list[Trial] = []
    subject = options, trainer.machine, trainer.held_out.name
    with session("accuracy", ["accuracy", *arguments], *subject, label=options.preset) as display:
        for one in display.steps(options.each()):
            trials.append(trainer.run(one, display.saying(f"seed {one.seed}")))
            display.rows[:] = rows_of(trials)


def rows_of(trials: Sequence[Trial]) -> list[Row]:
    """Mean accuracy with its deviation between seeds, and the medians of time and rate."""
    rows = []
    for name, results in (("plain", [t.plain for t in trials]), ("flip-TTA", [t.flipped for t in trials])):
        percents = [100 * result.accuracy for result in results]
        spread = quartiles(percents)
        note = f"{deviation(percents)}, n={len(percents)}: " + ", ".join(f"{percent:.2f}" for percent in percents)
        rows.append(Row("accuracy", f"{name}, mean", "%", statistics.fmean(percents), spread.q1, spread.q3, note))
    seconds = [trial.train_seconds for trial in trials]
    longest = f"{max(seconds):.1f} s the longest; without compiling and evaluation"
    rates = quartiles([trial.images / trial.train_seconds for trial in trials])
    return [
        *rows,
        Row.of("accuracy", "training, median", "s", quartiles(seconds), longest),
        Row.of("accuracy", "training, median rate", "images/s", rates),
    ]


def deviation(values: Sequence[float]) -> str:
    """The deviation between seeds, as a note."""
    return f"+- {statistics.stdev(values):.2f} between seeds" if len(values) > 1 else "one seed: no deviation"
