"""One measuring command: its flags, its bar, its record, saved after every step, and its last line.

    options = parse_speed(SweepOptions, arguments, "sweep", __doc__)
    with session("sweep", ["sweep", *arguments], options, machine, data.name) as display:
        for size in display.steps([64, 128]):
            display.say(f"batch {size}")
            display.rows += measure(size)

The flags are those of train.py, so that what is measured is what it would train. What goes wrong inside, or stops it,
leaves the record of the steps that are done.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from matplotlib.figure import Figure
from tyro.conf import Suppress

from bench.core import record
from bench.core.record import Result
from engine.config import PRESETS, Config, parse_flags, preset_and_flags
from engine.machine import Machine
from ground.terminal import Tracker, clock, json_line, stdout_console

Say = Callable[[str], None]  # what is measured now
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class BenchOptions(Config):
    """A recipe, and where its measurement goes. Nothing here is kept to go on from."""

    preset: Suppress[str] = ""
    out: str = "docs/results"
    """Folder for the results."""
    run_dir: Suppress[str] = ""
    resume: Suppress[str] = ""
    pretrained: Suppress[str] = ""
    checkpoint_every: Suppress[float] = 60.0


@dataclass(frozen=True, kw_only=True)
class SpeedOptions(BenchOptions):
    """Flags of the commands that measure speed; their recipe is the `full` preset's at 32 px unless they name one."""

    quick: bool = False
    """Fewer and shorter measurements: a first look."""


B = TypeVar("B", bound=BenchOptions)


def parse(kind: type[B], words: Sequence[str], command: str, about: str | None, default: str, **changes: Any) -> B:
    """`[PRESET] [flags]` -> options, without a preset those of `default` with `changes`.

    `about` is the docstring of which --help shows the first paragraph.
    """
    preset, flags = preset_and_flags(words)
    values = PRESETS[preset or default].values("weights", "network", "batches", "machine")
    base = kind(preset=preset or default, **values | ({} if preset else changes))
    summary = (about or "").split("\n\n")[0] + f" Before the flags may stand a preset: {', '.join(PRESETS)}."
    return parse_flags(base, flags, f"python -m bench {command}".rstrip(), summary)


def parse_speed(kind: type[B], words: Sequence[str], command: str, about: str | None) -> B:
    """`parse` for the commands that measure speed."""
    # CIFAR-10's own pixels, which the preset enlarges. Without a GPU a smaller batch: a step of 512 takes seconds.
    smaller = {} if torch.cuda.is_available() else {"batch_size": 128}
    return parse(kind, words, command, about, "full", resolutions=(32,), **smaller)


class Session:
    """What a command writes to and says; made by `session`."""

    def __init__(self, result: Result, stem: Path) -> None:
        self.result, self.stem = result, stem
        self.rows = result.rows  # what was measured so far: the command's to fill
        self.more: dict[str, Any] = {}  # what the last line says besides the result
        self.console = stdout_console()
        self.tracker = Tracker(result.theme, 0, console=self.console, parts=self._parts)
        self._now = ""

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
        """Each item in turn; when it is done, the bar moves on by its share, and the record is saved."""
        shares = shares or [1] * len(items)
        self.tracker.total = sum(shares)
        for item, share in zip(items, shares, strict=True):
            yield item
            self.tracker.done += share
            record.save(self.result, self.stem)


@contextmanager
def session(
    theme: str,
    command: Sequence[str],
    options: BenchOptions,
    machine: Machine,
    data: str,
    draw: Callable[[Result], Figure] | None = None,
    label: str = "",
) -> Iterator[Session]:
    """Open the record, and, unless something goes wrong inside, draw it, show its table and print it as a line of JSON.

    Args:
        theme, label: begin the files' names; results of one theme can be compared.
        command: words after `python -m bench`, for the record.
        data: name of the images.

    Raises:
        OSError: the folder for the results cannot be written.
    """
    card = record.environment(machine, command)
    stem = record.writable_stem(options.out, f"{theme}-{label}" if label else theme, card)
    settings = {name: value for name, value in asdict(options).items() if name not in options.values("files")}
    display = Session(Result(theme, card, settings | {"compiled": machine.compiled, "data": data}, []), stem)
    for line in [*(f"{name:<10} {value}" for name, value in card.items()), machine.crowded()]:
        if line:
            display.print(line)
    with display.tracker:
        yield display
    files = record.save(display.result, stem)
    if draw:
        files.append(f"{stem}.png")
        draw(display.result).savefig(files[-1], format="png")
    display.console.print(record.table(display.result))
    display.print("wrote " + ", ".join(files))
    print(json_line(asdict(display.result) | {"files": files} | display.more), flush=True)
