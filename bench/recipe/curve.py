"""Accuracy against time: what the recipe reaches on this machine in so many minutes of training, on held-out images.

    python -m bench curve cpu                      # 1, 2, 5 and 10 minutes: 20 minutes in all
    python -m bench curve cpu --budgets 20 60

Each training is what `python train.py --minutes M` would choose: epochs, and a smaller width where few would fit. The
test set is not opened. The result is written anew after each training.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tyro.conf import Suppress

from bench.core import chart
from bench.core.record import Row
from bench.core.session import BenchOptions, parse, session
from bench.recipe.accuracy import Trainer
from engine.config import setting


@dataclass(frozen=True, kw_only=True)
class CurveOptions(BenchOptions):
    budgets: tuple[float, ...] = setting((1.0, 2.0, 5.0, 10.0), gt=0, le=100_000)
    """Minutes of training, each a training of its own."""
    epochs: Suppress[int] = 20
    minutes: Suppress[float] = 0.0


def main(arguments: Sequence[str]) -> None:
    options = replace(parse(CurveOptions, arguments, "curve", __doc__, "cpu"), validate=True)
    trainer = Trainer(options)
    budgets = sorted(options.budgets)
    subject = options, trainer.machine, trainer.held_out.name
    with session("curve", ["curve", *arguments], *subject, chart.draw_accuracy_curve, options.preset) as display:
        for minutes in display.steps(budgets, [round(60 * minutes) for minutes in budgets]):
            config = trainer.decide(replace(options, minutes=minutes), arguments)
            trial = trainer.run(config, display.saying(f"{minutes:g} minutes"))
            accuracy = 100 * trial.plain.accuracy
            error = (accuracy * (100 - accuracy) / trial.plain.total) ** 0.5  # one standard error
            note = f"{config.epochs} epochs, width {config.width}, {trial.train_seconds:.0f} s of training"
            row = Row("curve", f"minutes {minutes:g}", "%", accuracy, accuracy - error, accuracy + error, note)
            display.rows.append(row)
