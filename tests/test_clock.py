"""The clock against known times: virtual ones, and real sleeps."""

import time
from itertools import pairwise

import pytest
import torch

from bench.core.clock import Budget, Lane, Lap, Marks, Rate, Spread, measure, quartiles, race, ratio
from bench.core.record import Row
from tests.measured import CPU

BATCH = torch.zeros(10, 1), torch.zeros(10)


class VirtualTime:
    """A clock that only sleeping moves on."""

    now = 1000.0

    def sleep(self, seconds):
        self.now += seconds

    def batches(self, seconds, bunch=1):
        while True:
            self.sleep(seconds)
            yield from [BATCH] * bunch

    def step(self, *seconds):
        """It takes the first of these at first, and so on; the last from then on."""
        rest = list(seconds)
        return lambda images, labels: self.sleep(rest.pop(0) if len(rest) > 1 else rest[0])


@pytest.fixture
def virtual(monkeypatch):
    virtual_time = VirtualTime()
    monkeypatch.setattr("bench.core.clock.perf_counter", lambda: virtual_time.now)
    return virtual_time


@pytest.mark.parametrize(("fetch", "step"), [(0.012, 0.008), (0.001, 0.019), (0.018, 0.0), (0.0, 0.02), (3.0, 1.0)])
def test_the_clock_agrees_with_known_times(virtual, fetch, step):
    rate = measure(virtual.batches(fetch), virtual.step(step), CPU, Budget())
    assert rate.median == pytest.approx(10 / (fetch + step), rel=1e-6)
    assert rate.wait == pytest.approx(fetch / (fetch + step), abs=1e-6)
    assert rate.q1 == pytest.approx(rate.q3)
    assert rate.steady


def test_the_clock_agrees_with_real_sleeps():
    """A busy machine oversleeps, so the truth is what the sleepers took."""
    spent = [time.perf_counter()]

    def sleep(seconds):
        time.sleep(seconds)
        spent.append(time.perf_counter())

    lap = Lane((sleep(0.012) or BATCH for _ in range(20)), lambda *_: sleep(0.008), CPU).lap(20)
    fetch_and_step = [sum(b - a for a, b in list(pairwise(spent))[i::2]) for i in (0, 1)]
    assert lap.rate == pytest.approx(200 / sum(fetch_and_step), rel=0.03)
    assert lap.wait == pytest.approx(fetch_and_step[0], rel=0.05)


def test_the_warm_up_is_apart_and_where_it_never_becomes_steady_ends_and_is_told(virtual):
    rate = measure(virtual.batches(0.0), virtual.step(0.2, 0.1, 0.05, 0.01), CPU, Budget(seconds=0.2, laps=3))
    assert rate.median == pytest.approx(1000)  # none of the slow steps is in it
    step = virtual.step(*(0.004 * 1.3**i for i in range(50)))
    before = virtual.now
    _, steady = Lane(virtual.batches(0.0), step, CPU).warm_up(Budget(warm_up_seconds=0.2))
    assert not steady and virtual.now - before < 1
    row = Row.of_rate("p", "n", Rate(1.0, 1.0, 1.0, 0.0, steady), "note")
    assert "note" in row.note and "steady" in row.note


def test_the_budget_decides_the_steps_of_the_warm_up_and_of_a_lap(virtual):
    taken: list[int] = []
    Lane(virtual.batches(0.01), lambda *_: taken.append(1), CPU).warm_up(Budget(warm_up_steps=50))
    assert len(taken) >= 50
    _, (laps,) = race([Lane(virtual.batches(0.0), virtual.step(0.01), CPU)], Budget(seconds=1.0, laps=5))
    assert [round(lap.seconds, 6) for lap in laps] == [0.2] * 5
    # Batches that come in bunches are counted by the bunch.
    budget = Budget(seconds=1.0, laps=3, lap_steps=4)
    rate = measure(virtual.batches(0.4, bunch=4), virtual.step(0.0), CPU, budget)
    assert (rate.q1, rate.median, rate.q3) == pytest.approx((100, 100, 100))


def test_lanes_take_turns_lap_by_lap(virtual):
    order: list[str] = []
    lanes = [Lane(virtual.batches(0.03), lambda *_, name=name: order.append(name), CPU) for name in "ab"]
    rates, laps = race(lanes, Budget(seconds=0.01, laps=4, warm_up_seconds=0))
    assert order[-8:] == list("abababab")
    assert len(rates) == 2 and [len(done) for done in laps] == [4, 4]


def test_a_loader_that_ends_is_named():
    with pytest.raises(ValueError, match="ended after 3 of 5"):
        Lane([BATCH] * 3, lambda images, labels: None, CPU).lap(5)


def test_spreads_of_one_value_of_many_and_of_neighbouring_laps():
    assert quartiles([3.0]) == Spread(3.0, 3.0, 3.0)
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == Spread(3.0, 2.0, 4.0)
    faster_and_faster, twice = ([Lap(10, s / speed, 0.0) for s in (2.0, 1.0, 0.5)] for speed in (1, 2))
    assert ratio(twice, faster_and_faster) == Spread(2.0, 2.0, 2.0)


@pytest.mark.gpu
def test_cuda_events_see_the_devices_time_and_not_the_hosts():
    device = torch.device("cuda")
    a = torch.randn(8192, 8192, device=device)
    marks = Marks(device)
    marks.mark()
    for _ in range(20):
        a @ a
    marks.mark()
    start = time.perf_counter()
    (gap,) = marks.gaps()
    assert gap > 0.5 * (time.perf_counter() - start) > 0
