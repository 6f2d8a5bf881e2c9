"""What a run says: the model's layers, the choice, a bar, one line an epoch, the last summary and its JSON line.

    python train.py             # a bar
    python train.py | cat       # plain lines without control characters, the last of them JSON

Nothing here reads the device: the loss and accuracy shown come from a `peek` that must not wait for it.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import Any

import torch
from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from engine.config import Config
from engine.cost import one_image_and_copy
from engine.learner import Progress
from engine.machine import Machine
from ground.interval import wilson
from ground.spread import quartiles
from ground.terminal import FIRST_LINE_SECONDS, LINE_SECONDS, Tracker, clock, json_line, printable
from run.schema import EpochRow

ABSENT = "not measured"
BOTH = "{frozen_accuracy:.2%}, {all_layers_accuracy:.2%}; kept: {kept}"
HEADER_EVERY = 20
# Label, key, width, format of one epoch's line: 78 columns in all. {split} is "test", or "val" for held-out images.
COLUMNS = (
    ("epoch", "epoch", 5, "d"),
    ("px", "resolution", 3, "d"),
    ("loss", "loss", 6, ".4f"),
    ("last", "last_loss", 6, ".4f"),
    ("train %", "train_accuracy", 7, ".2%"),
    ("it/s", "it_per_s", 6, ".1f"),
    ("images/s", "images_per_s", 8, ",.0f"),
    ("{split} loss", "reported_loss", 9, ".4f"),
    ("correct/total", "reported_correct", 13, "d"),
    ("{split} %", "reported_accuracy", 6, ".2%"),
)


class Reporter:
    """Says what a run does on one console."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._costs: list[float] = []
        self._rows = 0
        self._skipped: float | None = None  # what had been done, at the costs of the epochs, when this process began
        self._started = 0.0

    def say(self, what: RenderableType) -> None:
        """One line of text, never wrapped by us, or anything else that rich can draw."""
        what = printable(what) if isinstance(what, str) else what
        self._console.print(what, markup=False, emoji=False, highlight=False, soft_wrap=isinstance(what, str))

    def choice(self, preset: str, config: Config, machine: Machine) -> None:
        """Say what is about to run; `preset` is its name, before any flag changed it."""
        resolutions = [config.resolution(epoch) for epoch in range(config.epochs)]
        self._costs = [float(r * r) for r in resolutions]
        low, high = min(resolutions), max(resolutions)
        pixels = f"{low} px" if low == high else f"{low} to {high} px"
        pixels += f" to test at {config.model_side}" if config.model_side != resolutions[-1] else ""
        why = f" for {config.minutes:g} minutes" if config.minutes else ""
        start = f", from {printable(config.pretrained)}" if config.pretrained else ""
        self._block(
            {
                "preset": f"{preset}: {config.epochs} epoch{'s' * (config.epochs > 1)}{why}, "
                f"batch {config.batch_size}, {pixels}, ResNet-{config.depth} width {config.width}{start}",
                "device": ", ".join(f"{name} {value}" for name, value in machine.card().items()),
                "precision": machine.precision + (", compiled" if machine.compiled else ", not compiled"),
                "run folder": config.run_dir,
            }
        )

    def epoch(
        self, epoch: int, epochs: int, steps: int, batch_size: int, peek: Callable[[], Progress | None], first: int = 0
    ) -> Tracker:
        """The bar of one epoch, counted from 1: to be opened by `with`, and told of each step by `advance`.

        Its images/s and ETA come from the steps that the host has issued: on a GPU it may be a few steps ahead. The ETA
        is for the whole run, evaluation included, and takes an epoch's cost as proportional to its pixels.

        Args:
            peek: the epoch's metrics so far, or None; asked for only when something is drawn: twice a second at most.
            first: steps of the epoch that are done already, in a run that goes on in its middle.
        """
        start = perf_counter()
        costs = self._costs or [1.0] * epochs
        past, cost, after = sum(costs[: epoch - 1]), costs[epoch - 1], sum(costs[epoch:])
        if self._skipped is None:
            self._skipped, self._started = past + cost * first / steps, start
        before = past - self._skipped
        seen: list[str] = []

        def parts(step: int) -> list[str]:
            if metrics := peek():
                seen[:] = [f"loss {metrics.loss:.3f}", f"acc {metrics.accuracy:.1%}"]
            now, done = perf_counter(), step / steps
            left = (after + cost * (1 - done)) / (before + cost * done)
            rate = (step - first) * batch_size / (now - start)
            eta = clock((now - self._started) * left)
            return [f"{step}/{steps}", *seen, f"ETA {eta}", f"{rate:,.0f} images/s"]

        first_line = FIRST_LINE_SECONDS if before <= 0 else LINE_SECONDS
        return Tracker(f"epoch {epoch}/{epochs}", steps, first, self._console, parts, first_line)

    def row(self, row: EpochRow) -> None:
        """One line for a finished epoch, under a heading that returns every 20 epochs."""
        split = "val" if row["split"] == "validation" else "test"
        values: Mapping[str, Any] = row
        cells = {key: format(values[key], form).removesuffix("%") for _, key, _, form in COLUMNS}
        cells["epoch"] += f"/{row['epochs']}"
        cells["reported_correct"] += f"/{row['reported_total']}"
        lines = [[cells[key] for _, key, *_ in COLUMNS]]
        if self._rows % HEADER_EVERY == 0:
            lines.insert(0, [label.format(split=split) for label, *_ in COLUMNS])
        self._rows += 1
        widths = [width for *_, width, _ in COLUMNS]
        widths[0] = max(widths[0], len(f"{row['epochs']}/{row['epochs']}"))
        for line in lines:
            self.say(" ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """The last table, then `summary` whole as one line of JSON: the last line of the output, whatever its width.

        Of its keys those named below are shown, None and absent ones as not measured; see `Run.end`. Accuracies are 0
        to 1, images_per_second as `throughput` gives it.

        Raises:
            TypeError: a value that is no plain number, string, list or mapping.
        """
        line = json_line(summary)
        name = str(summary.get("split", "test"))
        accuracy = _show("{test_accuracy:.2%}", summary)
        correct, total = summary.get("test_correct"), summary.get("test_total")
        counts = ""
        if correct is not None and total:
            low, high = wilson(correct, total)
            counts = f"  ({correct} of {total}; 95% interval {low:.1%} to {high:.1%})"
        by_class = _show("{test_class_accuracy:.2%}", summary)
        quartiles = "  (median epoch; quartiles {images_per_second_q1:,.0f} to {images_per_second_q3:,.0f})"
        memory = summary.get("peak_memory_bytes")
        self.say("")
        self._block(
            {
                f"{name} accuracy": accuracy + counts,
                **({f"{name} accuracy, mean of the classes": by_class} if by_class not in (accuracy, ABSENT) else {}),
                f"{name} accuracy, flip TTA": _show("{test_accuracy_tta:.2%}", summary),
                **({"frozen, all layers": _show(BOTH, summary)} if summary.get("kept") else {}),
                "temperature": _show("{temperature:.2f}", summary),
                "data": duration(summary.get("data_seconds")),
                **({"last layer alone": duration(summary["head_seconds"])} if "head_seconds" in summary else {}),
                "compile": duration(summary.get("compile_seconds")),
                "training": duration(summary.get("train_seconds")),
                "of it, in the loader": duration(summary.get("wait_seconds")),
                "evaluation": duration(summary.get("eval_seconds")),
                "images/s": _show("{images_per_second:,.0f}", summary) + _show(quartiles, summary, absent=""),
                "peak memory": ABSENT if memory is None else f"{memory / 2**30:.2f} GiB",
                "checkpoint": _show("{checkpoint}", summary, absent="none"),
                **({"started from": str(summary["origin"])} if summary.get("origin") else {}),
            }
        )
        # Not through rich, which would wrap or style it.
        self._console.file.write(line + "\n")
        self._console.file.flush()

    def _block(self, lines: Mapping[str, str]) -> None:
        width = max(map(len, lines))
        for label, text in lines.items():
            self.say(f"{label:<{width}}  {text}")


def throughput(images_per_s: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of the epochs' images/s, under the names that `Reporter.finish` shows; {} for no epoch."""
    if not images_per_s:
        return {}
    spread = quartiles(images_per_s)
    return {"images_per_second": spread.median, "images_per_second_q1": spread.q1, "images_per_second_q3": spread.q3}


def duration(seconds: float | None) -> str:
    """A time for people: 7.4 s, 2 min 30 s, 1 h 05 min; None is not measured."""
    if seconds is None:
        return ABSENT
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    if seconds < 3599.5:
        return "{} min {:02d} s".format(*divmod(round(seconds), 60))
    return "{} h {:02d} min".format(*divmod(round(seconds / 60), 60))


def _show(template: str, values: Mapping[str, Any], absent: str = ABSENT) -> str:
    """The template filled in, or `absent` where a value it needs is None or missing."""
    try:
        return template.format_map({key: value for key, value in values.items() if value is not None})
    except KeyError:
        return absent


def model_summary(model: nn.Module, resolution: int) -> Table:
    """A table of the layers that hold parameters, grouped by the model's children: for one image of that resolution
    output shapes, parameters (sum(p.numel())) and FLOPs, as engine/cost.py counts them, and their totals.

    The model's weights, buffers, gradients and mode, and the random generators, are left as they are.
    """
    image, replica = one_image_and_copy(model, resolution)
    shapes: dict[str, str] = {}

    def note(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        shapes[name] = " x ".join(map(str, output.shape[1:]))

    for name, module in replica.named_modules():
        module.register_forward_hook(partial(note, name))
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        replica(image)
    root = type(replica).__name__
    flops = {name.removeprefix(f"{root}."): sum(by_op.values()) for name, by_op in counter.get_flop_counts().items()}

    def numbers(name: str, module: nn.Module) -> tuple[str, str]:
        cost = flops.get(name, 0)
        return f"{sum(p.numel() for p in module.parameters()):,}", f"{cost / 1e6:,.2f}" if cost else "-"

    table = Table(box=box.SIMPLE, title=f"{root}, {resolution} x {resolution} pixels", show_footer=True)
    table.add_column("layer", "total")
    table.add_column("kind")
    for header, footer in zip(("output", "parameters", "MFLOPs"), ("", *numbers("Global", replica)), strict=True):
        table.add_column(header, footer, justify="right")
    for child, group in replica.named_children():
        for name, module in group.named_modules(prefix=child):
            if name == child or next(module.parameters(recurse=False), None) is not None:
                label, style = (child, "bold") if name == child else ("  " + name.removeprefix(child + "."), "")
                table.add_row(label, _kind(module), shapes.get(name, ""), *numbers(name, module), style=style)
        table.add_section()
    table.caption = "FLOPs of one image forward; a multiply-add is 2; convolutions and linear layers"
    return table


def _kind(module: nn.Module) -> str:
    if isinstance(module, nn.Conv2d):
        stride = f" /{module.stride[0]}" if module.stride[0] > 1 else ""
        return f"conv {module.kernel_size[0]}x{module.kernel_size[1]}{stride}"
    name = type(module).__name__
    return {"BatchNorm2d": "batch norm", "Linear": "linear", "Sequential": ""}.get(name, name)
