"""Images per second over the number of processes, each set of them started by torchrun as for train.py.

    python -m bench scaling                                     # 1, 2, 4, ... to one for each GPU, or for each core
    python -m bench scaling --processes 1 2 3 --batch-size 256

All train on the same global batches, DALI included: more processes take smaller shares of them, as in a real run. The
efficiency is over the smallest number of processes, image for image; the cores are divided among the processes.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from bench.core import chart
from bench.core.clock import Lane
from bench.core.record import ROOT, Row
from bench.core.session import SpeedOptions, parse_speed, session
from bench.core.setup import prepare
from engine import distributed
from engine.config import setting
from engine.distributed import World
from ground.mistake import Mistake
from ground.spread import quartiles
from ground.terminal import json_line

LIMIT = 900.0  # seconds for one number of processes
WARM_UP_STEPS = 5


@dataclass(frozen=True, kw_only=True)
class ScalingOptions(SpeedOptions):
    processes: tuple[int, ...] = setting((), ge=1)
    """Numbers of processes (default: doubling, up to one for each GPU, or for each core without one)."""


def main(arguments: Sequence[str]) -> None:
    options = parse_speed(ScalingOptions, arguments, "scaling", __doc__)
    setup = prepare(options)
    most = torch.cuda.device_count() if setup.cuda else len(os.sched_getaffinity(0))
    counts = sorted(set(options.processes)) or doubling(most)
    subject = options, setup.machine, setup.split.name
    draw = partial(chart.draw_curves, over="processes", other_unit="%", other_title="efficiency, %")
    with session("scaling", ["scaling", *arguments], *subject, draw) as display:
        first = None
        for count in display.steps(counts):
            display.say(f"processes: {count}")
            launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "-m"] if count > 1 else []
            report = report_of(["-m", *launcher, "bench.speed.scaling", *arguments], LIMIT)
            spread = quartiles(report["rates"])
            first = first or spread.median / count
            waits = f"the slowest waits for data {report['wait']:.1%} of the time"
            note = f"{setup.batch_size / count:.4g} images each; {waits}"
            display.rows += [
                Row.of("scaling", f"processes: {count}", "images/s", spread, note),
                Row("scaling", f"efficiency, processes: {count}", "%", 100 * spread.median / count / first),
            ]


def doubling(limit: int) -> list[int]:
    return sorted({limit, *(1 << i for i in range(limit.bit_length()))})


def report_of(words: Sequence[str], limit: float) -> dict[str, Any]:
    """The last line, JSON, of what `python *words` prints; what stops the wait ends all that it started.

    Raises:
        Mistake: it failed by one, whose line is repeated, or did not end within `limit` seconds.
        RuntimeError: it failed otherwise.
    """
    pipe, command = subprocess.PIPE, f"python {shlex.join(words)}"
    process = subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, text=True, start_new_session=True, stdout=pipe, stderr=pipe
    )
    try:
        out, errors = process.communicate(timeout=limit)
    except BaseException as stop:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if not isinstance(stop, subprocess.TimeoutExpired):
            raise
        raise Mistake(f"{command} did not end within {limit:.0f} s") from None
    if process.returncode:
        failure = f"{command} ended with exit code {process.returncode}: "
        if told := re.search("^bench(: |, rank).*", errors, re.M):
            raise Mistake(failure + told[0])
        raise RuntimeError(failure + errors)
    return dict(json.loads(out.splitlines()[-1]))


def measure_rank(arguments: Sequence[str], world: World) -> None:
    """One rank of a training; rank 0 prints images/s of each lap, and the slowest's share of data wait.

    A lap has as many steps on each rank, or they would wait for each other for ever.
    """
    setup = prepare(parse_speed(ScalingOptions, arguments, "scaling", __doc__), world)
    learner = setup.learner()
    lane = Lane(setup.dali(setup.batch_size, setup.side), learner.train_step, setup.device)
    lane.lap(WARM_UP_STEPS)
    step = world.largest(lane.lap(WARM_UP_STEPS).seconds / WARM_UP_STEPS)
    budget = setup.budget(5)
    steps = max(1, round(budget.seconds / budget.laps / step))
    laps = [lane.lap(steps) for _ in range(budget.laps)]
    seconds = [world.largest(lap.seconds) for lap in laps]
    wait = world.largest(sum(lap.wait for lap in laps) / sum(lap.seconds for lap in laps))
    if world.first:
        print(json_line({"rates": [steps * setup.batch_size / s for s in seconds], "wait": wait}))


if __name__ == "__main__":
    distributed.execute(measure_rank, "bench")
