"""What training takes besides time on the clock: memory, compiling, the wait for the first step, and energy."""

import importlib
import importlib.util
import os
import re
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

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
ENERGY_SECONDS = 3.0  # of training; the driver renews its energy counter some ten times a second


def measure_resources(setup: Setup, say: Say) -> list[Row]:
    """Seconds to the first step and of compiling in it, peak memory of training, images per joule."""
    reset_peak_memory(setup.device)
    size, precision = setup.batch_size, setup.precision
    say("from nothing to the first step")
    start = perf_counter()
    learner = setup.cold_learner()
    compiled = perf_counter()
    if setup.machine.compiled:
        warm_up(learner, size)
    ready = perf_counter()
    compiling = ready - compiled if setup.machine.compiled else None
    loader = setup.dali(size, setup.side)
    images, labels = next(loader)
    data = perf_counter() - ready
    learner.train_step(images, labels)
    synchronise(setup.device)
    first = perf_counter() - start
    lane = Lane(loader, learner.train_step, setup.device)
    say("peak memory")
    warmed = lane.warm_up(setup.budget(0))
    peak = peak_memory(setup.device) / 2**30
    compiles = "forward, loss and backward" if setup.machine.compiled else "with --compile on"
    kind = "of the GPU by torch" if setup.cuda else "of the process, data set in both orientations included"
    rows = [
        Row(PART, "to the first batch", "s", data, note="building the pipeline"),
        Row(PART, "compiling", "s", compiling, note=compiles),
        Row(PART, "to the first step", "s", first, note="after imports, with the data set in memory"),
        Row(PART, f"peak memory, batch {size}, {precision}", "GiB", peak, note=kind),
    ]
    meter = energy_meter(setup.device)
    if not isinstance(meter, str):
        say("energy")
        steps = max(1, round(ENERGY_SECONDS / warmed.step_seconds))
        before = meter()
        lap = lane.lap(steps)
        joules = meter() - before
        if joules > 0:
            watts = f"{joules / lap.seconds:,.0f} W at {lap.rate:,.0f} images/s"
            return [*rows, Row(PART, "images per joule", "images/J", lap.images / joules, note=watts)]
        meter = "the driver's counter stands still"
    return [*rows, Row(PART, "images per joule", "images/J", note=meter)]


def energy_meter(device: torch.device) -> Callable[[], float] | str:
    """A function that reads the GPU's energy counter in joules, or why there is none."""
    if device.type != "cuda":
        return "NVIDIA GPUs only"
    if importlib.util.find_spec("pynvml") is None:
        return "needs the package nvidia-ml-py"
    nvml: Any = importlib.import_module("pynvml")
    try:
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except nvml.NVMLError as error:
        return f"the driver does not tell: {error}"
    return lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000  # it counts millijoules


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
    status = Path("/proc/self/status")
    if device.type == "cuda" or not status.exists():
        return process_peak(device)
    found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.M)
    return 1024 * int(found.group(1)) if found else peak_memory(device)
