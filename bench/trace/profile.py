"""Where the time of a training step goes: a trace of the real train_step and loader, and its sums.

    python -m bench profile
    python -m bench profile --steps 3 --batch-size 64 --device cpu

Writes a trace for TensorBoard's PyTorch profiler (torch-tb-profiler) and prints the operators with the largest own
time, the split of a step, and the command that shows the rest. Profiling costs time itself: for images per second
see `python -m bench`.
"""

import gzip
import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile, record_function, schedule, tensorboard_trace_handler

from bench.core.options import SpeedOptions, parse_speed
from bench.core.record import Row
from bench.core.session import session
from bench.core.setup import Setup, prepare
from bench.trace.phases import Phases
from bench.trace.trace import Analysis, analyse
from engine.config import setting
from engine.device import synchronise
from engine.warm_up import warm_up
from ground.memory import map_large_blocks

# torch-tb-profiler knows the loader and the optimizer by the names that torch gives their ranges.
LOADER_RANGE = "enumerate(DataLoader)#DaliLoader.__next__"
LAYOUT_CONVERSION = re.compile("nchwtonhwc|nhwctonchw")  # cuDNN's, around a convolution that is not channels_last
WARM_UP = 2
TOP = 15


@dataclass(frozen=True, kw_only=True)
class Options(SpeedOptions):
    steps: int = setting(5, ge=1, le=100)
    """Training steps in the trace."""
    out: str = "runs/profile"
    """Folder for traces: TensorBoard's --logdir."""


def main(arguments: Sequence[str]) -> None:
    options = parse_speed(Options, arguments, "profile", __doc__)
    setup = prepare(options)
    folder = Path(options.out) / f"{datetime.now():%Y%m%d-%H%M%S}"
    there = replace(options, out=str(folder))
    with session("profile", ["profile", *arguments], there, setup.machine, setup.split.name) as shown:
        shown.say(f"{options.steps} steps of batch {setup.batch_size} after {WARM_UP} to warm up")
        path = record_steps(setup, folder, options.steps)
        with gzip.open(path, "rt", encoding="utf-8") as file:
            trace = json.load(file)
        shown.rows = rows(analyse(trace, setup.cuda), options.steps, setup.cuda)
        suit_the_plugin(trace)
        with gzip.open(path, "wt", encoding="utf-8") as file:
            json.dump(trace, file)
        command = shlex.join([sys.executable, "-m", "tensorboard.main", "--logdir", options.out])
        shown.console.print(f"trace: {path}\nshow it with: {command}", soft_wrap=True, markup=False)
        shown.more = {"trace": str(path), "tensorboard": command}


def record_steps(setup: Setup, folder: Path, steps: int) -> Path:
    """Write the trace of `steps` steps; returns its path."""
    # In a CUDA graph no kernel could be told from which operator it comes.
    learner = setup.cold_learner(cuda_graph=False)
    if setup.machine.compiled:
        warm_up(learner, setup.batch_size)
    loader = setup.dali(setup.batch_size, setup.side)
    if not setup.cuda:
        map_large_blocks()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it writes lines of its own on stderr
    open_ranges = ExitStack()

    def enter(*names: str) -> None:
        """End the ranges that are open and begin these, each inside the one before; "" begins none."""
        open_ranges.close()
        for name in filter(None, names):
            open_ranges.enter_context(record_function(name))

    phases = Phases(learner, enter)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if setup.cuda else [])
    with profile(
        activities=activities,
        schedule=schedule(wait=0, warmup=WARM_UP, active=steps, repeat=1),
        on_trace_ready=tensorboard_trace_handler(str(folder), worker_name="train", use_gzip=True),
        record_shapes=True,
        profile_memory=True,
    ) as profiler:
        for step in range(WARM_UP + steps):
            enter("data", LOADER_RANGE)
            images, labels = next(loader)
            enter("")
            phases.train_step(images, labels)
            if step == WARM_UP + steps - 1:
                synchronise(setup.device)
            profiler.step()
    return next(folder.glob("*.pt.trace.json.gz"))


def suit_the_plugin(trace: dict[str, Any]) -> None:
    """Call the loader's and the optimizer's ranges operators: torch-tb-profiler 0.4.3 skips what is named otherwise."""
    for event in trace["traceEvents"]:
        if event.get("cat") == "user_annotation" and event["name"].startswith((LOADER_RANGE, "Optimizer.step#")):
            event["cat"] = "cpu_op"


def rows(analysis: Analysis, steps: int, cuda: bool) -> list[Row]:
    """The split, the ranges, the operators, and the kernels that only turn one memory layout into another, per step."""
    window = analysis.seconds
    kept = [
        Row("split", name, "%", 100 * seconds / window, note=f"{1000 * seconds / steps:,.1f} ms")
        for name, seconds in analysis.split.items()
    ]
    kept += [Row("host", name, "ms", 1000 * seconds / steps) for name, seconds in analysis.ranges.items()]
    kept += [
        Row(
            "operators",
            name[:80],
            "ms",
            1000 * seconds / steps,
            note=f"{100 * seconds / window:.1f}%, {calls / steps:g} calls",
        )
        for name, seconds, calls in analysis.operators[:TOP]
    ]
    conversions = [calls for name, _, calls in analysis.operators if LAYOUT_CONVERSION.search(name.lower())]
    note = "0 is right" if cuda else "seen on CUDA alone"
    kept.append(Row("layout", "conversions", "calls", sum(conversions) / steps if cuda else None, note=note))
    return kept
