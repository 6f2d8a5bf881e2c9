"""What the tests of bench/ share: tiny settings, and what a command prints last."""

import json
from pathlib import Path

import torch

from bench.core import record
from bench.core.record import Row
from bench.core.session import SpeedOptions, parse_speed
from bench.core.setup import Setup, prepare

CPU = torch.device("cpu")
SMALL = ["--quick", "--data", "generated", "--width", "8", "--resolutions", "8", "--device", "cpu", "--threads", "1"]
TINY = [*SMALL, "--batch-size", "16"]


def silent(what: str) -> None: ...


def tiny() -> Setup:
    return prepare(parse_speed(SpeedOptions, TINY, "", ""))


def last_line(capsys):
    """The report, and all that was printed."""
    out = capsys.readouterr().out
    return json.loads(out.splitlines()[-1]), out


def recorded(capsys, pictures=1):
    """The report in the last line and its rows, which its record has too; so many pictures lie beside."""
    report, _ = last_line(capsys)
    rows = [Row(**row) for row in report["rows"]]
    data, _, *drawn = report["files"]
    assert record.load(data).rows == rows
    assert [Path(file).read_bytes()[:4] for file in drawn] == [b"\x89PNG"] * pictures
    return report, rows
