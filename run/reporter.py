"""What a run says while it goes: the choice, a progress bar, one line an epoch, the last summary and its JSON line.

A terminal gets a bar; a file or a pipe gets plain lines without control characters. Nothing here reads the device: the
loss and accuracy shown come from a `peek` that the caller must answer without waiting, asked for twice a second.

    python train.py             # a bar
    python train.py | cat       # plain lines, the last of them JSON
"""

import json
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import TextColumn

from engine.config import Config
from engine.learner import Batch, Progress
from engine.machine import Machine
from ground.terminal import bar, printable
from run.row import EpochRow

Peek = Callable[[], Progress | None]

ABSENT = "not measured"
BAR_SECONDS = 0.5
PLAIN_SECONDS = 30.0
FIRST_PLAIN_SECONDS = 10.0  # so that a log soon tells how long the run will take
MINIMUM_BAR = 8
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
    ("{split} loss", "test_loss", 9, ".4f"),
    ("correct/total", "test_correct", 13, "d"),
    ("{split} %", "test_accuracy", 6, ".2%"),
)


class Steps:
    """Counts the steps of one epoch, from `first` on, and, rarely, lets the reporter draw."""

    def __init__(
        self, draw: Callable[[int, Progress | None], None], first: int, interval: float, first_interval: float
    ) -> None:
        self._step, self._draw, self._interval = first, draw, interval
        self._due = perf_counter() + first_interval

    def over(self, batches: Iterable[Batch], peek: Peek) -> Iterator[Batch]:
        """The batches, each counted when its training step is on its way."""
        for batch in batches:
            yield batch
            self.advance(peek)

    def advance(self, peek: Peek) -> None:
        """Say that one more training step is on its way; `peek` is called only when something is drawn.

        Costs 0.2 microseconds a step (one core of a Xeon), and 0.4 ms at each drawing, at most twice a second.
        """
        self._step += 1
        if perf_counter() >= self._due:
            self._draw(self._step, peek())
            self._due = perf_counter() + self._interval


class Reporter:
    """Says what a run does on one console; on None it says nothing (every process but the first)."""

    def __init__(self, console: Console | None) -> None:
        self._console = console
        self._live = console is not None and console.is_terminal and not console.is_dumb_terminal
        self._costs: list[float] = []
        self._rows = 0
        self._skipped: float | None = None
        self._started = 0.0

    def say(self, what: RenderableType) -> None:
        """One line of text, never wrapped by us, or anything else that rich can draw."""
        if self._console is not None:
            what = printable(what) if isinstance(what, str) else what
            self._console.print(what, markup=False, emoji=False, highlight=False, soft_wrap=isinstance(what, str))

    def choice(self, preset: str, config: Config, machine: Machine) -> None:
        """Say what is about to run.

        Args:
            preset: name of the preset, before any flag changed it.
            config: the settings in force; its resolutions weigh the epochs in the bar's ETA.
            machine: what it runs on.
        """
        resolutions = [config.resolution(epoch) for epoch in range(config.epochs)]
        self._costs = [float(r * r) for r in resolutions]
        low, high = min(resolutions), max(resolutions)
        pixels = f"{low} px" if low == high else f"{low} to {high} px"
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

    @contextmanager
    def epoch(self, epoch: int, epochs: int, steps: int, batch_size: int, first: int = 0) -> Iterator[Steps]:
        """The training steps of one epoch, counted from 1; `advance` what it gives once a step.

        A run that goes on in the middle of the epoch has already done `first` of its steps.

        The bar's images/s and ETA come from the steps that the host has issued: on a GPU it may be a few steps ahead.
        The ETA is for the whole run, evaluation included, and takes an epoch's cost as proportional to its pixels.
        """
        start = perf_counter()
        costs = self._costs if len(self._costs) == epochs else [1.0] * epochs
        if self._skipped is None:
            self._skipped, self._started = sum(costs[: epoch - 1]) + costs[epoch - 1] * first / steps, start
        before, after = sum(costs[: epoch - 1]) - self._skipped, sum(costs[epoch:])
        title = f"epoch {epoch}/{epochs}"
        seen: list[str] = []

        def parts(step: int, metrics: Progress | None) -> list[str]:
            """What is known, the most important first."""
            if metrics is not None:
                seen[:] = [f"loss {metrics.loss:.3f}", f"acc {metrics.accuracy:.1%}"]
            now, done = perf_counter(), step / steps
            left = (after + costs[epoch - 1] * (1 - done)) / (before + costs[epoch - 1] * done)
            eta = clock((now - self._started) * left)
            rate = (step - first) * batch_size / (now - start)
            return [f"{step}/{steps}", *seen, f"ETA {eta}", f"{rate:,.0f} images/s"]

        if self._console is None or not self._live:

            def say(step: int, metrics: Progress | None) -> None:
                self.say("  ".join([title, *parts(step, metrics)]))

            interval = math.inf if self._console is None else PLAIN_SECONDS
            soon = FIRST_PLAIN_SECONDS if self._console and before <= 0 else interval
            yield Steps(say, first, interval, soon)
            return

        shown = bar(self._console, TextColumn("{task.fields[text]}", markup=False))
        room = self._console.width - len(title) - MINIMUM_BAR - 2
        task = shown.add_task(title, total=steps, completed=first, text=f"{first}/{steps}")

        def draw(step: int, metrics: Progress | None) -> None:
            shown.update(task, completed=step, text=_fit(parts(step, metrics), room), refresh=True)

        with shown:
            yield Steps(draw, first, BAR_SECONDS, BAR_SECONDS)

    def row(self, row: EpochRow) -> None:
        """One line for a finished epoch, under a heading that returns every 20 epochs."""
        split = "val" if row["split"] == "validation" else "test"
        values: Mapping[str, Any] = row
        cells = {key: format(values[key], form).removesuffix("%") for _, key, _, form in COLUMNS}
        cells["epoch"] += f"/{row['epochs']}"
        cells["test_correct"] += f"/{row['test_total']}"
        widths = [max(width, len(f"{row['epochs']}") * 2 + 1 if key == "epoch" else 0) for _, key, width, _ in COLUMNS]
        if self._rows % HEADER_EVERY == 0:
            self.say(_aligned((label.format(split=split) for label, *_ in COLUMNS), widths))
        self._rows += 1
        self.say(_aligned((cells[key] for _, key, *_ in COLUMNS), widths))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """The last table, then `summary` whole as one line of JSON: the last line of the output, whatever its width.

        Keys shown, absent ones as not measured: test_accuracy, test_class_accuracy, test_accuracy_tta (0..1),
        test_correct, test_total, temperature,
        split, data_seconds, compile_seconds, train_seconds, wait_seconds (of them, for data), eval_seconds,
        images_per_second (median over epochs), images_per_second_q1 and _q3 (see `throughput`), peak_memory_bytes,
        checkpoint (a path).

        Raises:
            TypeError: a value that is no plain number, string, list or mapping.
        """
        if self._console is None:
            return
        line = json_line(summary)
        name = str(summary.get("split", "test"))
        accuracy = _show("{test_accuracy:.2%}", summary)
        counts = _show("  ({test_correct} of {test_total}{interval})", {"interval": _interval(summary), **summary}, "")
        by_class = _show("{test_class_accuracy:.2%}", summary)
        rate = _show("{images_per_second:,.0f}", summary)
        quartiles = "  (median epoch; quartiles {images_per_second_q1:,.0f} to {images_per_second_q3:,.0f})"
        spread = _show(quartiles, summary, absent="")
        memory = summary.get("peak_memory_bytes")
        self.say("")
        self._block(
            {
                f"{name} accuracy": accuracy + counts,
                **({f"{name} accuracy, mean of the classes": by_class} if by_class not in (accuracy, ABSENT) else {}),
                f"{name} accuracy, flip TTA": _show("{test_accuracy_tta:.2%}", summary),
                "temperature": _show("{temperature:.2f}", summary),
                "data": duration(summary.get("data_seconds")),
                "compile": duration(summary.get("compile_seconds")),
                "training": duration(summary.get("train_seconds")),
                "of it, in the loader": duration(summary.get("wait_seconds")),
                "evaluation": duration(summary.get("eval_seconds")),
                "images/s": rate + spread,
                "peak memory": ABSENT if memory is None else f"{memory / 2**30:.2f} GiB",
                "checkpoint": _show("{checkpoint}", summary, absent="none"),
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
    # quantiles() refuses a single value before Python 3.13.
    values = list(images_per_s) * 2 if len(images_per_s) == 1 else images_per_s
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return {"images_per_second": median, "images_per_second_q1": q1, "images_per_second_q3": q3}


def wilson(correct: int, total: int) -> tuple[float, float]:
    """The accuracies between which the true one lies in 95 of 100 cases (E. B. Wilson 1927, JASA 22)."""
    z, share = 1.96, correct / total
    middle, spread = share + z * z / (2 * total), z * math.sqrt(share * (1 - share) / total + (z / total / 2) ** 2)
    return (middle - spread) / (1 + z * z / total), (middle + spread) / (1 + z * z / total)


def _interval(summary: Mapping[str, Any]) -> str:
    correct, total = summary.get("test_correct"), summary.get("test_total")
    return "" if correct is None or not total else "; 95% interval {:.1%} to {:.1%}".format(*wilson(correct, total))


def json_line(values: Mapping[str, Any]) -> str:
    """`values` as one line of JSON, with null for NaN and infinity, which JSON lacks.

    Raises:
        TypeError: a value that is no plain number, string, list or mapping.
    """
    return json.dumps(_finite(values))


def duration(seconds: float | None) -> str:
    """A time for people: 7.4 s, 2 min 30 s, 1 h 05 min; None is not measured."""
    if seconds is None:
        return ABSENT
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    if seconds < 3599.5:
        return "{} min {:02d} s".format(*divmod(round(seconds), 60))
    return "{} h {:02d} min".format(*divmod(round(seconds / 60), 60))


def clock(seconds: float) -> str:
    """A time to come: 4:07 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _show(template: str, values: Mapping[str, Any], absent: str = ABSENT) -> str:
    """The template filled in, or `absent` where a value it needs is None or missing."""
    try:
        return template.format_map({key: value for key, value in values.items() if value is not None})
    except KeyError:
        return absent


def _aligned(cells: Iterable[str], widths: Iterable[int]) -> str:
    return " ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))


def _fit(parts: Sequence[str], room: int) -> str:
    """As many of the parts, from the first on, as have room in one line."""
    line = parts[0]
    for part in parts[1:]:
        if len(line) + 2 + len(part) > room:
            break
        line += "  " + part
    return line


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
