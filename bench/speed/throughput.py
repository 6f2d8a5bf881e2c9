"""Images per second: what loaders deliver, what the model can eat, what both reach, what comes after.

And what training takes besides: memory, compiling, and the wait for the first step.
"""

import os
import re
from collections.abc import Iterable, Iterator
from itertools import chain, repeat
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from bench.core.clock import Batch, Lane, Marks, Rate, measure, race, ratio
from bench.core.record import Row
from bench.core.session import Say
from bench.core.setup import Setup
from bench.speed.ladder import for_ever, torch_loader
from bench.speed.photographs import measure_photographs
from bench.speed.profile import PHASES, in_phases
from engine.device import autocast, synchronise
from engine.device import peak_memory as process_peak
from engine.learner import predict_logits
from engine.warm_up import warm_up
from explain.cam import class_maps, heatmaps
from ground.memory import release_freed_memory
from ground.spread import quartiles
from pipeline.dali import evaluation_loader

COMPUTE_BOUND = 0.9  # of the synthetic batch's rate
BATCH = 512  # of the loaders by themselves
WORKERS = 2


def measure_data(setup: Setup, say: Say) -> list[Row]:
    """DALI over batches and resolutions, torch's DataLoader with its augmentation, the synthetic batch."""
    if setup.split.sizes is not None:
        return measure_photographs(setup, say)
    limit, where, quick = len(setup.split), "GPU" if setup.cuda else "CPU", setup.config.quick
    batch, side = min(BATCH, limit), setup.side
    sizes = {batch} if quick else {min(size, limit) for size in (256, batch, 1024)}
    sides = set() if quick else {16, 24} - {side}
    rows = []
    ours: dict[tuple[int, int], Rate] = {}
    for shape in [*((size, side) for size in sorted(sizes)), *((batch, other) for other in sorted(sides))]:
        name = "DALI on the {}, batch {}, {} px".format(where, *shape)
        say(name)
        ours[shape] = measure(setup.dali(*shape), _drop, setup.device, setup.budget(2, warm_up_steps=20))
        rows.append(Row.of_rate("data", name, ours[shape]))
    theirs: dict[int, Rate] = {}
    cpu = torch.device("cpu")  # its batches stay there, so the clock is the host's
    for workers in [WORKERS] if quick else sorted({0, WORKERS, 4, max(len(os.sched_getaffinity(0)), 4)}):
        name = f"torch DataLoader, {workers} workers, batch {batch}, {side} px"
        say(name)
        # Each worker loads two batches ahead, and all finish at about the same time.
        budget = setup.budget(2, warm_up_steps=1 + 2 * workers, lap_steps=2 * max(1, workers))
        loader = torch_loader(setup.split, setup.config, batch, workers)
        theirs[workers] = measure(for_ever(loader), _drop, cpu, budget)
        rows.append(Row.of_rate("data", name, theirs[workers], "on the CPU"))
    say("synthetic batch")
    rate = measure(setup.synthetic(batch), _drop, setup.device, setup.budget(0.5))
    rows.append(Row.of_rate("data", f"synthetic batch of {batch}, {side} px", rate, "one batch again and again"))
    name = f"DALI over torch DataLoader, {WORKERS} workers, batch {batch}, {side} px"
    return [*rows, Row("data", name, "x", ours[batch, side].median / theirs[WORKERS].median)]


def measure_compute(setup: Setup, say: Say) -> list[Row]:
    """The real train_step on the synthetic batch, and its phases: in a CUDA graph they would be one."""
    size = setup.batch_size
    name = f"synthetic batch of {size}, {setup.side} px, {setup.precision}"
    say(name)
    rate = measure(setup.synthetic(size), setup.learner().train_step, setup.device, setup.budget(5))
    say(", ".join(PHASES))
    images, labels = next(iter(setup.synthetic(size)))
    steps = 3 if setup.config.quick else 7
    marks = Marks(setup.device)
    train_step = in_phases(setup.cold_learner(cuda_graph=False), lambda name: marks.mark())
    for _ in range(steps + 2):  # of which two to warm up
        train_step(images, labels)
    # Three phases and the end of the step; what lies before the next one is not counted.
    count = len(PHASES) + 1
    milliseconds = [1000 * gap for gap in marks.gaps()[2 * count :]]
    spreads = [quartiles(milliseconds[i::count]) for i in range(len(PHASES))]
    whole = sum(spread.median for spread in spreads)
    return [Row.of_rate("compute", name, rate)] + [
        Row.of("compute", f"{phase} of a step", "ms", spread, f"{spread.median / whole:.0%} of a step")
        for phase, spread in zip(PHASES, spreads, strict=True)
    ]


def measure_end_to_end(setup: Setup, say: Say) -> list[Row]:
    """The real loop next to the same loop on the synthetic batch: the share of waiting and the verdict.

    Beside a GPU also the loop fed by DALI's graph on the CPU: the GPU's graph takes time from training.
    """
    size, side = setup.batch_size, setup.side
    say("real loop and synthetic batch in turns")
    learner = setup.learner()  # before DALI begins
    sources: dict[str, Iterator[Batch]] = {"DALI": setup.dali(size, side)}
    if setup.cuda:
        sources["DALI on the CPU, copied"] = _copied(setup.dali(size, side, torch.device("cpu")), setup.device)
    fed_by: list[Iterable[Batch]] = [setup.synthetic(size), *sources.values()]
    lanes = [Lane(batches, learner.train_step, setup.device) for batches in fed_by]
    (synthetic, *rates), (bare, *fed) = race(lanes, setup.budget(6))
    name = f"batch {size}, {side} px, {setup.precision}"
    rows = [Row.of_rate("end to end", f"synthetic batch and train_step, {name}", synthetic)]
    for source, rate, laps in zip(sources, rates, fed, strict=True):
        share = ratio(laps, bare)
        rows += [
            Row.of_rate("end to end", f"{source} and train_step, {name}", rate, verdict(share.median, rate.wait)),
            Row.of("end to end", f"{source} over synthetic", "x", share),
            Row("end to end", f"{source}: time spent waiting for data", "%", 100 * rate.wait),
        ]
    return rows


def verdict(of_synthetic: float, wait: float) -> str:
    """What limits the loop; `of_synthetic` is its rate over the synthetic batch's, `wait` 0..1."""
    share = f"{of_synthetic:.0%} of synthetic"
    if of_synthetic >= COMPUTE_BOUND:
        return f"compute-bound: {share}"
    if wait >= (1 - of_synthetic) / 2:
        return f"data-bound: {share}, waits for data {wait:.0%} of the time"
    return f"compute-bound, but loading takes the cores that training needs: {share}"


def measure_evaluation(setup: Setup, say: Say) -> list[Row]:
    """Evaluation, and heatmaps: layer4's ten a forward pass, layer3's by a backward pass."""
    size = min(1000 if setup.cuda else 250, len(setup.split))
    few = setup.split.take(slice(size), setup.split.name)
    model = setup.model().eval()
    loader = evaluation_loader(few, setup.side, setup.device, setup.machine.threads, size)

    def evaluate(images: Tensor, labels: Tensor) -> None:
        with torch.no_grad():
            predict_logits(model, images, setup.device, setup.precision)

    def map_last(images: Tensor, labels: Tensor) -> None:
        with torch.no_grad(), autocast(setup.device, setup.precision):
            class_maps(model.features(images), model.fc)

    def map_earlier(images: Tensor, labels: Tensor) -> None:
        with autocast(setup.device, setup.precision):
            heatmaps(model, images, labels, "layer3", batch_size=size)

    rows = []
    for step, name, unit in (
        (evaluate, f"evaluation, batch {size}", "images/s"),
        (map_last, "Grad-CAM at layer4, images with all ten maps", "images/s"),
        (map_earlier, "Grad-CAM at layer3, one map an image", "maps/s"),
    ):
        say(name)
        rate = measure(chain.from_iterable(repeat(loader)), step, setup.device, setup.budget(3))
        rows.append(Row.of_rate("evaluation", name, rate, unit=unit))
    return rows


def measure_resources(setup: Setup, say: Say) -> list[Row]:
    """Seconds to the first step and of compiling in it, and peak memory of training."""
    reset_peak_memory(setup.device)
    size, compiles = setup.batch_size, setup.machine.compiled
    say("from nothing to the first step")
    start = perf_counter()
    learner = setup.cold_learner()
    built = perf_counter()
    if compiles:
        warm_up(learner, size)
    ready = perf_counter()
    loader = setup.dali(size, setup.side)
    images, labels = next(loader)
    data = perf_counter() - ready
    learner.train_step(images, labels)
    synchronise(setup.device)
    first = perf_counter() - start
    say("peak memory")
    Lane(loader, learner.train_step, setup.device).warm_up(setup.budget(0))
    peak = peak_memory(setup.device) / 2**30
    what = "forward, loss and backward" if compiles else "with --compile on"
    kind = "of the GPU by torch" if setup.cuda else "of the process, data set in both orientations included"
    return [
        Row("resources", "to the first batch", "s", data, note="building the pipeline"),
        Row("resources", "compiling", "s", ready - built if compiles else None, note=what),
        Row("resources", "to the first step", "s", first, note="after imports, with the data set in memory"),
        Row("resources", f"peak memory, batch {size}, {setup.precision}", "GiB", peak, note=kind),
    ]


def reset_peak_memory(device: torch.device) -> None:
    """Start counting the peak anew, so that what was measured before does not count."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    elif os.access(clear := Path("/proc/self/clear_refs"), os.W_OK):
        release_freed_memory()
        clear.write_text("5")  # man proc_pid_clear_refs: resets the process's VmHWM


def peak_memory(device: torch.device) -> int:
    """Bytes since `reset_peak_memory`: allocated on the GPU, or resident of the process."""
    high_water = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    return process_peak(device) if device.type == "cuda" or not high_water else 1024 * int(high_water[1])


def _drop(images: Tensor, labels: Tensor) -> None:
    """The consumer that only takes."""


def _copied(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """From page-locked memory, so that the host does not wait for the copy."""
    for images, labels in batches:
        yield tuple(t.pin_memory().to(device, non_blocking=True) for t in (images, labels))  # type: ignore[misc]
