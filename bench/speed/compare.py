"""Two results side by side: what differs by more than the measurements' own noise.

    python -m bench compare A.json B.json

A difference counts when it exceeds both 3% and the sum of the two spreads between quartiles; of percentages and points
the spreads alone decide, and what has no quartiles is judged by 10%.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich import box
from rich.table import Table

from bench.core import record
from bench.core.record import Result, Row
from ground.mistake import Mistake
from ground.terminal import json_line, printable, stdout_console

LEAST = 0.03
LEAST_WITHOUT_QUARTILES = 0.10
SAME = "no difference"


@dataclass(frozen=True)
class Difference:
    part: str
    name: str
    unit: str
    a: float | None
    b: float | None
    verdict: str  # SAME, more, less, or what is missing
    ratio: float | None = None  # b over a


def main(arguments: Sequence[str]) -> None:
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return
    if len(arguments) != 2:
        raise Mistake(f"compare takes two results, not {len(arguments)}: python -m bench compare A.json B.json")
    a, b = map(record.load, arguments)
    if a.theme != b.theme:
        raise Mistake(f"{arguments[0]} is a {a.theme} and {arguments[1]} a {b.theme}: compare two of a kind")
    console = stdout_console()
    for what, old, new in (("card", a.card, b.card), ("settings", a.settings, b.settings)):
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key) and key not in ("date", "command"):
                line = f"{what} differs: {key} {old.get(key, 'absent')} -> {new.get(key, 'absent')}"
                console.print(line, soft_wrap=True, markup=False)
    rows = compare(a, b)
    for name, path in zip("AB", arguments, strict=True):
        console.print(printable(f"{name}: {path}"), soft_wrap=True, markup=False)
    console.print(table(rows), markup=False)
    count = sum(row.verdict in ("more", "less") for row in rows)
    console.print(f"{count} of {len(rows)} differ by more than the noise" if count else SAME)
    print(json_line({"differences": count, "rows": [asdict(row) for row in rows]}))


def compare(a: Result, b: Result) -> list[Difference]:
    """All rows of either result, those of `a` first."""
    old, new = ({(row.part, row.name): row for row in result.rows} for result in (a, b))
    differences = []
    for key, row in (old | new | old).items():
        absent = Row(*key, row.unit)
        differences.append(difference(old.get(key, absent), new.get(key, absent)))
    return differences


def difference(a: Row, b: Row) -> Difference:
    """`b` against `a`."""
    subject = a.part, a.name, a.unit, a.value, b.value
    if a.value is None or b.value is None:
        missing = record.ABSENT if a.value is b.value else "only in A" if b.value is None else "only in B"
        return Difference(*subject, missing)
    least, width = LEAST_WITHOUT_QUARTILES, 0.0
    widths = [row.high - row.low for row in (a, b) if row.low is not None and row.high is not None]
    if len(widths) == 2:
        least, width = 0.0 if a.unit in ("%", "points") else LEAST, sum(widths)
    differs = abs(b.value - a.value) > max(least * min(abs(a.value), abs(b.value)), width)
    verdict = ("more" if b.value > a.value else "less") if differs else SAME
    return Difference(*subject, verdict, b.value / a.value if a.value else None)


def table(rows: Sequence[Difference]) -> Table:
    grid = Table(box=box.SIMPLE_HEAD)
    for header in ("measured", "A", "B", "B / A", "verdict"):
        grid.add_column(header, justify="left" if header in ("measured", "verdict") else "right")
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
        values = (f"{record.number(v, row.unit)} {row.unit if v is not None else ''}" for v in (row.a, row.b))
        style = "bold" if row.verdict in ("more", "less") else ""
        grid.add_row(f"{row.part}: {row.name}", *values, ratio, row.verdict, style=style)
    return grid
