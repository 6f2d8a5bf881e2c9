"""Where the time of a training step goes: a trace of the real train_step and loader, and torch's own sums over it.

    python -m bench profile
    python -m bench profile --steps 3 --batch-size 64 --device cpu

Writes a trace for TensorBoard's PyTorch profiler (torch-tb-profiler) and prints what each part of the network takes,
the operators with the largest own time, and the command that shows the rest. Profiling costs time itself: for images
per second see `python -m bench`.
"""

import gzip
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from bench.core.clock import Step
from bench.core.record import Row
from bench.core.session import SpeedOptions, parse_speed, session
from bench.core.setup import Setup, prepare
from engine.config import setting
from engine.device import synchronise
from engine.learner import Learner
from engine.warm_up import warm_up
from ground.files import write_whole
from ground.memory import map_large_blocks

PHASES = ("forward", "backward", "optimizer")
DATA = "enumerate(DataLoader)#DaliLoader.__next__"  # as torch names its own loader's ranges: the plugin looks for it
# Ranges and outermost operators, none inside another. On a GPU torch.compile's own kernels are none of them.
PARTS = {
    "data": re.escape(DATA),
    "convolution": r"aten::convolution|_?Convol\w+Backward0?",
    "norm": r"aten::batch_norm|\w*BatchNorm\w*Backward0",
    "activation": r"aten::relu_?|ReluBackward0",
    "head": "aten::linear|AddmmBackward0",
    "loss": "aten::cross_entropy_loss|(LogSoftmax|NllLoss)Backward0",
    "optimizer": "optimizer",
}
LAYOUT_CONVERSION = re.compile("nchwtonhwc|nhwctonchw")  # cuDNN's, around a convolution that is not channels_last
WARM_UP = 2
TOP = 15


@dataclass(frozen=True, kw_only=True)
class ProfileOptions(SpeedOptions):
    steps: int = setting(5, ge=1, le=100)
    """Training steps in the trace."""
    out: str = "runs/profile"
    """Folder for traces: TensorBoard's --logdir."""


def main(arguments: Sequence[str]) -> None:
    options = parse_speed(ProfileOptions, arguments, "profile", __doc__)
    setup = prepare(options)
    folder = Path(options.out) / f"{datetime.now():%Y%m%d-%H%M%S}"
    there = replace(options, out=str(folder))
    with session("profile", ["profile", *arguments], there, setup.machine, setup.split.name) as display:
        display.say(f"{options.steps} steps of batch {setup.batch_size} after {WARM_UP} to warm up")
        profiler = profile_steps(setup, options.steps)
        display.rows += rows_of(profiler.key_averages(), options.steps, setup.cuda)
        path = folder / "train.1.pt.trace.json.gz"
        write_trace(profiler, path)
        command = shlex.join([sys.executable, "-m", "tensorboard.main", "--logdir", options.out])
        display.print(f"trace: {path}\nshow it with: {command}")
        display.more = {"trace": str(path), "tensorboard": command}


def profile_steps(setup: Setup, steps: int) -> profile:
    """torch's profiler after it has seen so many steps."""
    # In a CUDA graph no kernel could be told from which operator it comes.
    learner = setup.cold_learner(cuda_graph=False)
    if setup.machine.compiled:
        warm_up(learner, setup.batch_size)
    loader = setup.dali(setup.batch_size, setup.side)
    if not setup.cuda:
        map_large_blocks()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it writes lines of its own on stderr
    range_now = ExitStack()

    def enter(name: str) -> None:
        """End the range that is open and begin this one; "" begins none."""
        range_now.close()
        if name:
            range_now.enter_context(record_function(name))

    train_step = in_phases(learner, enter)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if setup.cuda else [])
    timing = schedule(wait=0, warmup=WARM_UP, active=steps, repeat=1)
    with profile(activities=activities, schedule=timing, record_shapes=True, profile_memory=True) as profiler:
        for step in range(WARM_UP + steps):
            enter(DATA)
            images, labels = next(loader)
            train_step(images, labels)
            if step == WARM_UP + steps - 1:
                synchronise(setup.device)
            profiler.step()
    return profiler


def in_phases(learner: Learner, enter: Callable[[str], None]) -> Step:
    """The learner's real train_step, which calls `enter` with each of PHASES as it begins, and with "" at the end.

    Both calls of its scaler are its turning points: backward starts where the loss is scaled, the optimizer where the
    scaler takes its step.
    """
    scale, step = learner.scaler.scale, learner.scaler.step

    def scale_and_tell(loss: Any) -> Any:
        enter("backward")
        return scale(loss)

    def step_and_tell(optimizer: torch.optim.Optimizer) -> float | None:
        enter("optimizer")
        return step(optimizer)

    def train_step(images: Tensor, labels: Tensor) -> None:
        enter("forward")
        learner.train_step(images, labels)
        enter("")

    learner.scaler.scale = scale_and_tell  # type: ignore[method-assign, assignment]
    learner.scaler.step = step_and_tell  # type: ignore[method-assign]
    return train_step


def rows_of(events: Sequence[Any], steps: int, cuda: bool) -> list[Row]:
    """Per step: the phases on the host, the parts of the network, the operators, and conversions of the memory layout.

    Parts and operators are in the CPU's time; on CUDA in that of the kernels, each by the operator that launched it.

    Args:
        events: torch.profiler's key_averages().
    """
    host = [event for event in events if event.device_type == DeviceType.CPU]
    kernels = [event for event in events if event.device_type == DeviceType.CUDA and not event.is_user_annotation]
    whole = sum(event.cpu_time_total for event in host if event.key == "ProfilerStep*")

    def row(part: str, name: str, microseconds: float, calls: float = 0) -> Row:
        note = f"{microseconds / whole:.1%} of a step" + (f", {calls / steps:g} calls" if calls else "")
        return Row(part, name, "ms", microseconds / 1000 / steps, note=note)

    def total(keys: str, time: str) -> float:
        return sum(getattr(event, time) for event in host if re.fullmatch(keys, event.key))

    rows = [row("host", name, total(PARTS.get(name, name), "cpu_time_total")) for name in ("data", *PHASES)]
    times = {name: total(keys, "device_time_total" if cuda else "cpu_time_total") for name, keys in PARTS.items()}
    if cuda:
        times["torch.compile's"] = sum(e.self_device_time_total for e in kernels if e.key.startswith("triton"))
        busy = sum(event.self_device_time_total for event in kernels)
        times["other kernels"] = busy - sum(times.values())
        times["idle"] = whole - busy  # kernels that run side by side, as the loader's may, count twice
    else:
        times["other"] = whole - sum(times.values())
    rows += [row("part", name, time) for name, time in times.items()]
    operators = kernels if cuda else [event for event in host if not event.is_user_annotation]
    own_time = attrgetter("self_device_time_total" if cuda else "self_cpu_time_total")
    largest = sorted(operators, key=own_time, reverse=True)[:TOP]
    rows += [row("operators", event.key[:80], own_time(event), event.count) for event in largest]
    conversions = sum(event.count for event in kernels if LAYOUT_CONVERSION.search(event.key.lower()))
    note = "0 is right" if cuda else "seen on CUDA alone"
    return [*rows, Row("layout", "conversions", "calls", conversions / steps if cuda else None, note=note)]


def write_trace(profiler: profile, path: Path) -> None:
    """Write the trace as torch-tb-profiler 0.4.3 shows all of it.

    It takes the loader's and the optimizer's ranges for what they are where they are operators, and skips them else.
    """
    with TemporaryDirectory() as folder:
        profiler.export_chrome_trace(f"{folder}/trace.json")
        trace = json.loads(Path(folder, "trace.json").read_bytes())
    for event in trace["traceEvents"]:
        if event.get("cat") == "user_annotation" and event["name"].startswith((DATA, "Optimizer.step#")):
            event["cat"] = "cpu_op"
    write_whole(path, gzip.compress(json.dumps(trace).encode()))
