"""From the first version's style to ours, one change a rung: what each brings, also where it brings a loss.

The rungs run in turns, a lap each, so a slow minute of the machine slows all of them, and a gain is the median
quotient of laps that ran next to each other.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.core.clock import Batch, Lane, race, ratio
from bench.core.record import GAIN, Row
from bench.core.session import Say
from bench.core.setup import Setup
from bench.speed.first_version import FirstVersion, for_ever, take_normalised, torch_loader

PART = "ladder"
FIRST_BATCH = 64
WORKERS = 2
BOTTOM = "float32, NCHW, Adam, DataLoader, scalars read every step"


def measure_ladder(setup: Setup, say: Say) -> list[Row]:
    """Images/s of each rung, its gain over the one below, and the top's gain over the bottom."""
    lanes = {}
    for name, start in _rungs(setup).items():
        say(f"preparing {name}")
        lanes[name] = start()
    say("all rungs in turns")
    rates, laps = race(list(lanes.values()), setup.budget(4))
    rows, gains = [], []
    for i, (name, rate) in enumerate(zip(lanes, rates, strict=True)):
        gain, in_all = ratio(laps[i], laps[max(0, i - 1)]), ratio(laps[i], laps[0])
        note = f"{gain.median:.2f}x, {in_all.median:.2f}x in all"
        rows.append(Row.of_rate(PART, name, rate, note if i else BOTTOM))
        gains.append(Row.of(PART, f"{GAIN}{name}", "x", gain))
    if not setup.machine.compiled:
        rows.append(Row(PART, "+ torch.compile", "images/s", note="with --compile on"))
    return [*rows, *gains[1:], Row.of(PART, "top over bottom", "x", ratio(laps[-1], laps[0]))]


def _rungs(setup: Setup) -> dict[str, Callable[[], Lane]]:
    """Each rung by its name, from the bottom up: a function that starts it."""
    small, large, precision = min(FIRST_BATCH, setup.batch_size // 2), setup.batch_size, setup.precision
    sgd = setup.changed(muon_lr=0.0)
    first, fed_by_torch = partial(_first_lane, setup, small), partial(_lane_fed_by_torch, sgd)
    rungs: dict[str, Callable[[], Lane]] = {
        f"first version's style, batch {small}": first,
        "+ channels_last": partial(first, channels_last=True),
        f"+ mixed precision ({precision})": partial(first, channels_last=True, precision=precision),
        "+ no reading of scalars": partial(first, channels_last=True, precision=precision, synchronise=False),
        "+ our train_step, fused SGD": partial(fed_by_torch, small),
        f"+ batch {large}": partial(fed_by_torch, large),
        "+ DALI, uint8 to the model": partial(_our_lane, sgd, compiled=False, cuda_graph=False),
        "+ Muon, for accuracy": partial(_our_lane, setup, compiled=False, cuda_graph=False),
    }
    if setup.machine.compiled:
        rungs["+ torch.compile"] = partial(_our_lane, setup, cuda_graph=False)
    if setup.cuda:
        rungs["+ a step as one CUDA graph"] = partial(_our_lane, setup)
    return rungs


def _first_lane(setup: Setup, batch_size: int, **switches: Any) -> Lane:
    loop = FirstVersion(setup.config, setup.split.classes, setup.device, **switches)
    return Lane(_torch_batches(setup, batch_size), loop.train_step, setup.device)


def _lane_fed_by_torch(setup: Setup, batch_size: int) -> Lane:
    """Our train_step, on normalised batches that come in float32 and NCHW, on the CPU."""
    learner = setup.cold_learner(compiled=False, cuda_graph=False)
    take_normalised(learner.model)

    def step(images: Tensor, labels: Tensor) -> None:
        there = images.to(setup.device, memory_format=torch.channels_last, non_blocking=True)
        learner.train_step(there, labels.to(setup.device, non_blocking=True))

    return Lane(_torch_batches(setup, batch_size), step, setup.device)


def _torch_batches(setup: Setup, batch_size: int) -> Iterator[Batch]:
    return for_ever(torch_loader(setup.split, setup.config, batch_size, WORKERS, normalise=True))


def _our_lane(setup: Setup, **without: bool) -> Lane:
    learner = setup.cold_learner(**without) if without else setup.learner()
    return Lane(setup.dali(setup.batch_size, setup.side), learner.train_step, setup.device)
