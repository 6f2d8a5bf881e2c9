"""What training takes besides time on the clock: memory, compiling, and the wait for the first step."""

import os
import re
from pathlib import Path
from time import perf_counter

import torch

from bench.core.clock import Lane
from bench.core.record import Row
from bench.core.session import Say
from bench.core.setup import Setup
from engine.device import peak_memory as process_peak
from engine.device import synchronise
from engine.warm_up import warm_up
from ground.memory import release_freed_memory

PART = "resources"


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
        Row(PART, "to the first batch", "s", data, note="building the pipeline"),
        Row(PART, "compiling", "s", ready - built if compiles else None, note=what),
        Row(PART, "to the first step", "s", first, note="after imports, with the data set in memory"),
        Row(PART, f"peak memory, batch {size}, {setup.precision}", "GiB", peak, note=kind),
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
