"""What each mode of torch.compile brings, and how long it compiles: `train.py --compile-mode` takes the best.

    python -m bench modes               # on a CUDA GPU: minutes, as the max modes try many kernels

The real train_step on the synthetic batch. CUDA graphs pay where the host cannot launch kernels as fast as the GPU runs
them. On a CPU the modes are not measured: they are made for GPUs.
"""

from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any, get_args, get_type_hints

import torch

from bench.core import chart, record
from bench.core.clock import measure
from bench.core.record import Result, Row
from bench.core.setup import Say, Settings, Setup, parse, prepare
from bench.speed.suite import finish, settings_of, stdout_console, steps_shown
from engine.config import Config

PART = "modes"


def main(arguments: Sequence[str]) -> None:
    options = parse(Settings, arguments, "python -m bench modes", (__doc__ or "").split("\n\n")[0])
    setup = prepare(options)
    stem = record.writable_stem(options.out, "modes", setup.device)
    card = record.environment(setup.device, setup.precision, ["modes", *arguments])
    console = stdout_console()
    rows: list[Row] = []
    result = Result("modes", card, settings_of(setup), rows)
    with steps_shown(console, [1.0] * len(modes())) as (say, finished):
        for mode in modes():
            rows += measure_mode(setup, mode, say)
            finished()
            record.save(result, stem)
    finish(result, stem, console, chart.draw_bench)


def modes() -> Sequence[str]:
    """Those that the config knows."""
    return get_args(get_type_hints(Config)["compile_mode"])


def measure_mode(setup: Setup, mode: Any, say: Say) -> list[Row]:
    """`mode` is one of the config's. Images/s and seconds of compiling, in a fresh compiler."""
    if not setup.cuda:
        note = "needs a CUDA GPU"
        return [Row(PART, mode, "images/s", note=note), Row(PART, f"compiling, {mode}", "s", note=note)]
    say(mode)
    torch._dynamo.reset()
    one = replace(setup, config=replace(setup.config, compile_mode=mode))
    learner = one.learner()
    start = perf_counter()
    learner.warm_up(one.batch_size)
    seconds = perf_counter() - start
    rate = measure(one.synthetic(one.batch_size), learner.train_step, one.device, one.budget(3))
    return [
        Row.of_rate(PART, mode, rate, f"batch {one.batch_size}, {one.side} px"),
        Row(PART, f"compiling, {mode}", "s", seconds),
    ]
