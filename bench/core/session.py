"""One measuring command: its bar, its record, saved after every step, and its last line.

    with session("sweep", ["sweep", *arguments], options, machine, data.name) as display:
        for size in display.steps([64, 128]):
            display.say(f"batch {size}")
            display.rows += measure(size)

What goes wrong inside, or stops it, leaves the record of the steps that are done.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from bench.core import record
from bench.core.options import BenchOptions
from bench.core.record import Result, Row
from engine.machine import Machine
from ground.terminal import Tracker, clock, json_line, stdout_console

T = TypeVar("T")
Say = Callable[[str], None]  # what is measured now


class Session:
    """What a command writes to and says; made by `session`."""

    def __init__(self, result: Result, stem: Path) -> None:
        self.rows: list[Row] = []
        """What was measured so far: the command's to fill."""
        self.more: dict[str, Any] = {}
        """What the last line says besides the result."""
        self.console = stdout_console()
        self.tracker = Tracker(result.theme, 0, console=self.console, parts=self._parts)
        self._result, self._stem, self._now = result, stem, ""

    @property
    def result(self) -> Result:
        return replace(self._result, rows=self.rows)

    def print(self, text: str) -> None:
        """A line that a terminal does not break."""
        self.console.print(text, soft_wrap=True, markup=False)

    def say(self, what: str) -> None:
        """Show what is measured now: beside the bar on a terminal, else in a line."""
        self._now = what
        self.tracker.draw()

    def saying(self, part: str) -> Say:
        """`say` with the part's name in front."""
        return lambda what: self.say(f"{part}: {what}")

    def _parts(self, done: int) -> list[str]:
        spent = self.tracker.seconds
        eta = [f"ETA {clock(spent / done * (self.tracker.total - done))}"] if done else []
        return [self._now, clock(spent), *eta]

    def steps(self, items: Sequence[T], shares: Sequence[int] = ()) -> Iterator[T]:
        """Each item in turn. When it is done, the bar moves on, by its share of the time, and the record is saved."""
        shares = shares or [1] * len(items)
        self.tracker.total = sum(shares)
        for item, share in zip(items, shares, strict=True):
            yield item
            self.tracker.done += share
            record.save(self.result, self._stem)


@contextmanager
def session(
    theme: str,
    command: Sequence[str],
    options: BenchOptions,
    machine: Machine,
    data: str,
    draw: Callable[[Result, Path], None] | None = None,
    label: str = "",
) -> Iterator[Session]:
    """Open the record, and, unless something goes wrong inside, draw it, show its table and print it as a line of JSON.

    Args:
        theme: what kind of result it is; results of one kind can be compared.
        command: words after `python -m bench`, for the record.
        data: name of the images.
        draw: makes the picture beside the record.
        label: follows the theme in the files' names.

    Raises:
        OSError: the folder for the results cannot be written.
    """
    card = record.environment(machine, command)
    stem = record.writable_stem(options.out, f"{theme}-{label}" if label else theme, card)
    settings = options.recorded() | {"compiled": machine.compiled, "data": data}
    display = Session(Result(theme, card, settings, []), stem)
    for line in [*(f"{name:<10} {value}" for name, value in card.items()), machine.crowded()]:
        if line:
            display.print(line)
    with display.tracker:
        yield display
    result = display.result
    files = record.save(result, stem)
    if draw:
        draw(result, stem.with_suffix(".png"))
        files.append(str(stem.with_suffix(".png")))
    display.console.print(record.table(result))
    display.print("wrote " + ", ".join(files))
    print(json_line(asdict(result) | {"files": files} | display.more), flush=True)
