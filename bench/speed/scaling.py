"""Images per second over the number of processes, each set of them started by torchrun as for train.py.

    python -m bench scaling                                     # 1, 2, 4, ... to one for each GPU, or for each core
    python -m bench scaling --processes 1 2 3 --batch-size 256

All train on the same global batches, DALI included: more processes take smaller shares of them, as in a real run. The
efficiency is over the smallest number of processes, image for image; the cores are divided among the processes.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import tyro

from bench.core import chart, record
from bench.core.clock import Lane, quartiles
from bench.core.record import Result, Row
from bench.core.setup import Say, Settings, parse, prepare
from bench.speed.suite import finish, settings_of, stdout_console, steps_shown
from engine import distributed
from engine.distributed import World

PART = "scaling"
PROG = "python -m bench scaling"
LIMIT = 900.0  # seconds for one number of processes
WARM_UP_STEPS = 5


@dataclass(frozen=True, kw_only=True)
class Options:
    """Besides the flags of every measuring command."""

    processes: tuple[int, ...] = ()
    """Numbers of processes (default: doubling, up to one for each GPU, or for each core without one)."""


def main(arguments: Sequence[str]) -> None:
    description = (__doc__ or "").split("\n\n")[0] + " Flags of the other commands apply: --batch-size, --width, ..."
    own, rest = tyro.cli(Options, args=list(arguments), prog=PROG, description=description, return_unknown_args=True)
    if any(count < 1 for count in own.processes):
        raise ValueError(f"--processes is {' '.join(map(str, own.processes))}: each must be 1 or more")
    settings = parse(Settings, rest, PROG, description)
    setup = prepare(settings)
    counts = sorted(set(own.processes)) or doubling(torch.cuda.device_count() if setup.cuda else cores())
    stem = record.writable_stem(settings.out, "scaling", setup.device)
    card = record.environment(setup.device, setup.precision, ["scaling", *arguments])
    console = stdout_console()
    with steps_shown(console, [1.0] * len(counts)) as (say, finished):
        rows = scaling(counts, setup.batch_size, lambda count: measured(count, rest), say, finished)
    result = Result("scaling", card, settings_of(setup), rows)
    record.save(result, stem)
    finish(result, stem, console, chart.draw_scaling)


def scaling(
    counts: Sequence[int],
    batch_size: int,
    measure: Callable[[int], dict[str, Any]],
    say: Say,
    finished: Callable[[], None],
) -> list[Row]:
    """Rows of rates, then of efficiencies, for rising numbers of processes."""
    rates, efficiencies = [], []
    each = None
    for count in counts:
        say(f"processes: {count}")
        found = measure(count)
        spread = quartiles(found["rates"])
        each = each or spread.median / count
        note = f"{batch_size / count:.4g} images each; the slowest waits for data {found['waited']:.1%} of the time"
        rates.append(Row.of(PART, f"processes: {count}", "images/s", spread, note))
        efficiencies.append(Row(PART, f"efficiency, processes: {count}", "%", 100 * spread.median / count / each))
        finished()
    return rates + efficiencies


def doubling(limit: int) -> list[int]:
    """1, 2, 4, ... and the limit."""
    return sorted({limit, *(1 << i for i in range(limit.bit_length()))})


def cores() -> int:
    return len(os.sched_getaffinity(0))


def measured(count: int, flags: Sequence[str]) -> dict[str, Any]:
    """What `count` processes of `measure_rank` report.

    Raises:
        ValueError: they failed.
    """
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "-m"] if count > 1 else []
    return record.reported(["-m", *launcher, "bench.speed.scaling", *flags], LIMIT)


def measure_rank(arguments: Sequence[str], world: World) -> None:
    """One rank of a training; rank 0 prints the images/s of each lap, and the slowest rank's share of data wait.

    A lap has as many steps on each rank, or they would wait for each other for ever.
    """
    setup = prepare(parse(Settings, arguments, PROG, ""), world)
    learner = setup.learner()
    lane = Lane(setup.dali(setup.batch_size, setup.side), learner.train_step, setup.device)
    lane.lap(WARM_UP_STEPS)
    step = world.largest(lane.lap(WARM_UP_STEPS).seconds / WARM_UP_STEPS)
    budget = setup.budget(5)
    steps = max(1, round(budget.seconds / budget.laps / step))
    laps = [lane.lap(steps) for _ in range(budget.laps)]
    seconds = [world.largest(lap.seconds) for lap in laps]
    waited = world.largest(sum(lap.waited for lap in laps) / sum(lap.seconds for lap in laps))
    if world.first:
        print(json.dumps({"rates": [steps * setup.batch_size / s for s in seconds], "waited": waited}))


if __name__ == "__main__":
    distributed.run(measure_rank, "bench")
