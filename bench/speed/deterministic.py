"""What `--deterministic` costs: the compute part once more, in a process that keeps to algorithms that repeat.

    python -m bench --only deterministic

It is a process of its own because cuBLAS reads its setting when it starts.
"""

import tempfile

from bench.core.record import Row, reported
from bench.core.setup import Say, Setup

PART = "deterministic"
NAME = "training with --deterministic over training without"
LIMIT = 300.0  # seconds a process


def measure_deterministic(setup: Setup, say: Say) -> list[Row]:
    """Images/s of the real train_step with and without `--deterministic`, and their quotient; nothing on a CPU.

    Raises:
        ValueError: one of the two processes failed.
    """
    if not setup.cuda:
        return [Row(PART, NAME, "x", note="needs a CUDA GPU: a CPU repeats bit for bit without it")]
    rates = {}
    for deterministic in (False, True):
        say("with --deterministic" if deterministic else "without --deterministic")
        rates[deterministic] = _rate(setup, deterministic)
    name = f"synthetic batch of {setup.batch_size}, {setup.side} px, {setup.precision}"
    return [
        Row(PART, f"{name}, {'with' if on else 'without'} --deterministic", "images/s", rate)
        for on, rate in rates.items()
    ] + [Row(PART, NAME, "x", rates[True] / rates[False])]


def command(setup: Setup, deterministic: bool, out: str) -> list[str]:
    """The compute part alone, with the setup's settings."""
    config = setup.config
    flags = [
        *("--only", "compute", "--out", out, "--batch-size", str(setup.batch_size), "--resolution", str(setup.side)),
        *("--depth", str(config.depth), "--width", str(config.width), "--device", setup.device.type),
        *("--precision", setup.precision, "--threads", str(setup.threads)),
        *("--compile", "on" if setup.compiled else "off"),
    ]
    switches = {
        "--quick": setup.quick,
        "--generated": config.generated,
        "--deterministic": deterministic,
    }
    return ["-m", "bench", *flags, *(switch for switch, on in switches.items() if on)]


def _rate(setup: Setup, deterministic: bool) -> float:
    with tempfile.TemporaryDirectory() as folder:
        rows = reported(command(setup, deterministic, folder), LIMIT)["rows"]
    return float(next(row["value"] for row in rows if row["part"] == "compute" and row["unit"] == "images/s"))
