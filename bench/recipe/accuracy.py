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
    options = parse(TrialOptions, arguments, "accuracy", __doc__, default_preset(torch.cuda.is_available()))
    trainer = Trainer(options)
    options = trainer.decide(options, arguments)
    trials: list[Trial] = []
    subject = options, trainer.machine, trainer.held_out.name
    with session("accuracy", ["accuracy", *arguments], *subject, label=options.preset) as display:
        for one in display.steps(options.each()):
            trials.append(trainer.run(one, display.saying(f"seed {one.seed}")))
            display.rows = rows_of(trials)


def rows_of(trials: Sequence[Trial]) -> list[Row]:
    """Mean accuracy with its deviation between seeds, and the medians of time and rate."""
    rows = []
    for name, results in (("plain", [t.plain for t in trials]), ("flip-TTA", [t.flipped for t in trials])):
        percents = [100 * result.accuracy for result in results]
        spread = quartiles(percents)
        note = f"{deviation(percents)}, n={len(percents)}: " + ", ".join(f"{percent:.2f}" for percent in percents)
        rows.append(Row(PART, f"{name}, mean", "%", statistics.fmean(percents), spread.q1, spread.q3, note))
    seconds = [trial.train_seconds for trial in trials]
    longest = f"{max(seconds):.1f} s the longest; without compiling and evaluation"
    rates = quartiles([trial.images / trial.train_seconds for trial in trials])
    return [
        *rows,
        Row.of(PART, "training, median", "s", quartiles(seconds), longest),
        Row.of(PART, "training, median rate", "images/s", rates),
    ]


def deviation(values: Sequence[float]) -> str:
    """The deviation between seeds, as a note."""
    return f"+- {statistics.stdev(values):.2f} between seeds" if len(values) > 1 else "one seed: no deviation"
