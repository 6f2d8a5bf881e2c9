"""bench/: the clock against known times, the counts against closed forms, and each command on tiny settings.

One process does it all, so that torch and DALI are imported once.
"""

import contextlib
import gc
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bench import __main__ as entry
from bench import gpu_check
from bench.core import chart, record, setup
from bench.core.clock import Budget, Lane, Lap, Marks, Rate, Spread, WarmUp, measure, quartiles, race, ratio
from bench.core.record import Result, Row
from bench.speed import compare, deterministic, ladder, loaders, modes, roofline, suite, sweep, throughput
from bench.speed.seed_style import SeedStyle
from bench.trace import profile, trace
from bench.trace.phases import Phases
from engine import cost, runtime
from engine.config import PRESETS, Config
from engine.cost import training_flops, training_traffic
from engine.learner import Learner
from engine.machine import Machine
from engine.model import ResNet
from pipeline.reference import reference_loader
from pipeline.synthetic import ConstantLoader, generated

CPU = torch.device("cpu")
TINY = ["--quick", "--generated", "--width", "8", "--resolution", "8", "--batch-size", "16", "--device", "cpu"]
TINY += ["--threads", "1"]


class VirtualTime:
    """A clock that only sleeping moves on."""

    def __init__(self):
        self.now = 1000.0

    def sleep(self, seconds):
        self.now += seconds

    def batches(self, seconds, images=10):
        batch = torch.zeros(images, 1), torch.zeros(images)
        while True:
            self.sleep(seconds)
            yield batch

    def step(self, seconds):
        return lambda images, labels: self.sleep(seconds)


@pytest.fixture
def virtual(monkeypatch):
    virtual_time = VirtualTime()
    monkeypatch.setattr("bench.core.clock.perf_counter", lambda: virtual_time.now)
    return virtual_time


def batches():
    return VirtualTime().batches(0.0)


# The clock


@pytest.mark.parametrize(("fetch", "step"), [(0.012, 0.008), (0.001, 0.019), (0.018, 0.0), (0.0, 0.02), (3.0, 1.0)])
def test_the_clock_agrees_with_known_times(virtual, fetch, step):
    rate = measure(virtual.batches(fetch), virtual.step(step), CPU, Budget())
    assert rate.median == pytest.approx(10 / (fetch + step), rel=1e-6)
    assert rate.waited == pytest.approx(fetch / (fetch + step), abs=1e-6)
    assert rate.q1 == pytest.approx(rate.q3)
    assert rate.warm_up.steady


@pytest.mark.parametrize(("fetch", "step"), [(0.012, 0.008), (0.002, 0.018)])
def test_the_clock_agrees_with_real_sleeps(fetch, step):
    """A busy machine oversleeps, so the truth is what the sleepers noted themselves."""
    fetched: list[float] = []
    stepped: list[float] = []

    def sleep(seconds, noted):
        start = time.perf_counter()
        time.sleep(seconds)
        noted.append(time.perf_counter() - start)

    def slow_batches():
        while True:
            sleep(fetch, fetched)
            yield torch.zeros(10, 1), torch.zeros(10)

    lane = Lane(slow_batches(), lambda images, labels: sleep(step, stepped), CPU)
    lap = lane.lap(20)
    truth = sum(fetched) + sum(stepped)
    assert lap.rate == pytest.approx(200 / truth, rel=0.03)
    assert lap.waited / lap.seconds == pytest.approx(sum(fetched) / truth, abs=0.05)


def test_the_first_step_and_the_warm_up_are_apart(virtual):
    durations = iter([0.2, 0.1, 0.05])

    def step(images, labels):
        virtual.sleep(next(durations, 0.01))

    rate = measure(virtual.batches(0.0), step, CPU, Budget(seconds=0.2, laps=3))
    assert rate.warm_up.first_seconds == pytest.approx(0.2)
    assert rate.warm_up.seconds >= 0.36
    assert rate.median == pytest.approx(1000)  # none of the slow steps is in it


def test_warm_up_that_never_becomes_steady_ends_and_is_told(virtual):
    seconds = [0.004]

    def step(images, labels):
        seconds[0] *= 1.3
        virtual.sleep(seconds[0])

    warm_up = Lane(virtual.batches(0.0), step, CPU).warm_up(Budget(warm_up_seconds=0.2))
    assert not warm_up.steady and warm_up.seconds < 1
    row = Row.of_rate("p", "n", Rate(1.0, 1.0, 1.0, 0.0, warm_up), "note")
    assert "note" in row.note and "steady" in row.note


def test_warm_up_takes_the_steps_it_must(virtual):
    taken = []
    lane = Lane(virtual.batches(0.01), lambda images, labels: taken.append(1), CPU)
    lane.warm_up(Budget(warm_up_steps=50))
    assert len(taken) >= 50


def test_the_budget_decides_the_steps_of_a_lap(virtual):
    taken = []

    def step(images, labels):
        taken.append(1)
        virtual.sleep(0.01)

    _, (laps,) = race([Lane(virtual.batches(0.0), step, CPU)], Budget(seconds=1.0, laps=5))
    assert [round(lap.seconds, 6) for lap in laps] == [0.2] * 5


def test_batches_that_come_in_bunches_are_counted_by_the_bunch(virtual):
    def bunches():
        while True:
            virtual.sleep(0.4)
            for _ in range(4):
                yield torch.zeros(10, 1), torch.zeros(10)

    rate = measure(bunches(), virtual.step(0.0), CPU, Budget(seconds=1.0, laps=3, lap_steps=4))
    assert (rate.q1, rate.median, rate.q3) == pytest.approx((100, 100, 100))


def test_lanes_take_turns_lap_by_lap():
    order: list[str] = []

    def note(name, images, labels):
        order.append(name)
        time.sleep(0.03)

    lanes = [Lane(batches(), partial(note, name), CPU) for name in "ab"]
    rates, laps = race(lanes, Budget(seconds=0.01, laps=4, warm_up_seconds=0))
    assert order[-8:] == list("abababab")
    assert len(rates) == 2 and [len(done) for done in laps] == [4, 4]


def test_a_loader_that_ends_is_named():
    lane = Lane([(torch.zeros(2), torch.zeros(2))] * 3, lambda images, labels: None, CPU)
    with pytest.raises(ValueError, match="ended after 3 of 5"):
        lane.lap(5)


def test_ratio_is_of_neighbouring_laps():
    slow_then_fast = [Lap(10, 2.0, 0.0), Lap(10, 1.0, 0.0), Lap(10, 0.5, 0.0)]
    twice = [Lap(10, 1.0, 0.0), Lap(10, 0.5, 0.0), Lap(10, 0.25, 0.0)]
    assert ratio(twice, slow_then_fast) == Spread(2.0, 2.0, 2.0)


def test_quartiles_of_one_and_of_many():
    assert quartiles([3.0]) == Spread(3.0, 3.0, 3.0)
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == Spread(3.0, 2.0, 4.0)


@pytest.mark.gpu
def test_cuda_events_see_the_devices_time_and_not_the_hosts():
    device = torch.device("cuda")
    a = torch.randn(8192, 8192, device=device)
    marks = Marks(device, 2)
    marks.mark()
    for _ in range(20):
        a @ a
    marks.mark()
    start = time.perf_counter()
    (gap,) = marks.gaps()
    assert gap > 0.5 * (time.perf_counter() - start) > 0


# Phases


def test_phases_are_those_of_the_real_step_and_change_nothing():
    def trained(wrapped):
        torch.manual_seed(0)
        model = ResNet(width=8, resolution=8).to(memory_format=torch.channels_last)
        learner = Learner(model, Config(width=8, resolutions=(8,)), 10, Machine(CPU))
        entered: list[str] = []
        step = Phases(learner, entered.append).train_step if wrapped else learner.train_step
        for images, labels in ConstantLoader(4, 8, CPU, 2):
            step(images, labels)
        return entered, model.state_dict()

    entered, weights = trained(True)
    assert entered == ["forward", "backward", "optimiser", ""] * 2
    assert all(torch.equal(weights[name], value) for name, value in trained(False)[1].items())


# Counts and roofs


def test_flops_are_the_counters_and_the_known_ones():
    model = ResNet()
    flops = training_flops(model, 32)
    assert flops == pytest.approx(3.33e9, rel=0.01)
    counter = FlopCounterMode(display=False)
    with counter:
        model.eval()(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).sum().backward()
    assert flops == counter.get_total_flops()


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_least_traffic_of_a_known_network(dtype, size):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 5, 1, bias=False), nn.Conv2d(5, 7, 1, bias=False)

        def forward(self, images):
            return self.b(self.a(images.float()).relu())

    traffic = training_traffic(Two(), 8, dtype)
    given, middle, end = (64 * channels * size for channels in (3, 5, 7))
    forward = given + middle + middle + end
    backward = (end + middle + middle) + (middle + given)  # each: output's gradient, input, input's gradient if wanted
    assert traffic.least == forward + backward
    assert traffic.eager > traffic.least


def test_a_view_moves_nothing_and_a_sum_all_three():
    a, b = torch.zeros(6, 4), torch.zeros(6, 4)
    counter = cost._ByteCounter()
    with counter:
        a.view(4, 6).t()
    assert counter.everything == 0
    with counter:
        a + b
    assert counter.everything == 3 * 6 * 4 * 4 and counter.products == 0


def test_traffic_grows_with_the_picture_and_halves_with_the_type():
    model = ResNet(width=8)
    small, large = (training_traffic(model, side, torch.float32) for side in (8, 16))
    half = training_traffic(model, 16, torch.bfloat16)
    assert large.least / small.least == pytest.approx(4, rel=0.05)
    assert half.least / large.least == pytest.approx(0.5, rel=0.05)


def test_roofs_are_measured_and_consistent():
    one = setup.prepare(setup.parse(setup.Settings, TINY, "bench", ""))
    rows = {row.name: row.value or 0.0 for row in roofline.measure_roof(one, lambda what: None, 100.0)}
    precision = one.precision
    flops, rate = rows["FLOPs of a training image, 8 px"], rows[f"matrix rate, {precision}"]
    roof = rows[f"arithmetic roof, {precision}"]
    assert roof == pytest.approx(rate * 1e12 / (flops * 1e9))
    assert rows[f"model FLOPs utilisation, {precision}"] == pytest.approx(100 * 100 / roof)
    absent = roofline.measure_roof(one, lambda what: None, None)[-1]
    assert absent.value is None and absent.note


# The first version's style, and the reference loader


def test_seed_style_learns_with_every_switch():
    split = generated(256)
    for switches in (
        {},
        {"channels_last": True, "precision": "bf16"},
        {"channels_last": True, "synchronise": False},
    ):
        torch.manual_seed(0)
        loop = SeedStyle(Config(width=8, resolutions=(8,)), CPU, **switches)
        images = torch.from_numpy(split.images[:64, ::4, ::4]).permute(0, 3, 1, 2) / 255 - 0.5
        labels = torch.from_numpy(split.labels[:64].astype(np.int64))
        losses = []
        for _ in range(12):
            before = loop.loss + float(loop.sums[0])
            loop.train_step(images, labels)
            losses.append(loop.loss + float(loop.sums[0]) - before)
        assert losses[-1] < 0.7 * losses[0]
        assert loop.seen == 12 * 64


@pytest.mark.parametrize("normalise", [None, ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))])
def test_the_reference_loader_augments_as_asked(normalise):
    split = generated(64)
    images, labels = next(iter(reference_loader(split, 16, 0, normalise, cutout=8, resolution=24)))
    assert images.shape == (16, 3, 24, 24) and labels.shape == (16,) and labels.dtype == torch.int64
    assert images.dtype == (torch.uint8 if normalise is None else torch.float32)
    fill = 125 if normalise is None else 0
    squares = (images == fill).all(1).flatten(1).sum(1)
    assert ((squares >= 36) & (squares < 60)).all()  # a quarter of the side: 6 x 6, and chance
    plain, _ = next(iter(reference_loader(split, 16, 0, normalise)))
    assert ((plain == fill).all(1).flatten(1).sum(1) < 20).all()


def test_a_worker_does_not_collect_what_its_parent_dropped():
    class Dropped:
        def __init__(self):
            self.itself = self

        def __del__(self):
            collected.append(1)

    collected: list[int] = []
    leave_alone = reference_loader(generated(64), 16, 1).worker_init_fn
    assert leave_alone is not None
    Dropped()
    leave_alone(0)
    gc.collect()
    assert not collected
    gc.unfreeze()
    gc.collect()
    assert collected


# Verdict, sweep


def test_the_verdict_in_words():
    assert throughput.verdict(0.97, 0.01) == "compute-bound: 97% of synthetic"
    assert "data-bound" in throughput.verdict(0.5, 0.48)
    assert "cores" in throughput.verdict(0.7, 0.02)


def rate_of(median):
    return Rate(median, median, median, 0.0, WarmUp(0.1, 0.2, 0.01, True))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_a_sweep_ends_cleanly_when_memory_runs_out(error):
    def measure_size(size):
        if size > 64:
            raise error
        return rate_of(100.0 * min(size, 32)), size * 2**20

    rows = sweep.sweep([16, 32, 64, 128], measure_size, None, lambda what: None, lambda: None)
    assert [row.name for row in rows if row.unit == "images/s"] == ["batch 16", "batch 32", "batch 64"]
    assert rows[-1].value == 32 and "128" in rows[-1].note and "memory" in rows[-1].note


def test_a_sweep_does_not_try_what_cannot_fit_on_a_cpu():
    tried = []

    def measure_size(size):
        tried.append(size)
        return rate_of(1.0), 1000 + 10 * size

    rows = sweep.sweep([16, 32, 64, 128], measure_size, 1700, lambda what: None, lambda: None)
    assert tried == [16, 32, 64] and "128" in rows[-1].note


def test_a_sweep_hides_no_other_error():
    def measure_size(size):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        sweep.sweep([16], measure_size, None, lambda what: None, lambda: None)


def test_available_memory_is_sane():
    available = sweep.available_memory(CPU)
    assert available is None or 2**28 < available < 2**46


def test_peak_memory_forgets_what_was_before():
    from bench.speed.resources import peak_memory, reset_peak_memory

    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux's /proc/self/clear_refs")
    torch.ones(2**28, dtype=torch.uint8)
    reset_peak_memory(CPU)
    low = peak_memory(CPU)
    torch.ones(2**28, dtype=torch.uint8)
    assert peak_memory(CPU) - low == pytest.approx(2**28, rel=0.1)


# Results and compare


def example(scale=1.0, noise=0.02, theme="bench"):
    values = {"a": 100.0, "b": 2000.0, "c": 0.5}
    around = (1.0, 1 - noise / 2, 1 + noise / 2)
    rows = [Row("data", name, "images/s", *(v * scale * a for a in around)) for name, v in values.items()]
    rows += [Row("roof", "single", "x", 3.0 * scale), Row("resources", "absent", "images/J")]
    card = {"command": "python -m bench", "date": "2026-01-01T00:00:00", "commit": "abc", "cpu": "A | B"}
    return Result(theme, card, {"width": 8}, rows)


def test_a_result_comes_back_as_it_was(tmp_path):
    record.save(example(), tmp_path / "r")
    assert record.load(str(tmp_path / "r.json")) == example()
    text = (tmp_path / "r.md").read_text()
    assert "not measured" in text and "python -m bench" in text
    rows = [line for line in text.splitlines() if line.startswith("| data")]
    assert len(rows) == 3 and all(line.count("|") == 6 for line in rows)


def test_compare_finds_itself_the_same_and_a_fifth_slower_different():
    assert {d.verdict for d in compare.compare(example(), example())} == {"no difference", "not measured"}
    slower = {d.name: d for d in compare.compare(example(), example(0.8))}
    assert all(slower[name].verdict == "less" and slower[name].ratio == pytest.approx(0.8) for name in "abc")
    assert slower["single"].verdict == "less"
    assert {d.verdict for d in compare.compare(example(0.8), example()) if d.a} == {"more"}


def test_compare_asks_for_more_than_the_noise():
    noisy = compare.compare(example(noise=0.2), example(0.8, noise=0.2))
    assert {d.verdict for d in noisy if d.part == "data"} == {"no difference"}
    assert compare.compare(example(), example(0.98))[0].verdict == "no difference"


def test_compare_judges_accuracies_and_gains_by_their_spread_alone():
    for unit, before, after, spread, said in (
        ("%", 90.0, 88.0, 0.1, "less"),
        ("%", 90.0, 89.9, 0.1, "no difference"),
        ("points", 1.0, -1.0, 0.1, "less"),
        ("points", -0.1, 0.1, 0.5, "no difference"),
        ("images/s", 90.0, 88.0, 0.1, "no difference"),
    ):
        a, b = (Row("part", "row", unit, value, value - spread, value + spread) for value in (before, after))
        assert compare.difference(a, b).verdict == said, (unit, before, after)


def test_no_two_bars_have_the_same_name(monkeypatch, tmp_path):
    """Those of one loader at two batch sizes, for instance."""
    drawn = []
    monkeypatch.setattr(chart.Figure, "savefig", lambda figure, *args, **named: drawn.append(figure))
    rows = [Row(f"batch {size}", "DALI, alone", "images/s", 1.0 * size, 0.9 * size, 1.1 * size) for size in (16, 32)]
    chart.draw_bench(Result("loaders", {}, {}, [*rows, Row("roof", "arithmetic", "images/s", 9.0)]), tmp_path / "x")
    labels = [label.get_text() for axes in drawn[0].axes for label in axes.get_yticklabels()]
    assert labels == ["batch 16: DALI, alone", "batch 32: DALI, alone", "arithmetic"]


def test_compare_names_what_only_one_has():
    a, b = example(), example()
    b.rows.pop(0)
    b.rows.append(Row("data", "new", "x", 1.0))
    verdicts = {d.name: d.verdict for d in compare.compare(a, b)}
    assert verdicts["a"] == "only in A" and verdicts["new"] == "only in B"


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"format": "cifar10-resnet measurement", "version": 1, "rows": [{"part": 1}]}', "null"],
)
def test_a_malformed_result_is_one_message(tmp_path, content):
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        record.load(str(path))


def test_a_result_with_a_broken_number_is_refused(tmp_path):
    record.save(example(), tmp_path / "r")
    path = tmp_path / "r.json"
    path.write_text(path.read_text().replace("2000.0", '"fast"'))
    with pytest.raises(ValueError, match="not a result"):
        record.load(str(path))


def test_commit_of_no_repository_is_unknown(tmp_path):
    assert record.commit(tmp_path) == "unknown"


def test_commit_tells_changes_but_not_results(tmp_path):
    def git(*command):
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        subprocess.run(["git", *who, *command], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / "x").write_text("1")
    git("add", "x")
    git("commit", "-m", "x")
    (tmp_path / "docs" / "results").mkdir(parents=True)
    (tmp_path / "docs" / "results" / "new.json").write_text("{}")
    assert re.fullmatch("[0-9a-f]{12}", record.commit(tmp_path))
    (tmp_path / "x").write_text("2")
    assert record.commit(tmp_path).endswith(" and changes")


# The trace


def event(cat, name, ts, dur, tid=1, **args):
    return {"ph": "X", "cat": cat, "name": name, "pid": 1, "tid": tid, "ts": ts, "dur": dur, "args": args}


def test_the_split_of_a_known_cpu_trace():
    events = [
        event("user_annotation", "ProfilerStep#2", 1000, 1000),
        event("user_annotation", "data", 1000, 100),
        event("cpu_op", "aten::copy_", 1010, 50),  # the loader's own: part of the wait
        event("user_annotation", "forward", 1100, 400),
        event("cpu_op", "aten::convolution", 1110, 200),
        event("cpu_op", "aten::empty", 1120, 20),  # of the convolution
        event("cpu_op", "aten::copy_", 1150, 30),
        event("cpu_op", "aten::batch_norm", 1320, 100),
        event("cpu_op", "aten::relu_", 1430, 40),
        event("user_annotation", "optimiser", 1600, 200),
        event("cpu_op", "aten::_fused_sgd_", 1610, 150),
        event("cpu_op", "aten::convolution", 1200, 500, tid=2),  # another thread's
        event("cpu_op", "aten::convolution", 3000, 500),  # after the step
    ]
    found = trace.analyse({"traceEvents": events}, cuda=False)
    split = {name: round(seconds * 1e6) for name, seconds in found.split.items()}
    assert split == {
        "convolution": 170,
        "norm": 100,
        "elementwise": 40,
        "optimiser": 200,
        "copies": 30,
        "data wait": 100,
        "idle": 360,
    }
    assert sum(split.values()) == 1000 == round(found.seconds * 1e6)
    assert {name: round(s * 1e6) for name, s in found.ranges.items()} == {
        "data": 100, "forward": 400, "backward": 0, "optimiser": 200,
    }  # fmt: skip
    assert found.operators[0][0] == "aten::convolution" and found.operators[0][2] == 1
    assert found.operators[0][1] == pytest.approx(150e-6)


def test_the_split_of_a_known_cuda_trace():
    events = [
        event("user_annotation", "ProfilerStep#2", 0, 1000),
        event("user_annotation", "data", 0, 100),
        event("user_annotation", "optimiser", 300, 50),
        event("cpu_op", "aten::cudnn_convolution", 110, 10, **{"External id": 7}),
        event("cpu_op", "ConvolutionBackward0", 200, 10, tid=2, **{"External id": 8}),
        event("cuda_runtime", "cudaLaunchKernel", 112, 2, correlation=70),
        event("cuda_runtime", "cudaLaunchKernel", 202, 2, tid=2, correlation=80),
        event("cuda_runtime", "cuLaunchKernel", 250, 2, correlation=90),
        event("cuda_runtime", "cudaLaunchKernel", 310, 2, correlation=95),
        event("cuda_runtime", "cudaMemcpyAsync", 360, 2, correlation=96),
        event("kernel", "sm90_xmma_gemm_bf16", 150, 100, tid=7, **{"External id": 7, "correlation": 70}),
        event("kernel", "cutlass_tensorop", 250, 200, tid=7, **{"External id": 8, "correlation": 80}),
        event("kernel", "triton_red_fused__native_batch_norm_legit_3", 450, 50, tid=7, correlation=90),
        event("kernel", "triton_poi_fused_add_relu_4", 500, 50, tid=7, correlation=91),
        event("kernel", "void at::native::elementwise_kernel<x>", 550, 100, tid=7, correlation=95),
        event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 650, 50, tid=7, correlation=96),
        event("kernel", "void dali::kernels::PasteKernel", 0, 80, tid=9, correlation=5),
        event("kernel", "void cudnn::ops::nchwToNhwcKernel<x>", 350, 0, tid=7, correlation=97),
        event("kernel", "void cudnn::ops::nchwToNhwcKernel<x>", 360, 0, tid=7, correlation=98),
    ]
    found = trace.analyse({"traceEvents": events}, cuda=True)
    split = {name: round(seconds * 1e6) for name, seconds in found.split.items()}
    assert split == {
        "convolution": 300,
        "norm": 50,
        "elementwise": 50,
        "optimiser": 100,
        "copies": 50,
        "loader's kernels": 80,
        "data wait": 100,
        "idle": 350,
    }
    assert found.operators[0][0] == "cutlass_tensorop"
    *_, layouts = profile.rows(found, 2, cuda=True)
    assert (layouts.part, layouts.value) == ("layout", 1.0)
    assert profile.rows(found, 2, cuda=False)[-1].value is None


def test_a_trace_without_steps_is_refused():
    with pytest.raises(ValueError, match="no training step"):
        trace.analyse({"traceEvents": []}, cuda=False)


def test_gaps_of_overlapping_spans():
    assert trace._gaps([(5, 6), (1, 3), (2, 4)], 0, 10) == [(0, 1), (4, 5), (6, 10)]
    assert trace._gaps([(-5, 20)], 0, 10) == []


# The commands


def stdout_of(command, arguments):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        command(arguments)
    return out.getvalue()


def last_line(capsys):
    out = capsys.readouterr().out
    return json.loads(out.splitlines()[-1]), out


@pytest.fixture(scope="module")
def every_part(tmp_path_factory):
    """(folder, stdout) of one run of all parts; measured once for all tests of them."""
    folder = tmp_path_factory.mktemp("bench")
    return folder, stdout_of(suite.main, [*TINY, "--out", str(folder)])


def test_all_parts_in_one_process(every_part):
    folder, out = every_part
    report = json.loads(out.splitlines()[-1])
    (path,) = folder.glob("bench_*.json")
    assert record.load(str(path)).rows == [Row(**row) for row in report["rows"]]
    assert sorted(file.suffix for file in folder.iterdir()) == [".json", ".md", ".png"]
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    by_part: dict[str, list[Row]] = {}
    for row in record.load(str(path)).rows:
        by_part.setdefault(row.part, []).append(row)
        assert row.value is None or (math.isfinite(row.value) and row.value >= 0)
    expected = ["resources", "data", "compute", "end to end", "ladder", "deterministic", "evaluation", "roof"]
    assert [part for part in by_part if part != "in all"] == expected
    assert all(sum(row.value is not None for row in by_part[part]) >= 3 for part in expected if part != "deterministic")
    # On a CPU, without --compile and without NVIDIA's energy counter.
    absent = {row.name for rows in by_part.values() for row in rows if row.value is None}
    assert absent == {"+ torch.compile", "compiling", "images per joule", deterministic.NAME}
    assert all(row.note for rows in by_part.values() for row in rows if row.value is None)
    assert {"cpu", "cores", "torch", "dali", "precision", "commit", "date", "command", "python"} <= set(report["card"])


def test_the_cost_of_deterministic_is_of_two_processes_that_differ_in_it_alone(monkeypatch):
    one = setup.prepare(setup.parse(setup.Settings, TINY, "bench", ""))
    cuda = replace(one, device=torch.device("cuda", 0), precision="bf16", compiled=True)
    asked = []

    def answer(words, limit):
        asked.append(words)
        rows = [
            Row("compute", "forward of a step", "ms", 1.0),
            Row("compute", "synthetic", "images/s", 50.0 * len(asked)),
        ]
        return json.loads(record.summary_line(Result("bench", {}, {}, rows)))

    monkeypatch.setattr(deterministic, "reported", answer)
    *rates, cost = deterministic.measure_deterministic(cuda, lambda what: None)
    assert [row.value for row in rates] == [50.0, 100.0] and (cost.name, cost.value) == (deterministic.NAME, 2.0)
    without, with_it = asked
    assert set(with_it) - set(without) >= {"--deterministic"} and "--deterministic" not in without
    settings = setup.parse(suite.Options, with_it[2:], "bench", "")
    assert (settings.width, settings.batch_size, settings.resolution) == (8, 16, 8)
    assert settings.deterministic and settings.compile == "on" and settings.quick and settings.generated
    assert (settings.only, settings.device, settings.precision) == ("compute", "cuda", "bf16")


def test_the_report_of_another_process():
    script = "print('a table'); print('{\"rows\": [1]}'); print({'not': 'json'})"
    assert record.reported(["-S", "-c", script], 60) == {"rows": [1]}
    for script, said in (
        ("import sys; sys.exit('a\\nbench, rank 1: a hole\\nb')", "exit code 1: bench, rank 1: a hole"),
        ("import sys; sys.exit('a\\nb')", "exit code 1: b"),
        ("print('no report')", "exit code 0: it said nothing"),
        ("import subprocess, time; subprocess.Popen(['sleep', '60']); time.sleep(60)", "did not end within 0 s"),
    ):
        with pytest.raises(ValueError, match=said):
            record.reported(["-S", "-c", script], 0.5 if "sleep" in script else 60)


def test_modes_trains_in_each_mode_afresh(monkeypatch):
    """On CUDA; here the compiler is one that only takes the mode down."""
    one = setup.prepare(setup.parse(setup.Settings, TINY, "bench", ""))
    on_cpu = [row for mode in modes.modes() for row in modes.measure_mode(one, mode, lambda what: None)]
    assert len(on_cpu) == 2 * 4 and all(row.value is None and "CUDA" in row.note for row in on_cpu)
    asked = []

    def take_down(function, **how):
        asked.append(how)
        return function

    monkeypatch.setattr(torch, "compile", take_down)
    monkeypatch.setattr(setup.Setup, "cuda", True)
    compiled = replace(one, compiled=True)
    rows = [row for mode in modes.modes() for row in modes.measure_mode(compiled, mode, lambda what: None)]
    assert [how["mode"] for how in asked] == list(modes.modes())
    assert all(how["fullgraph"] and not how["dynamic"] and how["backend"] == "inductor" for how in asked)
    assert all(row.value for row in rows) and len(rows) == 8


def test_the_ladder_shows_every_gain_also_a_loss(monkeypatch):
    seconds = [8.0, 4.0, 2.0, 2.5, 2.0, 1.6, 0.8, 1.0]
    drift = [1.0, 3.0, 1.5]  # of a machine that others use too

    def known(lanes, budget):
        laps = [[Lap(80, s * d, 0.0) for d in drift] for s in seconds]
        return [rate_of(80 / s) for s in seconds], laps

    monkeypatch.setattr(ladder, "race", known)
    one = setup.prepare(setup.parse(setup.Settings, TINY, "bench", ""))
    rows = ladder.measure_ladder(one, lambda what: None)
    gains = [row.value for row in rows if row.name.startswith(record.GAIN)]
    assert gains == pytest.approx([a / b for a, b in pairwise(seconds)])
    (top,) = [row.value for row in rows if row.name == "top over bottom"]
    assert top == pytest.approx(8.0)
    assert [row.name for row in rows if row.unit == "images/s" and row.value is None] == ["+ torch.compile"]
    assert any("0.80x" in row.note for row in rows)  # the loss is said


def test_only_what_is_asked_for_is_measured(tmp_path, capsys):
    suite.main(["--only", "roof", *TINY, "--out", str(tmp_path)])
    report, _ = last_line(capsys)
    assert {row["part"] for row in report["rows"]} == {"roof", "in all"}


def test_sweep_draws_and_recommends(tmp_path, capsys):
    flags = [flag for flag in TINY if flag not in ("--batch-size", "16")]
    sweep.main(["--batch-sizes", "8", "16", *flags, "--out", str(tmp_path)])
    report, _ = last_line(capsys)
    assert report["rows"][-1]["value"] in (8, 16)
    assert len(list(tmp_path.glob("sweep_*.png"))) == 1


def test_loaders_feed_the_training(tmp_path, capsys):
    flags = [flag for flag in TINY if flag not in ("--batch-size", "16")]
    loaders.main(["--batch-sizes", "16", *flags, "--out", str(tmp_path)])
    report, _ = last_line(capsys)
    assert [row["part"] for row in report["rows"]] == ["batch 16"] * 3
    assert "of synthetic" in report["rows"][-1]["note"]


def test_compare_of_files(tmp_path, capsys):
    record.save(example(), tmp_path / "a")
    record.save(example(0.8), tmp_path / "b")
    a, b = (str(tmp_path / f"{name}.json") for name in "ab")
    compare.main([a, a])
    report, out = last_line(capsys)
    assert report["differences"] == 0 and "no difference" in out
    compare.main([a, b])
    report, _ = last_line(capsys)
    assert report["differences"] == 4


@pytest.mark.parametrize(
    ("command", "arguments", "said"),
    [
        (suite.main, ["--only", "data,speed"], "'speed' is unknown"),
        (suite.main, ["--batch-size", "0"], "--batch-size is 0"),
        (suite.main, ["--batch-size", "60000", "--generated"], "--batch-size is 60000"),
        (sweep.main, ["--batch-sizes", "64", "60000", "--generated"], "--batch-size is 60000"),
        (loaders.main, ["--batch-sizes", "64", "0", "--generated"], "--batch-size is 0"),
        (suite.main, ["--resolution", "4"], "--resolutions is"),
        (suite.main, ["--generated", "--out", "/proc/none"], "/proc/none"),
        (sweep.main, ["--batch-size", "8"], "--batch-sizes"),
        (sweep.main, ["--batch-sizes", "0", "8"], "--batch-size is 0"),
        (profile.main, ["--steps", "0"], "--steps is 0"),
        (compare.main, ["only-one.json"], "two results"),
        (compare.main, ["missing-a.json", "missing-b.json"], "missing-a.json"),
        (gpu_check.main, ["--device", "cpu", "--only", "everything"], "'everything' is unknown"),
        (gpu_check.main, ["--patience", "0", "--device", "cpu"], "--patience"),
    ],
)
def test_bad_input_is_one_message(command, arguments, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    with pytest.raises(SystemExit) as exit:
        runtime.run(command, "bench")
    assert exit.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bench: ") and said in line


def test_a_driver_that_is_too_old_stops_what_would_take_the_gpu(monkeypatch):
    asked: list[str] = []
    monkeypatch.setattr(entry.preflight, "check_driver", asked.append)
    monkeypatch.setattr(suite, "main", lambda arguments: None)
    monkeypatch.setattr(entry, "COMMANDS", dict.fromkeys(("sweep", "compare"), lambda arguments: None))
    for arguments in ([], ["--only", "data"], ["sweep", "--device", "cpu"], ["--device=cpu"], ["compare", "a", "b"]):
        entry.main(arguments)
    assert asked == ["auto", "auto", "cpu", "cpu"]


def test_results_of_two_kinds_are_not_compared(tmp_path):
    for theme in ("bench", "sweep"):
        record.save(example(theme=theme), tmp_path / theme)
    with pytest.raises(ValueError, match="of a kind"):
        compare.main([str(tmp_path / "bench.json"), str(tmp_path / "sweep.json")])


# The GPU check


def part(*scripts, limit=20.0):
    return gpu_check.Part(tuple((sys.executable, "-S", "-c", script) for script in scripts), limit)


def test_a_part_that_fails_or_hangs_loses_nothing(tmp_path):
    chosen = {
        "good": part('print(\'hello\')\nprint(\'{"accuracy": 0.5, "name": "x"}\')'),
        "bad": part("print('{\"first\": 1.0}')", "raise SystemExit(3)", "print('never')"),
        "hangs": part("import subprocess, time; subprocess.Popen(['sleep', '60']); time.sleep(60)", limit=0.5),
        "last": part("import os; print('{\"cache\": \"' + os.environ['TORCHINDUCTOR_CACHE_DIR'] + '\"}')"),
    }
    card = {"command": "c", "date": "d", "cpu": "some"}
    start = time.perf_counter()
    outcomes = gpu_check.run_parts(chosen, tmp_path, card)
    assert time.perf_counter() - start < 15
    assert {name: outcome.passed for name, outcome in outcomes.items()} == {
        "good": True, "bad": False, "hangs": False, "last": True,
    }  # fmt: skip
    assert outcomes["good"].reports == [{"accuracy": 0.5, "name": "x"}]
    assert outcomes["bad"].said == "failed with exit code 3" and "never" not in (tmp_path / "bad.log").read_text()
    assert outcomes["bad"].reports == [{"first": 1.0}]
    assert "limit" in outcomes["hangs"].said
    assert "cache" in outcomes["last"].reports[0]
    text = (tmp_path / "summary.md").read_text()
    assert "| accuracy | 0.5 |" in text and "failed with exit code 3" in text and "stopped at its limit" in text


def test_the_summary_is_written_after_each_part(tmp_path):
    check = f"assert 'not measured yet' in open({str(tmp_path / 'summary.md')!r}).read()"
    outcomes = gpu_check.run_parts({"a": part("pass"), "b": part(check)}, tmp_path, {"command": "c", "date": "d"})
    assert outcomes["b"].passed


def test_without_a_gpu_the_check_says_so(tmp_path, monkeypatch, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setattr(sys, "argv", ["bench", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as exit:
        runtime.run(gpu_check.main, "bench")
    assert exit.value.code == 2 and "no usable NVIDIA GPU" in capsys.readouterr().err


def test_every_command_of_the_check_exists_and_its_limits_fit_14_minutes(tmp_path):
    every = gpu_check.parts(tmp_path, "cuda", quick=False)
    assert list(every) == ["tests", "full", "dali", "bench", "profile"]
    assert sum(one.limit for one in every.values()) <= 14 * 60
    for one in every.values():
        for python, *command in one.commands:
            assert python == sys.executable
            assert command[0] == "-m" or (record.ROOT / command[0]).exists()
    assert "full" in every["full"].commands[0] and PRESETS["full"].epochs == 20


@pytest.mark.slow
def test_the_whole_check_on_a_cpu(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "bench", "gpu-check", "--device", "cpu", "--quick", "--out", str(tmp_path)],
        cwd=record.ROOT, capture_output=True, text=True, timeout=540,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert all(outcome["said"] == "passed" for outcome in report["parts"].values())
    text = (tmp_path / "summary.md").read_text()
    assert "DALI graph on the CPU" in text and "test_accuracy" in text and "top over bottom" in text


# The profile, and TensorBoard


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("profile")
    flags = [*TINY, "--steps", "2", "--out", str(folder)]
    return folder, json.loads(stdout_of(profile.main, flags).splitlines()[-1])


def test_the_profile_splits_the_whole_time(profiled):
    _, report = profiled
    split = {row["name"]: row["value"] for row in report["rows"] if row["part"] == "split"}
    assert sum(split.values()) == pytest.approx(100, abs=1)
    assert all(split[name] > 0 for name in ("convolution", "norm", "elementwise", "optimiser", "copies", "data wait"))
    host = {row["name"]: row["value"] for row in report["rows"] if row["part"] == "host"}
    assert list(host) == ["data", "forward", "backward", "optimiser"] and all(value > 0 for value in host.values())
    assert any("convolution" in row["name"] for row in report["rows"] if row["part"] == "operators")
    assert Path(report["trace"]).exists() and "--logdir" in report["tensorboard"]


def test_tensorboard_shows_the_profile(profiled):
    import shlex
    import urllib.request

    _, report = profiled
    command = [*shlex.split(report["tensorboard"]), "--port", "0"]
    server = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert server.stderr is not None
        address = next(match for line in server.stderr if (match := re.search(r"http://\S+?:\d+/", line)))

        def get(view):
            url = f"{address.group()}data/plugin/pytorch_profiler/{view}"
            with urllib.request.urlopen(url, timeout=30) as answer:
                return answer.read()

        deadline = time.monotonic() + 30
        while (runs := json.loads(get("runs"))) and (runs["loading"] or not runs["runs"]):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        (run,) = runs["runs"]
        assert {"Overview", "Operator", "Trace", "Memory"} <= set(json.loads(get(f"views?run={run}")))
        query = f"?run={run}&worker=train&span=1"
        overview = json.loads(get(f"overview{query}&view=Overview"))
        columns = [column.get("name") for column in overview["steps"]["columns"]]
        waits = [row[columns.index("DataLoader")] for row in overview["steps"]["rows"]]
        assert len(waits) == 2 and all(wait > 0 for wait in waits)
        operators = json.loads(get(f"operation{query}&view=Operator&group_by=Operation"))
        assert any("convolution" in row[0] for row in operators["host_total_time"]["rows"])
        assert len(get(f"trace{query}")) > 10_000
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # the plugin's own processes too
        server.wait()
