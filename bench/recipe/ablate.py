"""What each ingredient of a recipe is worth: trainings with and without it, of the same seeds, on held-out images.

    python -m bench ablate cpu --seeds 3 --epochs 2 --resolutions 16 20
    python -m bench ablate cpu --only whitened-stem,lookahead

Each ingredient is taken out of the recipe, or put in where the recipe does not have it; all else stays the same, the
number of epochs too. The gain is the mean over seeds of the paired difference in accuracy, with its standard error;
beside it stands what the ingredient does to the time. The test set is not opened. The result is written anew after
each training.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from bench.core import chart, record
from bench.core.record import Row
from bench.core.session import parse, session
from bench.recipe.accuracy import Trainer, Trial, TrialOptions, deviation
from engine.config import Config, setting
from ground.mistake import Mistake


@dataclass(frozen=True, kw_only=True)
class AblationOptions(TrialOptions):
    seeds: int = setting(3, ge=1, le=1000)
    """Pairs of trainings for each ingredient."""
    only: str = ""
    """Ingredients to measure, separated by commas (default: all)."""


@dataclass(frozen=True)
class Pair:
    """Two recipes of one seed that differ by one ingredient."""

    name: str
    with_it: Config
    without: Config


def ingredients(config: Config) -> list[Pair]:
    """The recipe with and without each of its ingredients, and of those it could have."""

    def switch(name: str, field: str, on: Any, off: Any) -> Pair:
        return Pair(name, replace(config, **{field: on}), replace(config, **{field: off}))

    def amount(name: str, field: str, otherwise: Any, nothing: Any) -> Pair:
        """With the recipe's value, or one to try where it has none."""
        value = getattr(config, field)
        return switch(name, field, otherwise if value == nothing else value, nothing)

    return [
        amount("muon", "muon_lr", 0.2, 0.0),
        switch("whitened-stem", "whiten", True, False),
        switch("dirac-start", "dirac", True, False),
        amount("bias-lr", "bias_lr_scale", 16.0, 1.0),
        switch("lookahead", "lookahead", True, False),
        amount("label-smoothing", "label_smoothing", 0.1, 0.0),
        amount("translate", "translate", 2, 0),
        amount("cutout", "cutout", 8, 0),
        amount("flip", "flip", "alternating", "none"),
        switch("alternating-flip", "flip", "alternating", "random"),
        amount("weight-decay", "weight_decay", 5e-4, 0.0),
        switch("progressive-resolution", "resolutions", config.resolutions, config.resolutions[-1:]),
    ]


def main(arguments: Sequence[str]) -> None:
    options = parse(AblationOptions, arguments, "ablate", __doc__, "cpu")
    options = replace(options, validate=True)
    pairs_of(options, options.only)  # refuses a wrong name before the data is opened
    trainer = Trainer(options)
    options = trainer.decide(options, arguments)
    bases = options.each()
    pairs = [pair for one in bases for pair in pairs_of(one, options.only)]
    recipes = list(dict.fromkeys([*bases[:1], *(one for pair in pairs for one in (pair.with_it, pair.without))]))
    trials: dict[Config, Trial] = {}
    subject = options, trainer.machine, trainer.held_out.name
    with session("ablation", ["ablate", *arguments], *subject, chart.draw_ablation, options.preset) as display:
        for one in display.steps(recipes):
            trials[one] = trainer.run(one, display.saying(f"training {len(trials) + 1} of {len(recipes)}"))
            display.rows[:] = rows_of(bases, pairs, trials)


def pairs_of(config: Config, only: str) -> list[Pair]:
    """Those named, or all; raises Mistake where one is unknown or changes nothing in this recipe."""
    by_name = {pair.name: pair for pair in ingredients(config)}
    pairs = [by_name[name] for name in record.selection(only, by_name, "ingredient")]
    for pair in pairs:
        if only and pair.with_it == pair.without:
            raise Mistake(f"--only: this recipe is the same with and without {pair.name}: change it by a flag")
    return [pair for pair in pairs if pair.with_it != pair.without]


def rows_of(bases: Sequence[Config], pairs: Sequence[Pair], trials: Mapping[Config, Trial]) -> list[Row]:
    """Gains over the pairs that are done, the largest first; then the recipe itself, `bases`."""
    done = [pair for pair in pairs if pair.with_it in trials and pair.without in trials]
    gains = []
    for name in dict.fromkeys(pair.name for pair in done):
        alike = [pair for pair in done if pair.name == name]
        sides = [(trials[pair.with_it], trials[pair.without]) for pair in alike]
        points = [100 * (a.plain.accuracy - b.plain.accuracy) for a, b in sides]
        mean = statistics.fmean(points)
        low, high, certainty = None, None, "one pair: no error"
        if len(points) > 1:
            error = statistics.stdev(points) / math.sqrt(len(points))
            low, high, certainty = mean - error, mean + error, f"+- {error:.2f}"
        time = statistics.median(a.train_seconds / b.train_seconds for a, b in sides)
        each = ", ".join(f"{point:+.2f}" for point in points)
        what = difference(alike[0].with_it, alike[0].without)
        note = f"{what}; {certainty}, n={len(points)}: {each}; time x{time:.2f}"
        gains.append(Row("ablation", name, "points", mean, low, high, note))
    gains.sort(key=lambda row: -(row.value or 0.0))
    recipe = [100 * trials[one].plain.accuracy for one in bases if one in trials]
    note = f"{deviation(recipe)}, n={len(recipe)}"
    return [*gains, Row("ablation", "the recipe itself", "%", statistics.fmean(recipe), note=note)]


def difference(one: Config, other: Config) -> str:
    """What differs, as "field VALUE against VALUE"."""

    def words(value: Any) -> str:
        return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)

    a, b = asdict(one), asdict(other)
    return "; ".join(f"{name} {words(a[name])} against {words(b[name])}" for name in a if a[name] != b[name])
