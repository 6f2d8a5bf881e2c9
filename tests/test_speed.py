"""What measures speed: roofs, the first version's style, the ladder, the sweep, and all parts on tiny settings."""

import gc
import math
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from bench.core import record
from bench.core.clock import Lap, Rate
from bench.core.record import Row
from bench.speed import ladder, suite, sweep, throughput
from bench.speed.ladder import FirstVersion, for_ever, torch_loader
from bench.speed.throughput import peak_memory, reset_peak_memory
from engine.config import Config
from ground.mistake import Mistake
from ground.spread import Spread
from pipeline.synthetic import generated
from tests.measured import CPU, SMALL, TINY, recorded, silent, tiny


def test_the_roof_of_a_machine_whose_rate_is_known(monkeypatch):
    """2 TFLOP/s over 4 GFLOP an image are 500 images/s, of which 100 are a fifth."""
    monkeypatch.setattr(suite, "training_flops", lambda *_: 4_000_000_000)
    monkeypatch.setattr(suite, "matrix_rate", lambda *_: Spread(2.0, 1.9, 2.1))
    one = tiny()
    done = [Row("compute", "step", "images/s", 100.0), Row("ladder", "first", "images/s", 200.0)]
    rows = {row.name: row.value for row in suite.measure_roof(one, silent, done)}
    assert rows["FLOPs of a training image, 8 px"] == 4
    assert rows[f"arithmetic roof, {one.precision}"] == pytest.approx(500)
    assert rows[f"model FLOPs utilisation, {one.precision}"] == pytest.approx(20)
    absent = suite.measure_roof(one, silent, done[1:])[-1]
    assert absent.value is None and absent.note


@pytest.mark.parametrize(
    "switches", [{}, {"channels_last": True, "precision": "bf16"}, {"channels_last": True, "synchronise": False}]
)
def test_the_first_version_learns_with_every_switch(switches):
    split = generated(64)
    torch.manual_seed(0)
    loop = FirstVersion(tiny(), **switches)
    images = torch.from_numpy(split.images[:, ::4, ::4]).permute(0, 3, 1, 2) / 255 - 0.5
    sums = [0.0]
    for _ in range(12):
        loop.train_step(images, torch.from_numpy(split.labels))
        sums.append(float(loop.sums[0]))
    assert sums[-1] - sums[-2] < 0.7 * sums[1]


@pytest.mark.parametrize("normalise", [False, True])
def test_the_torch_loader_augments_as_asked(normalise):
    split = generated(64)
    images, labels = next(iter(torch_loader(split, Config(cutout=8, resolutions=(24,)), 16, 0, normalise)))
    assert images.shape == (16, 3, 24, 24) and labels.shape == (16,) and labels.dtype == torch.int64
    assert images.dtype == (torch.float32 if normalise else torch.uint8)
    fill = torch.zeros(3, 1, 1) if normalise else torch.tensor(split.mean_colour)[:, None, None]
    squares = (images == fill).all(1).flatten(1).sum(1)
    assert ((squares >= 36) & (squares < 60)).all()  # a quarter of the side: 6 x 6, and chance
    plain, _ = next(iter(torch_loader(split, Config(cutout=0), 16, 0, normalise)))
    assert ((plain == fill).all(1).flatten(1).sum(1) < 20).all()


def test_a_worker_does_not_collect_what_its_parent_dropped():
    class Dropped:
        def __init__(self):
            self.itself = self

        def __del__(self):
            collected.append(1)

    collected: list[int] = []
    leave_alone = torch_loader(generated(64), Config(), 16, 1).worker_init_fn
    assert leave_alone is not None
    Dropped()
    leave_alone(0)
    gc.collect()
    assert not collected
    gc.unfreeze()
    gc.collect()
    assert collected


def test_shared_memory_that_is_too_small_is_a_line():
    """As torch says it where /dev/shm has 1 MB."""
    said = "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"

    def batches(error):
        yield torch.zeros(1), torch.zeros(1)
        raise RuntimeError(error)

    endless = for_ever(batches(f"Caught RuntimeError in DataLoader worker process 0.\nRuntimeError: {said}"))
    next(endless)
    with pytest.raises(Mistake, match="/dev/shm is too small"):
        next(endless)
    with pytest.raises(RuntimeError, match="shapes"):
        list(for_ever(batches("shapes do not match")))


def test_the_constant_batch_keeps_the_loaders_promises():
    images, labels = next(tiny().synthetic(8))
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert images.shape == (8, 3, 8, 8) and images.dtype == torch.uint8
    assert labels.shape == (8,) and labels.dtype == torch.int64


def test_the_verdict_in_words():
    assert throughput.verdict(0.97, 0.01) == "compute-bound: 97% of synthetic"
    assert "data-bound" in throughput.verdict(0.5, 0.48)
    assert "cores" in throughput.verdict(0.7, 0.02)


def rate_of(median):
    return Rate(median, median, median, 0.0, True)


@pytest.mark.parametrize(
    ("error", "available"),
    [
        (MemoryError(), None),
        (torch.OutOfMemoryError("CUDA out of memory"), None),
        (RuntimeError("not reached"), 1700),  # what cannot fit on a CPU is not tried
        (RuntimeError("shapes do not match"), None),
    ],
)
def test_a_sweep_ends_cleanly_when_memory_runs_out_and_hides_no_other_error(error, available):
    def measure_one(setup):
        if setup.batch_size > 64:
            raise error
        return rate_of(100.0 * min(setup.batch_size, 32)), 1000 + 10 * setup.batch_size, 0.0

    setups = [tiny().changed(batch_size=size) for size in (16, 32, 64, 128)]
    swept = sweep.sweep("sweep", setups, measure_one, available, silent)
    if "shapes" in str(error):
        with pytest.raises(RuntimeError, match="shapes"):
            list(swept)
        return
    rows = list(swept)
    assert [row.name for row in rows if row.unit == "images/s"] == ["batch 16", "batch 32", "batch 64"]
    reason = "GiB there are" if available else "128: memory ran out"
    assert rows[-1].value == 32 and reason in rows[-1].note


def test_a_sweep_over_modes_keeps_what_is_done(tmp_path, monkeypatch):
    """Stopped in the second mode: the first one's curve is in the record already, under its own name."""

    def measure_one(setup):
        assert setup.machine.compiled
        if setup.config.compile_mode == "max-autotune" and setup.batch_size == 16:
            raise KeyboardInterrupt
        return rate_of(100.0 * setup.batch_size), 2**30, 12.0

    monkeypatch.setattr(sweep, "measure_step", measure_one)
    modes = ["--compile", "on", "--compile-modes", "default", "max-autotune"]
    with pytest.raises(KeyboardInterrupt):
        sweep.main(["--batch-sizes", "8", "16", *modes, *SMALL, "--out", str(tmp_path)])
    (path,) = tmp_path.glob("sweep_*.json")
    rows = [row for row in record.load(str(path)).rows if row.unit == "images/s"]
    rates = [(row.part, row.name, row.value) for row in rows]
    assert rates == [("default", "batch 8", 800), ("default", "batch 16", 1600), ("max-autotune", "batch 8", 800)]
    assert all(row.note == "12.0 s to compile" for row in rows)


def test_peak_memory_forgets_what_was_before():
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux's /proc/self/clear_refs")
    torch.ones(2**28, dtype=torch.uint8)
    reset_peak_memory(CPU)
    low = peak_memory(CPU)
    torch.ones(2**28, dtype=torch.uint8)
    assert peak_memory(CPU) - low == pytest.approx(2**28, rel=0.1)


def test_all_parts_in_one_process(tmp_path, capsys):
    suite.main([*TINY, "--out", str(tmp_path)])
    report, rows = recorded(capsys)
    assert sorted(map(str, tmp_path.iterdir())) == sorted(report["files"])
    assert all(row.value is None or (math.isfinite(row.value) and row.value >= 0) for row in rows)
    measured = Counter(row.part for row in rows if row.value is not None)
    assert list(measured) == ["resources", "data", "compute", "end to end", "ladder", "evaluation", "roof", "in all"]
    assert min(count for part, count in measured.items() if part != "in all") >= 3
    absent = [row for row in rows if row.value is None]  # without --compile
    assert {row.name for row in absent} == {"+ torch.compile", "compiling"} and all(row.note for row in absent)
    assert {"cpu", "cores", "torch", "dali", "precision", "commit", "date", "command", "python"} <= set(report["card"])


def test_the_ladder_shows_every_gain_also_a_loss(monkeypatch):
    seconds = [8.0, 4.0, 2.0, 2.5, 2.0, 1.6, 0.8, 1.0]
    drift = [1.0, 3.0, 1.5]  # of a machine that others use too

    def known(lanes, budget):
        laps = [[Lap(80, s * d, 0.0) for d in drift] for s in seconds]
        return [rate_of(80 / s) for s in seconds], laps

    monkeypatch.setattr(ladder, "race", known)
    one = tiny()
    rows = ladder.measure_ladder(one, silent)
    gains = [row.value for row in rows if row.name.startswith(record.GAIN)]
    assert gains == pytest.approx([a / b for a, b in pairwise(seconds)])
    (top,) = [row.value for row in rows if row.name == "top over bottom"]
    assert top == pytest.approx(8.0)
    assert [row.name for row in rows if row.unit == "images/s" and row.value is None] == ["+ torch.compile"]
    assert any("0.80x" in row.note for row in rows)  # the loss is said


def test_sweep_recommends_the_smallest_size_within_three_percent(tmp_path, capsys):
    sweep.main(["--batch-sizes", "8", "16", *SMALL, "--out", str(tmp_path)])
    _, (*rows, _) = recorded(capsys)
    names = ["batch 8", "peak memory at batch 8", "batch 16", "peak memory at batch 16"]
    assert [row.name for row in rows] == names and all(row.value for row in rows)
    assert sweep.recommendation({16: 50.0, 32: 98.0, 64: 100.0, 128: 99.0}) == 32
    assert sweep.recommendation({16: 96.9, 32: 100.0}) == 32
    assert sweep.recommendation({}) is None
