"""Everything that only a machine with a CUDA GPU can show, in a folder of at most eight files to bring back.

    python -m bench gpu-check                             # 20 minutes at most
    python -m bench gpu-check --only tests,full,dali      # or in two calls of less than ten minutes each
    python -m bench gpu-check --only bench,profile
    python -m bench gpu-check --only bench --patience 3   # a first run also compiles

In order: the GPU tests; 20 epochs of the `full` preset and its gallery; training fed by DALI on the GPU and on the CPU,
against the synthetic batch; the bench, and what --deterministic costs; the profile. Each part has a time limit and runs
in processes of its own; none stops the next. summary.md holds what was measured so far, also when this is killed, and
the parts of earlier calls on the same machine and commit. Beside it lies PART.tar.gz: all that a part wrote,
checkpoints apart. Everything else stays in the folder --work, the compile cache of all parts too (unless
TORCHINDUCTOR_CACHE_DIR names another).
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import tyro

from bench.core import record
from bench.core.process import completed, last_json
from bench.core.record import Result, Row
from engine.config import PRESETS
from engine.machine import Machine
from ground.files import check_writable, write_whole
from ground.mistake import Mistake

NO_TESTS = 5  # pytest's exit code when it found none
LOG_LINES = 20  # of a part that failed, in the summary
PASSED, RUNNING = "passed", "running"


@dataclass(frozen=True, kw_only=True)
class Options:
    out: str = "gpu-check"
    """Folder for summary.md and one archive a part."""
    work: str = "runs/gpu-check"
    """Folder for everything else."""
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
    folder: Path
    """New: for all that it writes."""
    commands: Sequence[Sequence[str]]
    """One after the other, while each succeeds."""
    limit: float
    """Seconds for all of them."""


@dataclass(frozen=True)
class Outcome:
    said: str
    """PASSED, RUNNING, or what went wrong."""
    seconds: float
    limit: float
    reports: list[dict[str, Any]]
    """Results of the bench, and the last line of JSON of other commands."""
    end_of_log: str
    """Where something went wrong."""


def main(arguments: Sequence[str]) -> None:
    description = (__doc__ or "").split("\n\n")[0]
    options = tyro.cli(Options, args=list(arguments), prog="python -m bench gpu-check", description=description)
    if not 0 < options.patience <= 100:
        raise Mistake(f"--patience is {options.patience}: it must be above 0 and at most 100")
    machine = Machine.of(replace(PRESETS["full"], device=options.device))
    out, work = Path(options.out).absolute(), Path(options.work).absolute()
    every = parts(work / f"{datetime.now():%Y%m%d-%H%M%S}", options.device, options.quick)
    names = record.named(options.only, every, "part")
    for folder in (out, work):
        folder.mkdir(parents=True, exist_ok=True)
        check_writable(folder / "summary.md")
    summary = Summary(out, work, list(every), record.environment(machine, ["gpu-check", *arguments]))
    settings = {"TORCHINDUCTOR_CACHE_DIR": str(work / "compile-cache")} | os.environ
    chosen = {name: replace(part, limit=part.limit * options.patience) for name, part in every.items() if name in names}
    run_parts(chosen, out, summary, settings)
    print(json.dumps(summary.content() | {"out": str(out)}), flush=True)
    if not all(summary.outcomes[name].said == PASSED for name in chosen):
        raise SystemExit(1)


def parts(work: Path, device: str, quick: bool) -> dict[str, Part]:
    """The commands of each part, in order."""
    python = sys.executable
    at = {name: work / name for name in ("tests", "full", "dali", "bench", "profile")}
    # For so small a network a second thread is slower on a busy machine.
    where = ("--device", device, *(("--threads", "1") if quick else ()))
    model, run, picture = (str(at["full"] / name) for name in ("model.pt", "run", "gallery.png"))
    train = (python, "train.py", "smoke" if quick else "full", *where, "--out", model, "--run-dir", run)
    explain = (python, "gradcam.py", *where, "--ckpt", model, "--out", picture)
    small = "--quick --data generated --width 8 --resolutions 16".split() if quick else ()

    def bench(name: str, *command: str, size: int = 32 if quick else 512) -> tuple[str, ...]:
        flags = (*where, "--out", str(at[name]), "--batch-size", str(size), *small)
        return python, "-m", "bench", *command, *flags

    fed = [bench("dali", "--only", "e2e", size=size) for size in ((32, 64) if quick else (512, 2048))]
    tests = [python, "-m", "pytest", "-m", "gpu", "--continue-on-collection-errors", "-p", "no:cacheprovider"]
    if find_spec("xdist"):
        tests += ["-n", "4"]
    return {
        "tests": Part(at["tests"], [tests], 240),
        "full": Part(at["full"], [train, explain], 150),
        "dali": Part(at["dali"], fed, 180),
        "bench": Part(at["bench"], [bench("bench"), bench("bench", "--only", "compute", "--deterministic")], 500),
        "profile": Part(at["profile"], [bench("profile", "profile")], 90),
    }


def run_parts(chosen: dict[str, Part], out: Path, summary: "Summary", settings: dict[str, str]) -> None:
    """Run all parts, whatever becomes of each."""
    for name, part in chosen.items():
        print(f"{name}: at most {part.limit:.0f} s", flush=True)
        outcome = run_part(part, out / f"{name}.log", settings, partial(summary.note, name))
        pack(out, name, part.folder)
        summary.note(name, outcome)
        print(f"{name}: {outcome.said}, {outcome.seconds:.0f} s", flush=True)


def run_part(part: Part, log: Path, settings: dict[str, str], note: Callable[[Outcome], None]) -> Outcome:
    """Run its commands within the limit; one that runs past it is ended with all that it started.

    Args:
        settings: environment variables.
        note: told every ten seconds how far it is.
    """
    start = perf_counter()
    said, reports = PASSED, list[dict[str, Any]]()
    part.folder.mkdir(parents=True)

    def outcome(said: str) -> Outcome:
        """With the results that lie in the part's folder, also those of a command that was stopped."""
        found = [asdict(record.load(str(path))) for path in sorted(part.folder.rglob("*_*.json"))]
        end = "" if said in (PASSED, RUNNING) else "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])
        return Outcome(said, perf_counter() - start, part.limit, [*reports, *found], end)

    with log.open("wb") as file:
        for command in part.commands:
            file.write(f"$ {shlex.join(command)}\n".encode())
            file.flush()
            begin = file.tell()
            try:
                code = completed(
                    command, part.limit - (perf_counter() - start), lambda: note(outcome(RUNNING)),
                    env=settings, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                ).returncode  # fmt: skip
                if code and not ("pytest" in command and code == NO_TESTS):
                    said = f"failed with exit code {code}"
            except subprocess.TimeoutExpired:
                said = f"stopped at its limit of {part.limit:.0f} s"
            file.seek(0, os.SEEK_END)
            last = last_json(log.read_bytes()[begin:].decode(errors="replace"))
            reports += [report for report in last if "theme" not in report]  # the bench's lie in the folder
            if said != PASSED:
                break
    return outcome(said)


def pack(out: Path, name: str, folder: Path) -> None:
    """Move PART.log and what lies in the part's folder, checkpoints apart, into PART.tar.gz."""
    log, packed = out / f"{name}.log", out / f"{name}.tar.gz"
    temporary = folder / packed.name
    with tarfile.open(temporary, "w:gz") as archive:
        archive.add(log, log.name)
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.suffix != ".pt" and path != temporary:
                archive.add(path, Path(name) / path.relative_to(folder))
    shutil.move(temporary, packed)
    log.unlink()


class Summary:
    """summary.md, written anew with each outcome: of this call's parts, and of earlier ones' with the same card."""

    def __init__(self, out: Path, work: Path, names: Sequence[str], card: dict[str, str]) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self._out, self._kept, self._names, self._card = out, work / "outcomes.json", names, card
        if self._kept.exists():
            before = json.loads(self._kept.read_text(encoding="utf-8"))
            if all(before["card"].get(key) == value for key, value in card.items() if key not in ("command", "date")):
                self.outcomes = {name: Outcome(**outcome) for name, outcome in before["parts"].items()}

    def content(self) -> dict[str, Any]:
        """The environment's card and the outcome of each part."""
        return {"card": self._card, "parts": {name: asdict(outcome) for name, outcome in self.outcomes.items()}}

    def note(self, name: str, outcome: Outcome) -> None:
        """Take the outcome down, and write."""
        self.outcomes[name] = outcome
        write_whole(self._kept, json.dumps(self.content()).encode())
        write_whole(self._out / "summary.md", self.text().encode())

    def text(self) -> str:
        """Markdown: how each part ended, then its figures."""
        card = self._card
        lines = [f"# GPU check: {card.get('gpu') or card.get('cpu', '')}", ""]
        lines += [f"`{card['command']}`, {card['date']}", ""]
        lines += ["| part | outcome | seconds | limit | output |", "|---|---|---|---|---|"]
        for name in self._names:
            packed = self._out / f"{name}.tar.gz"
            size = f"{packed.name}, {packed.stat().st_size / 2**20:.1f} MiB" if packed.exists() else ""
            if one := self.outcomes.get(name):
                lines.append(f"| {name} | {one.said} | {one.seconds:.0f} | {one.limit:.0f} | {size} |")
            else:
                lines.append(f"| {name} | {record.ABSENT} yet | | | |")
        lines += ["", *record.pair_lines("environment", card)]
        for name, one in self.outcomes.items():
            if one.end_of_log:
                lines += ["", f"## {name}: the end of its log", "", "```", one.end_of_log, "```"]
            for report in one.reports:
                lines += ["", f"## {name}", "", *figures(report)]
        return "\n".join(lines) + "\n"


def figures(report: dict[str, Any]) -> list[str]:
    """A table of a command's report: its rows, or its plain numbers."""
    if "theme" in report:
        return record.row_lines(Result(**report | {"rows": [Row(**row) for row in report["rows"]]}))
    numbers = {k: v for k, v in report.items() if isinstance(v, int | float | str) and not isinstance(v, bool)}
    return record.pair_lines("figure", {k: f"{v:.5g}" if isinstance(v, float) else v for k, v in numbers.items()})
