"""Accuracy of a recipe over seeds: mean and deviation, plain and flip-TTA, at the last epoch, with time and images/s.

    python -m bench accuracy cpu --seeds 3
    python -m bench accuracy full --seeds 5 --epochs 10     # any flag of train.py

All seeds train in one process, so that compiling is paid once. The result is written anew after each of them.
"""

import statistics
from collections.abc import Sequence

import torch

from bench.core.options import parse
from bench.core.record import Row
from bench.core.session import session
from bench.recipe.trial import Trainer, Trial, TrialOptions
from engine.config import default_preset
from ground.spread import quartiles

PART = "accuracy"


def main(arguments: Sequence[str]) -> None:
    default = default_preset(torch.cuda.is_available())
    options = parse(TrialOptions, arguments, "accuracy", __doc__, default)
    trainer = Trainer(options)
    options = trainer.decide(options, arguments)
    trials: list[Trial] = []
    command, data = ["accuracy", *arguments], trainer.held_out.name
    with session("accuracy", command, options, trainer.machine, data, label=options.preset) as display:
        for one in display.steps(options.each()):
            trials.append(trainer.run(one, display.saying(f"seed {one.seed}")))
            display.rows = rows_of(trials)


def rows_of(trials: Sequence[Trial]) -> list[Row]:
    """Mean accuracy with its deviation between seeds, and the medians of time and rate."""
    rows = [
        _accuracy_row("plain", [trial.plain.accuracy for trial in trials]),
        _accuracy_row("flip-TTA", [trial.flipped.accuracy for trial in trials]),
    ]
    seconds = quartiles([trial.train_seconds for trial in trials])
    rates = quartiles([trial.images / trial.train_seconds for trial in trials])
    longest = f"{max(trial.train_seconds for trial in trials):.1f} s the longest; without compiling and evaluation"
    return [
        *rows,
        Row.of(PART, "training, median", "s", seconds, longest),
        Row.of(PART, "training, median rate", "images/s", rates),
    ]


def _accuracy_row(name: str, accuracies: Sequence[float]) -> Row:
    percents = [100 * accuracy for accuracy in accuracies]
    each = ", ".join(f"{percent:.2f}" for percent in percents)
    spread = quartiles(percents)
    return Row(
        PART, f"{name}, mean", "%", statistics.fmean(percents), spread.q1, spread.q3,
        f"{deviation(percents)}, n={len(percents)}: {each}",
    )  # fmt: skip


def deviation(values: Sequence[float]) -> str:
    """The deviation between seeds, as a note."""
    return f"+- {statistics.stdev(values):.2f} between seeds" if len(values) > 1 else "one seed: no deviation"
