"""From the first version's style to ours, one change a rung: what each brings, also where it brings a loss.

The rungs run in turns, a lap each, so a slow minute of the machine slows all of them, and a gain is the median
quotient of laps that ran next to each other.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.core.clock import Batch, Lane, race, ratio
from bench.core.record import GAIN, Row
from bench.core.session import Say
from bench.core.setup import Setup
from bench.speed.seed_style import SeedStyle, take_normalised
from engine.learner import Learner

PART = "ladder"
SEED_BATCH = 64
WORKERS = 2


@dataclass(frozen=True)
class Rung:
    name: str
    lane: Callable[[], Lane] | None
    """None: not measured here."""


def measure_ladder(setup: Setup, say: Say) -> list[Row]:
    """Images/s of each rung, its gain over the one below, and the top's gain over the bottom."""
    rungs = _rungs(setup)
    lanes = []
    for rung in rungs:
        if rung.lane:
            say(f"preparing {rung.name}")
            lanes.append(rung.lane())  # what is not measured is at the top
    say("all rungs in turns")
    rates, laps = race(lanes, setup.budget(4))
    rows = [Row.of_rate(PART, rungs[0].name, rates[0], "float32, NCHW, Adam, DataLoader, scalars read every step")]
    gains = []
    for i in range(1, len(lanes)):
        gain, in_all = ratio(laps[i], laps[i - 1]), ratio(laps[i], laps[0])
        rows.append(Row.of_rate(PART, rungs[i].name, rates[i], f"{gain.median:.2f}x, {in_all.median:.2f}x in all"))
        gains.append(Row.of(PART, f"{GAIN}{rungs[i].name}", "x", gain))
    rows += [Row(PART, rung.name, "images/s", note="with --compile on") for rung in rungs[len(lanes) :]]
    return [*rows, *gains, Row.of(PART, "top over bottom", "x", ratio(laps[-1], laps[0]))]


def _rungs(setup: Setup) -> list[Rung]:
    small, large = min(SEED_BATCH, setup.batch_size // 2), setup.batch_size
    styles: list[tuple[str, dict[str, Any]]] = [
        (f"first version's style, batch {small}", {}),
        ("+ channels_last", {"channels_last": True}),
        (f"+ mixed precision ({setup.precision})", {"precision": setup.precision}),
        ("+ no reading of scalars", {"synchronise": False}),
    ]
    sgd = replace(setup, config=replace(setup.config, muon_lr=0.0))
    switched: dict[str, Any] = {}
    rungs = []
    for name, switch in styles:
        switched = switched | switch
        rungs.append(Rung(name, partial(_seed_lane, setup, small, dict(switched))))
    return [
        *rungs,
        Rung(
            "+ our train_step, fused SGD",
            lambda: _learner_lane(sgd, setup.torch_batches(small, WORKERS, normalised=True), True),
        ),
        Rung(
            f"+ batch {large}", lambda: _learner_lane(sgd, setup.torch_batches(large, WORKERS, normalised=True), True)
        ),
        Rung("+ DALI, uint8 to the model", lambda: _learner_lane(sgd, setup.dali(large, setup.side), False)),
        Rung("+ Muon, for accuracy", lambda: _learner_lane(setup, setup.dali(large, setup.side), False)),
        Rung(
            "+ torch.compile",
            (lambda: _learner_lane(setup, setup.dali(large, setup.side), False, True))
            if setup.machine.compiled
            else None,
        ),
    ]


def _seed_lane(setup: Setup, batch_size: int, options: dict[str, Any]) -> Lane:
    loop = SeedStyle(setup.config, setup.device, **options)
    return Lane(setup.torch_batches(batch_size, WORKERS, normalised=True), loop.train_step, setup.device)


def _learner_lane(setup: Setup, batches: Iterator[Batch], normalised: bool, compiled: bool = False) -> Lane:
    """Our train_step; `normalised` batches are float32 NCHW from the CPU, others uint8 and on the device already."""
    learner: Learner = setup.learner(compiled)
    if not normalised:
        return Lane(batches, learner.train_step, setup.device)
    take_normalised(learner.model)

    def step(images: Tensor, labels: Tensor) -> None:
        there = images.to(setup.device, memory_format=torch.channels_last, non_blocking=True)
        learner.train_step(there, labels.to(setup.device, non_blocking=True))

    return Lane(batches, step, setup.device)
