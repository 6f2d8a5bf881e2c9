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
class Options(SpeedOptions):
    only: str = ""
    """Parts to measure, separated by commas: resources, data, compute, e2e, ladder, evaluation, roof (default: all)."""


@dataclass(frozen=True)
class Part:
    measure: Callable[[Setup, Say, list[Row]], list[Row]]
    share: float
    """Of the whole time on a CPU, for the ETA until the first parts tell better."""


PARTS: dict[str, Part] = {
    # First, so that nothing is compiled and no memory is taken yet.
    "resources": Part(lambda setup, say, _: measure_resources(setup, say), 10),
    "data": Part(lambda setup, say, _: measure_data(setup, say), 50),
    "compute": Part(lambda setup, say, _: measure_compute(setup, say), 25),
    "e2e": Part(lambda setup, say, _: measure_end_to_end(setup, say), 25),
    "ladder": Part(lambda setup, say, _: measure_ladder(setup, say), 90),
    "evaluation": Part(lambda setup, say, _: measure_evaluation(setup, say), 25),
    "roof": Part(lambda setup, say, rows: measure_roof(setup, say, _trained(rows)), 10),
}


def main(arguments: Sequence[str]) -> None:
    options = parse_speed(Options, arguments, "", __doc__)
    wanted = record.named(options.only, PARTS, "part")
    names = [name for name in PARTS if name in wanted]
    setup = prepare(options)
    with session("bench", arguments, options, setup.machine, setup.split.name, chart.draw_bench) as shown:
        for name in shown.steps(names, [PARTS[name].share for name in names]):
            shown.rows += PARTS[name].measure(setup, shown.saying(name), shown.rows)
        shown.rows.append(Row("in all", "this command after imports", "s", shown.seconds))


def _trained(rows: list[Row]) -> float | None:
    """The best images/s of the real train_step measured before."""
    training = (row for row in rows if row.part in ("end to end", "compute") and row.unit == "images/s")
    return max((row.value for row in training if row.value), default=None)
