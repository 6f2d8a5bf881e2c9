"""A measurement's record: rows, the environment card, and the files they go to.

docs/results/THEME_HARDWARE_DATE.json holds it whole, with a Markdown twin to read. A row without a value was not
measured; nothing is typed in.
"""

import json
import re
import shlex
import subprocess
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Self

from rich import box
from rich.table import Table

from bench.core.clock import Rate
from engine import schema
from engine.machine import Machine
from ground.files import check_writable, read_bounded, write_whole
from ground.mistake import Mistake
from ground.spread import Spread

FORMAT = "cifar10-resnet measurement"
VERSION = 2
OLD_NAMES = {"q1": "low", "q3": "high"}  # of a row's fields in version 1
ABSENT = "not measured"
# What a row's value and its bounds are, by theme.
MEANING = {
    "accuracy": "means and quartiles over seeds",
    "curve": "accuracies of one training each, and one standard error of so many images either side",
    "profile": "means over steps",
    "ablation": "mean gains over pairs, and one standard error either side",
}
GAIN = "gain of "  # begins the name of a row that another row's note repeats
ROOT = Path(__file__).resolve().parents[2]


def _line(value: Any) -> bool:
    return schema.text(10_000)(value) and value.isprintable()  # so it moves no cursor


def _plain(value: Any) -> bool:
    return _line(value) or type(value) is bool or schema.NUMBER(value)


# What may stand in a result's file: anybody could have made it.
MOST_BYTES = 10_000_000
FORM: dict[str, schema.Check] = {
    "format": (FORMAT,).__contains__,
    "version": lambda value: value in (1, VERSION),
    "theme": _line,
    "card": schema.named(_line, 100),
    "settings": schema.named(lambda value: _plain(value) or schema.many(_plain, 1000)(value), 1000),
    "rows": schema.many(lambda value: type(value) is dict, 100_000),
}
ROW_FORM: dict[str, schema.Check] = dict.fromkeys(("part", "name", "unit", "note"), _line)
ROW_FORM |= dict.fromkeys(("value", "low", "high"), lambda value: value is None or schema.NUMBER(value))


@dataclass(frozen=True)
class Row:
    """One measured thing."""

    part: str
    name: str
    unit: str
    value: float | None = None
    """None is not measured."""
    low: float | None = None
    """The value's bounds: as `Result.meaning` says, quartiles, or one standard error either side."""
    high: float | None = None
    note: str = ""

    @classmethod
    def of(cls, part: str, name: str, unit: str, spread: Spread, note: str = "") -> Self:
        return cls(part, name, unit, spread.median, spread.q1, spread.q3, note)

    @classmethod
    def of_rate(cls, part: str, name: str, rate: Rate, note: str = "", unit: str = "images/s") -> Self:
        """With a remark where warm-up did not become steady."""
        unsteady = "" if rate.steady else "warm-up did not become steady"
        return cls.of(part, name, unit, rate, "; ".join(filter(None, [note, unsteady])))


@dataclass(frozen=True)
class Result:
    theme: str
    card: dict[str, str]
    settings: dict[str, Any]
    rows: list[Row]

    @property
    def meaning(self) -> str:
        return MEANING.get(self.theme, "medians and quartiles over laps")


def environment(machine: Machine, command: Sequence[str]) -> dict[str, str]:
    """What a number must carry to mean something; `command` follows `python -m bench`."""
    return {
        "command": shlex.join(["python", "-m", "bench", *command]),
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": commit(),
        "device": machine.device.type,
        "precision": machine.precision,
        "threads": str(machine.threads),
        **machine.card(),
    }


def commit(folder: Path = ROOT) -> str:
    """The checkout's commit, "and changes" where files but results differ; unknown without git."""

    def git(*command: str) -> str:
        return subprocess.check_output(["git", "-C", folder, *command], stderr=subprocess.DEVNULL, text=True).strip()

    try:
        changes = git("status", "--porcelain", "--", ".", ":(exclude)docs/results")
        return git("rev-parse", "--short=12", "HEAD") + (" and changes" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def writable_stem(folder: str, name: str, card: dict[str, str]) -> Path:
    """Path of the files to come, without suffix, in a folder that can be written, or else OSError."""
    hardware = card.get("gpu") or f"{card['cores']} cores {card['cpu']}"
    slug = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\(\w+\)", "", hardware.lower())).strip("-")
    Path(folder).mkdir(parents=True, exist_ok=True)
    stem = Path(folder) / f"{name}_{slug}_{datetime.now():%Y%m%d-%H%M%S}"
    check_writable(stem.with_suffix(".json"))
    return stem


def save(result: Result, stem: Path) -> list[str]:
    """Write the JSON and the Markdown; returns their paths."""
    content = json.dumps({"format": FORMAT, "version": VERSION} | asdict(result), indent=1) + "\n"
    files = {f"{stem}.json": content, f"{stem}.md": markdown(result)}
    for path, text in files.items():
        write_whole(Path(path), text.encode())
    return list(files)


def load(path: str) -> Result:
    """Read a result back; raises OSError where there is no plain file, Mistake where it is none."""
    content = read_bounded(path, MOST_BYTES)
    try:
        values = json.loads(content)
        schema.require(values, FORM, "the result")
        rows = [{OLD_NAMES.get(key, key): value for key, value in row.items()} for row in values["rows"]]
        for place, row in enumerate(rows, 1):
            schema.require(row, ROW_FORM, f"row {place}")
    except (ValueError, RecursionError) as error:
        raise Mistake(f"{path} is not a result of `python -m bench`: {error}") from None
    return Result(values["theme"], values["card"], values["settings"], [Row(**row) for row in rows])


def selection(only: str, known: Collection[str], what: str) -> list[str]:
    """The names in `--only`, or all where it is empty; raises Mistake where one is no known `what`."""
    names = [name.strip() for name in only.split(",")] if only else list(known)
    for name in names:
        if name not in known:
            raise Mistake(f"--only: {what} {name!r} is unknown: it must be of {', '.join(known)}")
    return names


def number(value: float | None, unit: str) -> str:
    """A value as people read it, without its unit."""
    if value is None:
        return ABSENT
    plain = ".3g" if value and abs(value) < 100 else ",.0f"
    return format(value, {"%": ".4g", "points": "+.2f"}.get(unit, plain))


def cells(rows: Iterable[Row]) -> Iterator[tuple[str, str, str, str, str]]:
    """Part, name, value with unit, bounds, note; no gains, which notes of the ladder's rungs repeat."""
    for row in rows:
        value = ABSENT if row.value is None else f"{number(row.value, row.unit)} {row.unit}".strip()
        spread = "" if row.low is None else f"{number(row.low, row.unit)} to {number(row.high, row.unit)}"
        if not row.name.startswith(GAIN):
            yield row.part, row.name, value, spread, row.note


def table(result: Result) -> Table:
    """For the terminal, one section a part."""
    grid = Table(box=box.SIMPLE_HEAD, title=f"{result.theme}: {result.meaning}", title_justify="left")
    for header in ("measured", "value", "spread", "note"):
        grid.add_column(header, justify="right" if header in ("value", "spread") else "left")
    for part, rows in groupby(cells(result.rows), itemgetter(0)):
        grid.add_row(part, style="bold")
        for _, name, *rest in rows:
            grid.add_row(f"  {name}", *rest)
        grid.add_section()
    return grid


def markdown(result: Result) -> str:
    """The table and the card."""
    lines = [f"# {result.theme}: {result.card.get('gpu') or result.card.get('cpu', '')}", ""]
    lines += [f"`{result.card['command']}`, {result.card['date']}, commit {result.card['commit']}", ""]
    lines += [f"Values: {result.meaning}.", "", "| part | measured | value | spread | note |", "|---|---|---|---|---|"]
    for row in cells(result.rows):
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |")
    for title, pairs in (("environment", result.card), ("setting", result.settings)):
        lines += ["", f"| {title} | |", "|---|---|", *(f"| {key} | {value} |" for key, value in pairs.items())]
    return "\n".join(lines) + "\n"
