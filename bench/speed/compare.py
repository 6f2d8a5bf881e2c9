"""Two results side by side: what differs by more than the measurements' own noise.

    python -m bench compare A.json B.json

A difference counts when it exceeds both 3% and the sum of the two spreads between quartiles; of percentages and points
the spreads alone decide, and what has no quartiles is judged by 10%.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich import box
from rich.markup import escape
from rich.table import Table

from bench.core import record
from bench.core.record import Result, Row
from ground.mistake import Mistake
from ground.terminal import stdout_console

LEAST = 0.03
LEAST_WITHOUT_QUARTILES = 0.10


@dataclass(frozen=True)
class Difference:
    part: str
    name: str
    unit: str
    a: float | None
    b: float | None
    ratio: float | None
    """b over a."""
    verdict: str


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
    found = compare(a, b)
    console.print(table(found, *arguments), markup=False)
    different = [d for d in found if d.verdict in ("more", "less")]
    console.print(f"{len(different)} of {len(found)} differ by more than the noise" if different else "no difference")
    print(json.dumps({"differences": len(different), "rows": [asdict(d) for d in found]}))


def compare(a: Result, b: Result) -> list[Difference]:
    """Every row of either result, in the order of `a`."""
    new = {(row.part, row.name): row for row in b.rows}
    old = {(row.part, row.name): row for row in a.rows}
    return [difference(old.get(key), new.get(key)) for key in {**old, **new}]


def difference(a: Row | None, b: Row | None) -> Difference:
    """Verdict "no difference", "more", "less", or what is missing, of `b` against `a`; one of them may be None."""
    row = a or b
    assert row is not None
    before, after = (a.value if a else None), (b.value if b else None)
    if before is None or after is None or not a or not b:
        gone = "not measured" if before is None and after is None else "only in A" if after is None else "only in B"
        return Difference(row.part, row.name, row.unit, before, after, None, gone)
    if before == after:
        return Difference(row.part, row.name, row.unit, before, after, 1.0, "no difference")
    least, width = LEAST_WITHOUT_QUARTILES, 0.0
    if a.width is not None and b.width is not None:
        least, width = 0.0 if row.unit in ("%", "points") else LEAST, a.width + b.width
    quotient = after / before if before else None
    differs = abs(after - before) > max(least * min(abs(before), abs(after)), width)
    verdict = ("more" if after > before else "less") if differs else "no difference"
    return Difference(row.part, row.name, row.unit, before, after, quotient, verdict)


def table(found: Sequence[Difference], a: str, b: str) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, title=escape(f"A: {a}\nB: {b}"), title_justify="left")
    shown.add_column("measured")
    for name in ("A", "B", "B / A"):
        shown.add_column(name, justify="right")
    shown.add_column("verdict")
    for d in found:
        quotient = "" if d.ratio is None else f"{d.ratio:.3f}"
        values = [f"{record.number(v, d.unit)} {d.unit}" if v is not None else record.ABSENT for v in (d.a, d.b)]
        bold = "bold" if d.verdict in ("more", "less") else ""
        shown.add_row(f"{d.part}: {d.name}", *values, quotient, d.verdict, style=bold)
    return shown
