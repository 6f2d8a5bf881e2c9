"""tests/fuzz.py in small, and that it sees what it is to see."""

import json
import mmap
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("fuzz.py")


def counts(folder, kinds):
    command = [sys.executable, str(SCRIPT), "--inputs", "60", "--only", kinds]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    return done.returncode, json.loads(done.stdout.splitlines()[-1]), done.stdout + done.stderr


@pytest.mark.slow
def test_forged_and_damaged_files_are_read_right_or_refused(tmp_path):
    code, found, out = counts(tmp_path, "model,state,weights,picture,table,measured")
    assert code == 0, out
    assert all(of_kind["right"] and of_kind["refused"] and not of_kind["defects"] for of_kind in found.values())
    assert all(found[kind]["checks"] > 10 for kind in ("model", "state", "weights"))


@pytest.mark.slow
def test_a_damaged_cache_is_decoded_again(tmp_path):
    assert counts(tmp_path, "cache")[0] == 0


def missing(path):
    raise KeyError(path)


def written(path):
    path.parents[3].joinpath("x").write_text("")


def silent(path):
    raise ValueError


def dear(path):
    """Not from the heap, which may hold freed memory of the tests before."""
    pages = mmap.mmap(-1, 300_000_000)
    for place in range(0, len(pages), mmap.PAGESIZE):
        pages[place] = 1


ACTS = {
    "KeyError": missing,
    "open of": written,
    "subprocess.Popen": lambda path: subprocess.run(["true"]),
    "dear": dear,
    "no line": silent,
    "the process ended with 3": lambda path: os._exit(3),
    "refused: invalid literal for int() with base 10: ": lambda path: int(path.read_text()),
    "right": lambda path: time.sleep(0.01),
    "it is refused, but: right": lambda path: None,
    "it is right, but: refused": lambda path: int(path.read_text()),
}


def test_each_verdict_is_told_from_the_others(tmp_path):
    from tests import fuzz

    class Kind:
        suffix, seconds, megabytes = ".x", 2.0, 200.0

        def make(self, rng: random.Random, path: Path) -> tuple[str, str]:
            path.write_text("text")
            name = list(ACTS)[int(path.parent.name)]
            return {"it is refused, but: right": "refused", "it is right, but: refused": "right"}.get(name, ""), name

        def use(self, path: Path, name: str) -> None:
            ACTS[name](path)

    (tmp_path / "place").mkdir()
    found: dict[int, str] = {}
    wanted = list(ACTS)
    while len(found) < len(wanted):
        found |= fuzz.read_some(Kind(), range(len(found), len(wanted)), "seed", tmp_path / "place")
    assert [name in found[i] for i, name in enumerate(wanted)] == [True] * len(wanted), found
    assert not (tmp_path / "x").exists()
