"""Images per second and memory over the batch size and over the modes of torch.compile, and which size to take.

    python -m bench sweep
    python -m bench sweep --batch-sizes 64 128 256 --width 32
    python -m bench sweep --batch-sizes 512 --compile-modes default reduce-overhead max-autotune     # on a CUDA GPU

Each size trains a fresh network on the synthetic batch by the real train_step. Sizes grow until they are done or
memory runs out; what was measured until then is kept. Modes pay where the host cannot launch kernels as fast as the
GPU runs them.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from tyro.conf import Suppress

from bench.core import chart
from bench.core.clock import Rate, measure
from bench.core.record import Row
from bench.core.session import Say, SpeedOptions, parse_speed, session
from bench.core.setup import Setup, prepare
from bench.speed.throughput import peak_memory, reset_peak_memory
from engine.config import setting
from ground.memory import out_of_memory
from ground.mistake import Mistake

GOOD_ENOUGH = 0.97  # of the best rate: below that a smaller batch trains slower


@dataclass(frozen=True, kw_only=True)
class SweepOptions(SpeedOptions):
    batch_size: Suppress[int] = 512
    batch_sizes: tuple[int, ...] = setting((), ge=2)
    """Sizes to try (default: doubling, 16 to 512 on a CPU, 64 to 16384 on CUDA)."""
    compile_modes: tuple[str, ...] = ()
    """Modes of torch.compile to try each size in (default: --compile-mode alone)."""


def main(arguments: Sequence[str]) -> None:
    options = parse_speed(SweepOptions, arguments, "sweep", __doc__)
    setup = prepare(replace(options, batch_size=2))  # the sizes themselves are checked below
    if options.compile_modes and not setup.machine.compiled:
        raise Mistake("--compile-modes is for what is compiled: add --compile on")
    low, high = (64, 16384) if setup.cuda else (16, 64 if options.quick else 512)
    doubling = [low << i for i in range((high // low).bit_length()) if low << i <= len(setup.split)]
    sizes = sorted(set(options.batch_sizes)) or doubling
    largest = max(sizes, default=0)
    if not 0 < largest <= len(setup.split):
        raise Mistake(f"--batch-sizes is {largest}: it must be 2 to {len(setup.split)}, the images to train on")
    modes: Sequence[Any] = options.compile_modes or (options.compile_mode,)
    # All made before any is measured: a mode that is none is refused at once.
    setups = {m: [setup.changed(batch_size=size, compile_mode=m) for size in sizes] for m in modes}
    memory = available_memory(setup.device)
    subject = options, setup.machine, setup.split.name
    draw = partial(chart.draw_curves, over="batch size", other_unit="GiB", other_title="peak memory, GiB")
    with session("sweep", ["sweep", *arguments], *subject, draw) as display:
        for mode, every in setups.items():
            part = mode if options.compile_modes else "sweep"
            for row in sweep(part, display.steps(every, sizes), measure_step, memory, display.saying(part)):
                display.rows.append(row)


def sweep(
    part: str,
    setups: Iterable[Setup],
    measure_one: Callable[[Setup], tuple[Rate, int, float]],
    available: int | None,
    say: Say,
) -> Iterator[Row]:
    """Rows of rate and memory for each batch size that fits, then the recommendation.

    Args:
        setups: of rising batch sizes.
        measure_one: as `measure_step`; raises MemoryError or torch's own when it does not fit.
        available: bytes the process may use; a size that would need more, by the growth so far, is not tried: a
            CPU's system kills what takes too much. None: the device says so itself.
    """
    rates: dict[int, float] = {}
    peaks: dict[int, int] = {}
    end = "all sizes were measured"
    for setup in setups:
        size = setup.batch_size
        say(f"batch {size}")
        if available is not None and expected_peak(peaks, size) > available:
            end = f"stopped before batch {size}: it would need more than the {available / 2**30:.1f} GiB there are"
            break
        try:
            rate, peaks[size], compiling = measure_one(setup)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            end = f"stopped at batch {size}: memory ran out"
            break
        rates[size] = rate.median
        yield Row.of_rate(part, f"batch {size}", rate, f"{compiling:.1f} s to compile" if compiling else "")
        yield Row(part, f"peak memory at batch {size}", "GiB", peaks[size] / 2**30)
    yield Row(part, "recommended batch size", "images", recommendation(rates), note=end)


def measure_step(setup: Setup) -> tuple[Rate, int, float]:
    """Rate and peak bytes of the real train_step on the synthetic batch, and seconds of compiling."""
    torch._dynamo.reset()
    reset_peak_memory(setup.device)
    start = perf_counter()
    learner = setup.learner()
    compiling = perf_counter() - start if setup.machine.compiled else 0.0
    rate = measure(setup.synthetic(setup.batch_size), learner.train_step, setup.device, setup.budget(2))
    return rate, peak_memory(setup.device), compiling


def recommendation(rates: dict[int, float]) -> int | None:
    """The smallest size within 3% of the best rate; None without any."""
    best = max(rates.values(), default=0.0)
    return next((size for size, rate in sorted(rates.items()) if rate >= GOOD_ENOUGH * best), None)


def expected_peak(peaks: dict[int, int], size: int) -> float:
    """Bytes at `size`, by the line through the last two sizes; 0 before there are two."""
    if len(peaks) < 2:
        return 0.0
    (size_a, peak_a), (size_b, peak_b) = list(peaks.items())[-2:]
    return peak_b + max(0, peak_b - peak_a) / (size_b - size_a) * (size - size_b)


def available_memory(device: torch.device) -> int | None:
    """Bytes that this process could come to hold, its own and what is left; None for a GPU."""
    if device.type == "cuda":
        return None
    said = Path("/proc/meminfo").read_text() + Path("/proc/self/status").read_text()
    kilobytes = sum(map(int, re.findall(r"^(?:MemAvailable|VmRSS):\s*(\d+) kB", said, re.M)))
    group = Path("/sys/fs/cgroup/memory.max")
    limit = group.read_text().strip() if group.exists() else "max"
    return min(1024 * kilobytes, int(limit)) if limit.isdigit() else 1024 * kilobytes
