"""Median and quartiles, which is how every measured number is told."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    median: float
    q1: float
    q3: float


def quartiles(values: Sequence[float]) -> Spread:
    """Median and quartiles of one value or more."""
    several = list(values) * 2 if len(values) == 1 else values  # before Python 3.13 it refuses one value
    q1, median, q3 = statistics.quantiles(several, n=4, method="inclusive")
    return Spread(median, q1, q3)
