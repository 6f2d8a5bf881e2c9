"""The clock of every measurement: warm-up apart, start before the fetch, stop when the device is done, median of laps.

    rate = measure(loader, learner.train_step, device, Budget(seconds=5))
    print(rate.median, rate.wait, rate.steady)

On CUDA the times are those of events on the stream, so that nothing waits inside a lap and the share of data wait is
what the GPU itself waited; on a CPU they are the host's. No scalar is read from the device inside a lap.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter

import torch
from torch import Tensor

from engine.device import synchronise
from ground.spread import Spread, quartiles

Batch = tuple[Tensor, Tensor]
Step = Callable[[Tensor, Tensor], object]  # what is done with a batch, its images and labels
STEADY = 0.1  # warm-up ends when two laps in a row differ by less
WARM_UP_LAP_SECONDS = 0.02


@dataclass(frozen=True)
class Budget:
    """How long a measurement may take."""

    seconds: float = 5.0
    """All timed laps together; a lap is one step at least, so slow steps take longer."""
    laps: int = 7
    warm_up_seconds: float = 5.0
    """After its first step, which may compile, warm-up gives up becoming steady after this long."""
    warm_up_steps: int = 2
    """It takes so many steps at least."""
    lap_steps: int = 1
    """A lap has a multiple of so many steps: as many as come in one bunch."""


@dataclass(frozen=True)
class Lap:
    images: int
    seconds: float
    wait: float
    """Seconds from the end of a step to the arrival of the next batch, in sum."""

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.images / self.seconds


@dataclass(frozen=True)
class Rate(Spread):
    """Images per second over the laps."""

    wait: float
    """Share of the time, 0..1, spent waiting for data."""
    steady: bool
    """False: the time of a step still changed by more than a tenth when warm-up ended."""


class Marks:
    """Instants in the device's order of work: `mark` costs microseconds and waits for nothing."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._events: list[torch.cuda.Event] = []
        self._times: list[float] = []
        synchronise(device)

    def mark(self) -> None:
        if self._device.type == "cuda":
            self._events.append(torch.cuda.Event(enable_timing=True))
            self._events[-1].record()
        else:
            self._times.append(perf_counter())

    def gaps(self) -> list[float]:
        """Seconds from each mark to the next, once the device has reached the last."""
        synchronise(self._device)
        on_device = [a.elapsed_time(b) / 1000 for a, b in pairwise(self._events)]
        return on_device or [b - a for a, b in pairwise(self._times)]


class Lane:
    """Batches and what is done with each on `device`, a few steps at a time: several can take turns."""

    def __init__(self, batches: Iterable[Batch], step: Step, device: torch.device) -> None:
        self._source, self._step, self._device = iter(batches), step, device

    def lap(self, steps: int) -> Lap:
        """Time `steps` steps; raises ValueError where the batches come to an end."""
        images = 0
        marks = Marks(self._device)
        marks.mark()
        for step in range(steps):
            batch = next(self._source, None)
            if batch is None:
                raise ValueError(f"the batches ended after {step} of {steps}")
            marks.mark()
            self._step(*batch)
            marks.mark()
            images += len(batch[1])
        gaps = marks.gaps()
        return Lap(images, sum(gaps), sum(gaps[::2]))

    def warm_up(self, budget: Budget) -> tuple[float, bool]:
        """Run until two laps in a row agree, or the budget is spent; seconds a step, and do they agree."""
        per_step, count, steady = self.lap(1).seconds, 1, False
        end = perf_counter() + budget.warm_up_seconds
        while count < budget.warm_up_steps or not (steady or perf_counter() > end):
            steps = min(max(1, int(WARM_UP_LAP_SECONDS / max(per_step, 1e-9))), max(count, budget.warm_up_steps))
            steps = -(-steps // budget.lap_steps) * budget.lap_steps
            last = self.lap(steps).seconds / steps
            steady = abs(last / per_step - 1) < STEADY
            per_step = last
            count += steps
        return per_step, steady


def measure(batches: Iterable[Batch], step: Step, device: torch.device, budget: Budget) -> Rate:
    """Warm up, then time laps of equally many steps. Raises as `Lane.lap` does."""
    return race([Lane(batches, step, device)], budget)[0][0]


def race(lanes: Sequence[Lane], budget: Budget) -> tuple[list[Rate], list[list[Lap]]]:
    """Measure several lanes in turns, a lap each, so that what slows the machine for a while slows all of them.

    `budget` is for each lane. Returns the lanes' rates and their laps; laps of the same number ran next to each other.
    """
    warm_ups = [lane.warm_up(budget) for lane in lanes]
    bunch_seconds = budget.seconds / budget.laps / budget.lap_steps
    steps = [budget.lap_steps * max(1, round(bunch_seconds / max(seconds, 1e-9))) for seconds, _ in warm_ups]
    laps: list[list[Lap]] = [[] for _ in lanes]
    for _ in range(budget.laps):
        for lane, count, of_lane in zip(lanes, steps, laps, strict=True):
            of_lane.append(lane.lap(count))
    rates = []
    for (_, steady), of_lane in zip(warm_ups, laps, strict=True):
        wait = sum(lap.wait for lap in of_lane) / sum(lap.seconds for lap in of_lane)
        rates.append(Rate(**vars(quartiles([lap.rate for lap in of_lane])), wait=wait, steady=steady))
    return rates, laps


def ratio(over: Sequence[Lap], under: Sequence[Lap]) -> Spread:
    """Quotient of two lanes' rates, from the pairs of laps that ran next to each other."""
    return quartiles([a.rate / b.rate for a, b in zip(over, under, strict=True)])
