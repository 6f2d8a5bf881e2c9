"""Images per second over the number of processes, each set of them started by torchrun as for train.py.

    python -m bench scaling                                     # 1, 2, 4, ... to one for each GPU, or for each core
    python -m bench scaling --processes 1 2 3 --batch-size 256

All train on the same global batches, DALI included: more processes take smaller shares of them, as in a real run. The
efficiency is over the smallest number of processes, image for image; the cores are divided among the processes.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bench.core import chart
from bench.core.clock import Lane
from bench.core.options import SpeedOptions, parse_speed
from bench.core.process import reported
from bench.core.record import Row
from bench.core.session import session
from bench.core.setup import prepare
from engine import distributed
from engine.config import setting
from engine.distributed import World
from ground.spread import quartiles

PART = "scaling"
LIMIT = 900.0  # seconds for one number of processes
WARM_UP_STEPS = 5


@dataclass(frozen=True, kw_only=True)
class Options(SpeedOptions):
    processes: tuple[int, ...] = setting((), ge=1)
    """Numbers of processes (default: doubling, up to one for each GPU, or for each core without one)."""


def main(arguments: Sequence[str]) -> None:
    options = parse_speed(Options, arguments, "scaling", __doc__)
    setup = prepare(options)
    most = torch.cuda.device_count() if setup.cuda else len(os.sched_getaffinity(0))
    counts = sorted(set(options.processes)) or doubling(most)
    command = ["scaling", *arguments]
    with session("scaling", command, options, setup.machine, setup.split.name, chart.draw_scaling) as shown:
        each = None
        for count in shown.steps(counts):
            shown.say(f"processes: {count}")
            found = measured(count, arguments)
            spread = quartiles(found["rates"])
            each = each or spread.median / count
            each_has = f"{setup.batch_size / count:.4g} images each"
            note = f"{each_has}; the slowest waits for data {found['waited']:.1%} of the time"
            shown.rows += [
                Row.of(PART, f"processes: {count}", "images/s", spread, note),
                Row(PART, f"efficiency, processes: {count}", "%", 100 * spread.median / count / each),
            ]


def doubling(limit: int) -> list[int]:
    """1, 2, 4, ... and the limit."""
    return sorted({limit, *(1 << i for i in range(limit.bit_length()))})


def measured(count: int, flags: Sequence[str]) -> dict[str, Any]:
    """What `count` processes of `measure_rank` report.

    Raises:
        ValueError: they failed.
    """
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "-m"] if count > 1 else []
    return reported(["-m", *launcher, "bench.speed.scaling", *flags], LIMIT)


def measure_rank(arguments: Sequence[str], world: World) -> None:
    """One rank of a training; rank 0 prints the images/s of each lap, and the slowest rank's share of data wait.

    A lap has as many steps on each rank, or they would wait for each other for ever.
    """
    setup = prepare(parse_speed(Options, arguments, "scaling", __doc__), world)
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
    distributed.execute(measure_rank, "bench")
