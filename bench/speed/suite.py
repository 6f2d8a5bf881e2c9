"""`python -m bench`: how many images per second this machine trains, part by part, and how far that is from its roof.

python -m bench --only data,ladder --quick
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.core import chart, record
from bench.core.options import SpeedOptions, parse_speed
from bench.core.record import Row
from bench.core.session import Say, session
from bench.core.setup import Setup, prepare
from bench.speed.ladder import measure_ladder
from bench.speed.resources import measure_resources
from bench.speed.roofline import measure_roof
from bench.speed.throughput import measure_compute, measure_data, measure_end_to_end, measure_evaluation


@dataclass(frozen=True, kw_only=True)
class SuiteOptions(SpeedOptions):
    only: str = ""
    """Parts to measure, separated by commas: resources, data, compute, e2e, ladder, evaluation, roof (default: all)."""


# What measures a part, and its share of the whole time on a CPU, for the ETA until the first parts tell better.
PARTS: dict[str, tuple[Callable[[Setup, Say, list[Row]], list[Row]], int]] = {
    # First, so that nothing is compiled and no memory is taken yet.
    "resources": (lambda setup, say, _: measure_resources(setup, say), 10),
    "data": (lambda setup, say, _: measure_data(setup, say), 50),
    "compute": (lambda setup, say, _: measure_compute(setup, say), 25),
    "e2e": (lambda setup, say, _: measure_end_to_end(setup, say), 25),
    "ladder": (lambda setup, say, _: measure_ladder(setup, say), 90),
    "evaluation": (lambda setup, say, _: measure_evaluation(setup, say), 25),
    "roof": (lambda setup, say, rows: measure_roof(setup, say, _best_rate(rows)), 10),
}


def main(arguments: Sequence[str]) -> None:
    options = parse_speed(SuiteOptions, arguments, "", __doc__)
    wanted = record.selection(options.only, PARTS, "part")
    names = [name for name in PARTS if name in wanted]
    setup = prepare(options)
    with session("bench", arguments, options, setup.machine, setup.split.name, chart.draw_bench) as display:
        for name in display.steps(names, [PARTS[name][1] for name in names]):
            measure, _ = PARTS[name]
            display.rows += measure(setup, display.saying(name), display.rows)
        display.rows.append(Row("in all", "this command after imports", "s", display.tracker.seconds))


def _best_rate(rows: list[Row]) -> float | None:
    """The best images/s of the real train_step measured before."""
    training = (row for row in rows if row.part in ("end to end", "compute") and row.unit == "images/s")
    return max((row.value for row in training if row.value), default=None)
