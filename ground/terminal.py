"""The terminal: one console, one kind of bar, and how a text or a time is written there."""

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from time import perf_counter
from typing import Any, Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

T = TypeVar("T")

BAR_SECONDS = 0.5
LINE_SECONDS = 30.0
FIRST_LINE_SECONDS = 10.0  # so that a log soon tells how long the work will take
MINIMUM_BAR = 8  # columns


def printable(text: str) -> str:
    """The text with what moves the cursor, or is no Unicode, as escapes: "\\x1b", "\\udcff"."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def stdout_console() -> Console:
    """A console on stdout. In a pipe it is wide, and has no control characters whatever FORCE_COLOR says."""
    live = sys.stdout.isatty()
    return Console(force_terminal=live, highlight=False, width=None if live else 140)


class Tracker:
    """How far a piece of work is: a bar on a terminal, elsewhere a plain line now and then, both with an ETA.

    It is drawn by `advance`, rarely: a thread that redraws a bar would take the interpreter from the work itself.
    A step that draws nothing costs 0.2 microseconds (one core of a Xeon).

    Args:
        total: items to do, of which `first` are done already; 0 where nobody knows.
        console: where to draw; stderr by default, so that stdout is free for results.
        parts: says how far it is at `done` items, the most important first (default: the count and the ETA).
        first_line: seconds until the first plain line.
    """

    def __init__(
        self,
        title: str,
        total: int,
        first: int = 0,
        console: Console | None = None,
        parts: Callable[[int], Sequence[str]] | None = None,
        first_line: float = FIRST_LINE_SECONDS,
    ) -> None:
        self.title, self.total, self.first, self.done = title, total, first, first
        self.console = console or Console(stderr=True)
        self._parts = parts or self._count
        self._live = self.console.is_terminal and not self.console.is_dumb_terminal
        self._interval = BAR_SECONDS if self._live else LINE_SECONDS
        self._start = perf_counter()
        self._due = self._start + (BAR_SECONDS if self._live else first_line)
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[text]}", markup=False),
            console=self.console, auto_refresh=False, transient=True, expand=True, disable=not self._live,
        )  # fmt: skip
        start = f"{first:,}/{total:,}" * (total > 0)
        self._task = self._bar.add_task(printable(title), total=total or None, completed=first, text=start)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return perf_counter() - self._start

    def advance(self, count: int = 1) -> None:
        """`count` more items are done; draws if it is time to."""
        self.done += count
        if perf_counter() >= self._due:
            self.draw()

    def draw(self) -> None:
        parts = list(self._parts(self.done))
        if self._live:
            text = _fitting(parts, self.console.width - len(self.title) - MINIMUM_BAR - 2)
            self._bar.update(self._task, total=self.total or None, completed=self.done, text=text, refresh=True)
        else:
            print(printable("  ".join([self.title, *parts])), file=self.console.file, flush=True)
        self._due = perf_counter() + self._interval

    def _count(self, done: int) -> list[str]:
        if not self.total:
            return [f"{done:,}"]
        left = self.seconds * (self.total - done) / max(1, done - self.first)
        return [f"{done:,}/{self.total:,}", f"ETA {clock(left)}"]


def tracked(items: Iterable[T], title: str, total: int, count: Callable[[T], int] = lambda item: 1) -> Iterator[T]:
    """The items, while a Tracker on stderr shows how far they are; `total` is the sum of their `count`."""
    with Tracker(title, total) as tracker:
        for item in items:
            yield item
            tracker.advance(count(item))


def clock(seconds: float) -> str:
    """A time to come: 4:07 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def json_line(values: Mapping[str, Any]) -> str:
    """Plain values as one line of JSON, with null for NaN and infinity, which JSON lacks."""
    return json.dumps(_finite(values))


def print_result(lines: Iterable[str], result: Mapping[str, Any]) -> None:
    """What a command ends with: lines for a person, then its result for a program."""
    for line in lines:
        print(printable(line))
    print(json_line(result))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _fitting(parts: Sequence[str], room: int) -> str:
    """As many of the parts, from the first on, as have room in one line."""
    line = parts[0]
    for part in parts[1:]:
        if len(line) + 2 + len(part) > room:
            break
        line += "  " + part
    return line
