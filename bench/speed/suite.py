"""`python -m bench`: all parts in order, with a bar, a table, a chart, and the files of results."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from bench.core import chart, record
from bench.core.record import Result, Row
from bench.core.setup import Say, Settings, Setup, parse, prepare
from bench.speed.deterministic import measure_deterministic
from bench.speed.ladder import measure_ladder
from bench.speed.resources import measure_resources
from bench.speed.roofline import measure_roof
from bench.speed.throughput import measure_compute, measure_data, measure_end_to_end, measure_evaluation


@dataclass(frozen=True, kw_only=True)
class Options(Settings):
    only: str = ""
    """Parts to measure, separated by commas: resources, data, compute, e2e, ladder, deterministic, evaluation,
    roof (default: all)."""


@dataclass(frozen=True)
class Part:
    measure: Callable[[Setup, Say, list[Row]], list[Row]]
    share: float
    """Of the whole time on a CPU, for the ETA until the first parts tell better."""


PARTS: dict[str, Part] = {
    # First, so that nothing is compiled and no memory is taken yet.
    "resources": Part(lambda setup, say, _: measure_resources(setup, say), 10),
    "data": Part(lambda setup, say, _: measure_data(setup, say), 50),
    "compute": Part(lambda setup, say, _: measure_compute(setup, say), 25),
    "e2e": Part(lambda setup, say, _: measure_end_to_end(setup, say), 25),
    "ladder": Part(lambda setup, say, _: measure_ladder(setup, say), 90),
    "deterministic": Part(lambda setup, say, _: measure_deterministic(setup, say), 1),
    "evaluation": Part(lambda setup, say, _: measure_evaluation(setup, say), 25),
    "roof": Part(lambda setup, say, rows: measure_roof(setup, say, _trained(rows)), 10),
}


def main(arguments: Sequence[str]) -> None:
    options = parse(Options, arguments, "python -m bench", DESCRIPTION)
    names = chosen_parts(options.only)
    setup = prepare(options)
    stem = record.writable_stem(options.out, "bench", setup.device)
    console = stdout_console()
    card = record.environment(setup.device, setup.precision, arguments)
    for name, value in card.items():
        console.print(f"{name:<10} {value}", soft_wrap=True, markup=False)
    rows: list[Row] = []
    result = Result("bench", card, settings_of(setup), rows)
    start = perf_counter()
    with steps_shown(console, [PARTS[name].share for name in names]) as (say, finished):
        for name in names:
            rows += PARTS[name].measure(setup, partial(say_in, name, say), rows)
            finished()
            record.save(result, stem)
    rows.append(Row("in all", "this command after imports", "s", perf_counter() - start))
    record.save(result, stem)
    finish(result, stem, console, chart.draw_bench)


def chosen_parts(only: str) -> list[str]:
    """Names of parts in their own order.

    Raises:
        ValueError: a part is unknown.
    """
    wanted = record.named(only, PARTS, "part")
    return [name for name in PARTS if name in wanted]


def finish(result: Result, stem: Path, console: Console, draw: Callable[[Result, Path], None] | None = None) -> None:
    """Draw the picture of a result that is saved, show the table, and close with one line of JSON."""
    files = [str(stem.with_suffix(suffix)) for suffix in (".json", ".md")]
    if draw:
        picture = stem.with_suffix(".png")
        draw(result, picture)
        files.append(str(picture))
    console.print(record.table(result.rows, f"{result.theme}: {result.meaning}"))
    console.print("wrote " + ", ".join(files), soft_wrap=True, markup=False)
    print(record.summary_line(result, files=files), flush=True)


def stdout_console() -> Console:
    """A table needs its width in a pipe too; control characters only where stdout is a terminal."""
    live = sys.stdout.isatty()
    return Console(force_terminal=live, highlight=False, width=None if live else 140)


@contextmanager
def steps_shown(console: Console, shares: Sequence[float]) -> Iterator[tuple[Say, Callable[[], None]]]:
    """A bar with ETA, drawn only when something new begins: (say what is measured now, say that a part is finished).

    A thread that redraws would take the interpreter from what is being measured.
    """
    done = [0.0]
    start = perf_counter()
    left = list(shares)

    def eta() -> str:
        if not done[0]:
            return "--:--"
        seconds = round((perf_counter() - start) / done[0] * (sum(shares) - done[0]))
        return f"{seconds // 60}:{seconds % 60:02d}"

    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("ETA {task.fields[eta]}"),
        console=console,
        auto_refresh=False,
        transient=True,
    )
    task = bar.add_task("", total=sum(shares), eta=eta())

    def say(what: str) -> None:
        if console.is_terminal:
            bar.update(task, description=what, eta=eta(), refresh=True)
        else:
            console.print(f"{perf_counter() - start:5.0f} s  {what}", soft_wrap=True, markup=False)

    def finished() -> None:
        done[0] += left.pop(0)
        bar.update(task, completed=done[0], eta=eta(), refresh=console.is_terminal)

    if console.is_terminal:
        with bar:
            yield say, finished
    else:
        yield say, finished


def say_in(part: str, say: Say, what: str) -> None:
    """Say it with the part's name in front."""
    say(f"{part}: {what}")


def _trained(rows: list[Row]) -> float | None:
    """The best images/s of the real train_step measured before."""
    training = (row for row in rows if row.part in ("end to end", "compute") and row.unit == "images/s")
    return max((row.value for row in training if row.value), default=None)


def settings_of(setup: Setup) -> dict[str, object]:
    """What was measured, for the record."""
    kept = ("batch_size", "resolutions", "depth", "width", "translate", "flip", "cutout", "lookahead", "deterministic")
    settings = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(setup.config).items() if k in kept}
    return settings | {"compiled": setup.compiled, "quick": setup.quick, "data": setup.split.name}


DESCRIPTION = "Images per second on this machine: loaders, model, both, and how far that is from the roof."
