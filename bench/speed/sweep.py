"""Images per second and memory over the batch size, and which size to take.

    python -m bench sweep
    python -m bench sweep --batch-sizes 64 128 256 --width 32

Each size trains a fresh network on the synthetic batch by the real train_step. Sizes grow until they are done or
memory runs out; what was measured until then is kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bench.core import chart, record
from bench.core.clock import Rate, measure
from bench.core.record import Result, Row
from bench.core.setup import Say, Settings, Setup, parse, prepare
from bench.speed.resources import peak_memory, reset_peak_memory
from bench.speed.suite import finish, settings_of, stdout_console, steps_shown
from engine import runtime

PART = "sweep"
GOOD_ENOUGH = 0.97  # of the best rate: below that a smaller batch trains slower
Measure = Callable[[int], tuple[Rate, int]]


@dataclass(frozen=True, kw_only=True)
class Options(Settings):
    batch_sizes: tuple[int, ...] = ()
    """Sizes to try (default: doubling, 16 to 512 on a CPU, 64 to 16384 on CUDA)."""


def main(arguments: Sequence[str]) -> None:
    options = parse(Options, arguments, "python -m bench sweep", (__doc__ or "").split("\n\n")[0])
    if options.batch_size is not None:
        raise ValueError("--batch-size is for one size: sweep takes --batch-sizes 64 128 256")
    sizes = sorted(set(options.batch_sizes))
    setup = prepare(replace(options, batch_size=min(sizes, default=None)))
    if not sizes:
        low, high = (64, 16384) if setup.cuda else (16, 64 if setup.quick else 512)
        sizes = [low << i for i in range((high // low).bit_length())]
    setups = {size: replace(setup, config=replace(setup.config, batch_size=size)) for size in sizes}
    stem = record.writable_stem(options.out, "sweep", setup.device)
    console = stdout_console()
    card = record.environment(setup.device, setup.precision, ["sweep", *arguments])
    with steps_shown(console, list(map(float, sizes))) as (say, finished):
        rows = sweep(sizes, lambda size: _measure(setups[size]), available_memory(setup.device), say, finished)
    result = Result("sweep", card, settings_of(setup), rows)
    record.save(result, stem)
    finish(result, stem, console, chart.draw_sweep)


def sweep(
    sizes: Sequence[int],
    measure_size: Measure,
    available: int | None,
    say: Say,
    finished: Callable[[], None],
) -> list[Row]:
    """Rows of rate and memory for each size that fits, then the recommendation.

    Args:
        sizes: rising.
        measure_size: rate and peak bytes of one size; raises MemoryError or torch's own when it does not fit.
        available: bytes the process may use; a size that would need more, by the growth so far, is not tried: a
            CPU's system kills what takes too much. None: unknown, or the device says so itself.
    """
    rates: dict[int, Rate] = {}
    peaks: dict[int, int] = {}
    end = "all sizes were measured"
    for size in sizes:
        say(f"batch {size}")
        if available is not None and expected_peak(peaks, size) > available:
            end = f"stopped before batch {size}: it would need more than the {available / 2**30:.1f} GiB there are"
            break
        try:
            rates[size], peaks[size] = measure_size(size)
        except (MemoryError, RuntimeError) as error:
            if not runtime.out_of_memory(error):
                raise
            end = f"stopped at batch {size}: memory ran out"
            break
        finished()
    rows = [Row.of_rate(PART, f"batch {size}", rate) for size, rate in rates.items()]
    rows += [Row(PART, f"peak memory at batch {size}", "GiB", peak / 2**30) for size, peak in peaks.items()]
    return [*rows, Row(PART, "recommended batch size", "images", recommended(rates), note=end)]


def recommended(rates: dict[int, Rate]) -> int | None:
    """The smallest size within 3% of the best rate; None without any."""
    best = max((rate.median for rate in rates.values()), default=0.0)
    return next((size for size, rate in sorted(rates.items()) if rate.median >= GOOD_ENOUGH * best), None)


def expected_peak(peaks: dict[int, int], size: int) -> float:
    """Bytes at `size`, by the line through the last two sizes; 0 before there are two."""
    if len(peaks) < 2:
        return 0.0
    (size_a, peak_a), (size_b, peak_b) = list(peaks.items())[-2:]
    return peak_b + max(0, peak_b - peak_a) / (size_b - size_a) * (size - size_b)


def available_memory(device: torch.device) -> int | None:
    """Bytes that this process could come to hold: its own and what the system has left; None for a GPU."""
    information = Path("/proc/meminfo")
    if device.type == "cuda" or not information.exists():
        return None
    lines = (line.split() for line in information.read_text().splitlines())
    free = {words[0].rstrip(":"): 1024 * int(words[1]) for words in lines}.get("MemAvailable")
    own = 1024 * int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0])
    limit = Path("/sys/fs/cgroup/memory.max")
    limits = [int(text) for text in [limit.read_text().strip() if limit.exists() else "max"] if text.isdigit()]
    return min([free + own, *limits]) if free is not None else None


def _measure(setup: Setup) -> tuple[Rate, int]:
    reset_peak_memory(setup.device)
    rate = measure(setup.synthetic(setup.batch_size), setup.learner().train_step, setup.device, setup.budget(2))
    return rate, peak_memory(setup.device)
