"""`python -m bench`: how many images per second this machine trains, part by part, and how far that is from its roof.

python -m bench --only data,ladder --quick
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import repeat

import torch

from bench.core import chart, record
from bench.core.clock import Budget, measure
from bench.core.record import Row
from bench.core.session import Say, SpeedOptions, parse_speed, session
from bench.core.setup import Setup, prepare
from bench.speed import throughput
from bench.speed.ladder import measure_ladder
from engine.cost import training_flops
from engine.device import DTYPES
from ground.spread import Spread


@dataclass(frozen=True, kw_only=True)
class SuiteOptions(SpeedOptions):
    only: str = ""
    """Parts to measure, separated by commas: resources, data, compute, e2e, ladder, evaluation, roof (default: all)."""


# What measures a part, and its share of the whole time on a CPU, for the ETA until the first parts tell better.
PARTS: dict[str, tuple[Callable[[Setup, Say, list[Row]], list[Row]], int]] = {
    # First, so that nothing is compiled and no memory is taken yet.
    "resources": (lambda setup, say, _: throughput.measure_resources(setup, say), 10),
    "data": (lambda setup, say, _: throughput.measure_data(setup, say), 50),
    "compute": (lambda setup, say, _: throughput.measure_compute(setup, say), 25),
    "e2e": (lambda setup, say, _: throughput.measure_end_to_end(setup, say), 25),
    "ladder": (lambda setup, say, _: measure_ladder(setup, say), 90),
    "evaluation": (lambda setup, say, _: throughput.measure_evaluation(setup, say), 25),
    "roof": (lambda setup, say, rows: measure_roof(setup, say, rows), 10),
}


def main(arguments: Sequence[str]) -> None:
    options = parse_speed(SuiteOptions, arguments, "", __doc__)
    wanted = record.selection(options.only, PARTS, "part")
    names = [name for name in PARTS if name in wanted]
    setup = prepare(options)
    with session("bench", arguments, options, setup.machine, setup.split.name, chart.draw_bench) as display:
        for name in display.steps(names, [PARTS[name][1] for name in names]):
            measure_part, _ = PARTS[name]
            display.rows += measure_part(setup, display.saying(name), display.rows)
        display.rows.append(Row("in all", "this command after imports", "s", display.tracker.seconds))


def measure_roof(setup: Setup, say: Say, measured: Sequence[Row]) -> list[Row]:
    """What this machine could do at most, by its measured rate of large matrix products, and the share of that which
    the real train_step reached at best in what was measured before."""
    flops = training_flops(setup.model(), setup.side)
    name = f"FLOPs of a training image, {setup.side} px"
    rows = [Row("roof", name, "GFLOP", flops / 1e9, note="a multiply-add is 2")]
    rates: dict[str, Spread] = {}
    for name in ["fp32", "bf16", "fp16"] if setup.cuda else sorted({"fp32", setup.precision}):
        say(f"matrix products in {name}")
        rates[name] = matrix_rate(DTYPES[name], setup.device, setup.budget(2))
        note = "without TF32, which convolutions take" if setup.cuda and name == "fp32" else ""
        rows.append(Row.of("roof", f"matrix rate, {name}", "TFLOP/s", rates[name], note))
    arithmetic = 1e12 * rates[setup.precision].median / flops
    trained = (row for row in measured if row.part in ("end to end", "compute") and row.unit == "images/s")
    best = max((row.value for row in trained if row.value), default=None)
    share = 100 * best / arithmetic if best else None
    note = f"{best:,.0f} images/s of {arithmetic:,.0f}" if best else "needs the part e2e or compute"
    return [
        *rows,
        Row("roof", f"arithmetic roof, {setup.precision}", "images/s", arithmetic),
        Row("roof", f"model FLOPs utilisation, {setup.precision}", "%", share, note=note),
    ]


def matrix_rate(dtype: torch.dtype, device: torch.device, budget: Budget) -> Spread:
    """TFLOP/s of a large square matrix product."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    one_product = repeat((a, b[:1]))  # the clock counts the second's length: 1
    rate = measure(one_product, lambda a, _: torch.mm(a, b, out=out), device, budget)
    return Spread(*(2e-12 * side**3 * each for each in (rate.median, rate.q1, rate.q3)))
