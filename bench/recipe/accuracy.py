"""Accuracy of a recipe over seeds: mean and deviation, plain and flip-TTA, at the last epoch, with time and images/s.

    python -m bench accuracy cpu --seeds 3
    python -m bench accuracy full --seeds 5 --epochs 10     # any flag of train.py

All seeds train in one process, so that compiling is paid once. The result is written anew after each of them.
"""

import statistics
from collections.abc import Sequence
from functools import partial

import torch

from bench.core import record
from bench.core.clock import quartiles
from bench.core.record import Result, Row
from bench.recipe.trial import Options, Trainer, Trial, described, parse_options, seeds_of
from bench.speed.suite import finish, say_in, stdout_console, steps_shown
from engine.config import default_preset

PART = "accuracy"


def main(arguments: Sequence[str]) -> None:
    description = (__doc__ or "").split("\n\n")[0]
    default = default_preset(torch.cuda.is_available())
    options, preset, config = parse_options(Options, arguments, "python -m bench accuracy", description, default)
    trainer = Trainer(config)
    stem = record.writable_stem(options.out, f"accuracy-{preset}", trainer.machine.device)
    card = record.environment(trainer.machine.device, trainer.machine.precision, ["accuracy", *arguments])
    settings = described(config, preset, trainer)
    console = stdout_console()
    trials: list[Trial] = []
    with steps_shown(console, [1.0] * options.seeds) as (say, finished):
        for one in seeds_of(config, options.seeds):
            trials.append(trainer.run(one, partial(say_in, f"seed {one.seed}", say)))
            finished()
            result = Result("accuracy", card, settings, rows_of(trials))
            record.save(result, stem)
    finish(result, stem, console)


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
