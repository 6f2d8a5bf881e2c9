"""Commands that run in processes of their own, with a time limit, and what they report."""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import perf_counter
from typing import Any

from bench.core.record import ROOT
from ground.mistake import Mistake

MEANWHILE = 10.0  # seconds


def completed(
    command: Sequence[str], limit: float, meanwhile: Callable[[], object] = lambda: None, **how: Any
) -> subprocess.CompletedProcess[str]:
    """Run a command in the project's folder; what stops the wait ends it with all that it started.

    Args:
        limit: seconds, 0 or more.
        meanwhile: called every ten seconds until then.
        how: more arguments for Popen.

    Raises:
        TimeoutExpired: it did not end within the limit.
    """
    end = perf_counter() + limit
    process = subprocess.Popen(command, cwd=ROOT, text=True, start_new_session=True, **how)
    try:
        while True:
            left = max(0.0, end - perf_counter())
            try:
                out, error = process.communicate(timeout=min(left, MEANWHILE))
                break
            except subprocess.TimeoutExpired:
                if left <= MEANWHILE:
                    raise
                meanwhile()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return subprocess.CompletedProcess(command, process.returncode, out, error)


def reported(words: Sequence[str], limit: float) -> dict[str, Any]:
    """The last line, JSON, of `python *words`.

    Args:
        limit: seconds after which it is ended.

    Raises:
        ValueError: it failed, with the line of its stderr that says why, or did not end in time.
    """
    command = f"python {shlex.join(words)}"
    try:
        done = completed([sys.executable, *words], limit, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except subprocess.TimeoutExpired:
        raise Mistake(f"{command} did not end within {limit:.0f} s") from None
    reports = last_json(done.stdout)
    if done.returncode or not reports:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        why = next((line for line in said if line.startswith(("bench: ", "bench, rank"))), said[-1])
        raise Mistake(f"{command} ended with exit code {done.returncode}: {why}")
    return reports[0]


def last_json(text: str) -> list[dict[str, Any]]:
    """The last line of `text` that is a JSON object, in a list; [] if there is none."""
    for line in reversed(text.splitlines()):
        if line.startswith("{") and line.endswith("}"):
            with suppress(json.JSONDecodeError):  # a dict that Python printed looks alike
                return [json.loads(line)]
    return []
