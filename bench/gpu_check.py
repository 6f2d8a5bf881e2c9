"""Everything that only a machine with a CUDA GPU can show, in one folder, in at most 14 minutes.

    python -m bench gpu-check --out gpu-check
    python -m bench gpu-check --only bench --patience 3      # a first run also compiles

In order: the GPU tests; 20 epochs of the `full` preset and its gallery; each kind of DALI graph against the synthetic
batch; the bench; the profile. Each part is a process of its own with a time limit, and none stops the next. summary.md
is written anew after each. All parts share one compile cache: TORCHINDUCTOR_CACHE_DIR, by default in the folder.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import tyro

from bench.core.record import ABSENT, ROOT, Result, Row, environment, last_json, named, row_lines
from engine import runtime
from engine.checkpoint import check_writable

NO_TESTS = 5  # pytest's exit code when it found none


@dataclass(frozen=True, kw_only=True)
class Options:
    out: str = "gpu-check"
    """Folder for all that is written."""
    only: str = ""
    """Parts to run, separated by commas: tests, full, dali, bench, profile (default: all)."""
    device: Literal["cuda", "cpu"] = "cuda"
    """cpu tries the machinery."""
    quick: bool = False
    """Small settings: seconds a part on a GPU."""
    patience: float = 1.0
    """Multiplies each part's time limit."""


@dataclass(frozen=True)
class Part:
    commands: tuple[tuple[str, ...], ...]
    """One after the other, while each succeeds."""
    limit: float
    """Seconds for all of them."""


@dataclass(frozen=True)
class Outcome:
    said: str
    """"passed", or what went wrong."""
    seconds: float
    limit: float
    reports: list[dict[str, Any]] = field(default_factory=list)
    """The last line of JSON of each command that printed one."""

    @property
    def passed(self) -> bool:
        return self.said == "passed"


def main(arguments: Sequence[str]) -> None:
    description = (__doc__ or "").split("\n\n")[0]
    options = tyro.cli(Options, args=list(arguments), prog="python -m bench gpu-check", description=description)
    if not 0 < options.patience <= 100:
        raise ValueError(f"--patience is {options.patience}: it must be above 0 and at most 100")
    device = runtime.pick_device(options.device)
    out = Path(options.out).absolute()
    every = parts(out, options.device, options.quick)
    names = named(options.only, every, "part")
    out.mkdir(parents=True, exist_ok=True)
    check_writable(out / "summary.md")
    card = environment(device, runtime.pick_precision(device), ["gpu-check", *arguments])
    chosen = {name: part for name, part in every.items() if name in names}
    outcomes = run_parts(chosen, out, card, options.patience)
    report = {"out": str(out), "card": card, "parts": {name: asdict(outcome) for name, outcome in outcomes.items()}}
    print(json.dumps(report), flush=True)
    if not all(outcome.passed for outcome in outcomes.values()):
        raise SystemExit(1)


def parts(out: Path, device: str, quick: bool) -> dict[str, Part]:
    """The commands of each part, in order."""
    python = sys.executable
    model = str(out / "model.pt")
    preset = "smoke" if quick else "full"
    train = (python, "train.py", preset, "--device", device, "--out", model, "--run-dir", str(out / "run"))
    explain = (python, "gradcam.py", "--ckpt", model, "--out", str(out / "gallery.png"), "--device", device)
    small = ("--quick", "--generated", "--width", "8", "--resolution", "16", "--batch-size", "32") if quick else ()
    sizes = ("32", "64") if quick else ("512", "1024", "2048")
    bench = (python, "-m", "bench", "--device", device, "--out", str(out), *small)
    loaders = (python, "-m", "bench", "loaders", "--device", device, "--out", str(out), *small[:-2])
    profile = (python, "-m", "bench", "profile", "--device", device, "--out", str(out / "profile"), *small)
    tests = (python, "-m", "pytest", "-m", "gpu", "--continue-on-collection-errors", "-p", "no:cacheprovider")
    return {
        "tests": Part((tests,), 90),
        "full": Part((train, explain), 150),
        "dali": Part(((*loaders, "--batch-sizes", *sizes),), 180),
        "bench": Part((bench,), 300),
        "profile": Part((profile,), 90),
    }


def run_parts(chosen: dict[str, Part], out: Path, card: dict[str, str], patience: float = 1.0) -> dict[str, Outcome]:
    """Run all parts, whatever becomes of each; output goes to PART.log, the summary to summary.md."""
    settings = {"TORCHINDUCTOR_CACHE_DIR": str(out / "compile-cache")} | os.environ
    outcomes: dict[str, Outcome] = {}
    for name, part in chosen.items():
        print(f"{name}: at most {part.limit * patience:.0f} s", flush=True)
        outcomes[name] = run_part(part, out / f"{name}.log", settings, patience)
        print(f"{name}: {outcomes[name].said}, {outcomes[name].seconds:.0f} s", flush=True)
        (out / "summary.md").write_text(summary(outcomes, card, list(chosen)), encoding="utf-8")
    return outcomes


def run_part(part: Part, log: Path, settings: dict[str, str], patience: float) -> Outcome:
    """Run its commands within the limit; a command that runs past it is ended with all that it started."""
    start = perf_counter()
    limit = part.limit * patience
    reports: list[dict[str, Any]] = []
    said = "passed"
    with log.open("wb") as file:
        for command in part.commands:
            file.write(f"$ {shlex.join(command)}\n".encode())
            file.flush()
            begin = file.tell()
            process = subprocess.Popen(
                command, cwd=ROOT, env=settings, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
            try:
                code = process.wait(max(0.0, limit - (perf_counter() - start)))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                said = f"stopped at its limit of {limit:.0f} s"
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
            else:
                if code and not ("pytest" in command and code == NO_TESTS):
                    said = f"failed with exit code {code}"
            file.seek(0, os.SEEK_END)
            reports += last_json(log.read_bytes()[begin:].decode(errors="replace"))
            if said != "passed":
                break
    return Outcome(said, perf_counter() - start, limit, reports)


def summary(outcomes: dict[str, Outcome], card: dict[str, str], names: Sequence[str]) -> str:
    """Markdown: how each part ended, then its figures."""
    lines = [f"# GPU check: {card.get('gpu') or card.get('cpu', '')}", "", f"`{card['command']}`, {card['date']}", ""]
    lines += ["| part | outcome | seconds | limit | output |", "|---|---|---|---|---|"]
    for name in names:
        if outcome := outcomes.get(name):
            lines.append(f"| {name} | {outcome.said} | {outcome.seconds:.0f} | {outcome.limit:.0f} | {name}.log |")
        else:
            lines.append(f"| {name} | {ABSENT} yet | | | |")
    lines += ["", "| environment | |", "|---|---|", *(f"| {key} | {value} |" for key, value in card.items())]
    for name, outcome in outcomes.items():
        for report in outcome.reports:
            lines += ["", f"## {name}", "", *figures(report)]
    return "\n".join(lines) + "\n"


def figures(report: dict[str, Any]) -> list[str]:
    """A table of a command's report: its rows, or its plain numbers."""
    if "rows" in report and "theme" in report:
        result = Result(report["theme"], report["card"], report["settings"], [Row(**row) for row in report["rows"]])
        return row_lines(result)
    numbers = {k: v for k, v in report.items() if isinstance(v, int | float | str) and not isinstance(v, bool)}
    shown = {k: f"{v:.5g}" if isinstance(v, float) else str(v) for k, v in numbers.items()}
    return ["| figure | |", "|---|---|", *(f"| {key} | {value} |" for key, value in shown.items())]
