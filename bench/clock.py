"""The clock of every measurement: it starts before the fetch, stops when the device is done, and reads no scalar."""

import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from time import perf_counter

import torch
from torch import Tensor

from engine import runtime

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Rate:
    """Images per second over several repeats."""

    median: float
    q1: float
    q3: float

    def __str__(self) -> str:
        return f"{self.median:,.0f} images/s (quartiles {self.q1:,.0f} to {self.q3:,.0f})"


def rate(
    batches: Iterable[Batch],
    step: Callable[[Tensor, Tensor], object],
    device: torch.device,
    warm_up: int,
    repeats: int,
    steps: int = 1,
) -> Rate:
    """Fetch batches and give each to `step`: `warm_up` untimed steps, then `repeats` times `steps` timed ones.

    Raises:
        ValueError: there are fewer batches than that.
    """
    source = iter(batches)
    _run(source, step, warm_up)
    rates = []
    for _ in range(repeats):
        runtime.synchronise(device)
        start = perf_counter()
        images = _run(source, step, steps)
        runtime.synchronise(device)
        rates.append(images / (perf_counter() - start))
    q1, median, q3 = statistics.quantiles(rates, n=4, method="inclusive")
    return Rate(median, q1, q3)


def _run(source: Iterator[Batch], step: Callable[[Tensor, Tensor], object], steps: int) -> int:
    images = 0
    taken = 0
    for batch in islice(source, steps):
        step(*batch)
        images += len(batch[1])
        taken += 1
    if taken < steps:
        raise ValueError(f"the data ended after {taken} of {steps} batches: use a smaller batch or fewer steps")
    return images
