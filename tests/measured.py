"""What the tests of bench/ share: tiny settings, and what a command prints last."""

import json

import torch

from bench.core.session import SpeedOptions, parse_speed
from bench.core.setup import Setup, prepare

CPU = torch.device("cpu")
SMALL = ["--quick", "--data", "generated", "--width", "8", "--resolutions", "8", "--device", "cpu", "--threads", "1"]
TINY = [*SMALL, "--batch-size", "16"]


def tiny() -> Setup:
    return prepare(parse_speed(SpeedOptions, TINY, "", ""))


def last_line(capsys):
    """The report, and all that was printed."""
    out = capsys.readouterr().out
    return json.loads(out.splitlines()[-1]), out
