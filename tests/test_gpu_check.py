"""bench/gpu_check.sh, with a shell script in place of Python that notes what it is asked."""

import os
import shlex
import subprocess
import sys
import tarfile
import time

import pytest
import torch

from bench.core.record import ROOT
from bench.core.session import parse_speed
from bench.speed.profile import ProfileOptions
from bench.speed.suite import SuiteOptions
from engine.config import parse

WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
SCRIPT = ROOT / "bench" / "gpu_check.sh"
# It fails where its words hold $FAIL, and hangs where they hold $HANG.
FAKE_PYTHON = """#!/bin/bash
if [[ "$*" == *cuda.is_available* ]]; then exit "${NO_GPU:-0}"; fi
if [[ "$1" == -c ]]; then exit 1; fi
echo "$*" >> "$CALLS"
case "$*" in
*"${HANG:-nothing}"*) sleep 60 ;;
*"${FAIL:-nothing}"*) echo "a reason"; exit 3 ;;
train.py*) touch "$OUT/model.pt"; echo '{"test_accuracy": 0.9}' ;;
*e2e*) echo "| end to end |" > "$OUT/bench_gpu_1.md" ;;
esac
"""


@pytest.fixture
def check(tmp_path):
    """Runs the script: exit code, stdout, stderr, the words of each command."""
    python, calls = tmp_path / "python", tmp_path / "calls"
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)

    def run(*parts, script=SCRIPT, **settings):
        calls.write_text("")
        named = {"PYTHON": str(python), "CALLS": str(calls), "OUT": str(tmp_path / "out")}
        env = os.environ | named | settings
        done = subprocess.run(["bash", script, *parts], env=env, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout, done.stderr, calls.read_text().splitlines()

    return run


def test_all_parts_end_in_one_folder_and_an_archive_without_checkpoints(check, tmp_path):
    code, out, errors, calls = check()
    assert (code, errors, len(calls)) == (0, "", 8), out
    summary = (tmp_path / "out" / "summary.md").read_text()
    assert summary.count(": passed, ") == 8
    assert '{"test_accuracy": 0.9}' in summary and "| end to end |" in summary
    with tarfile.open(tmp_path / "out.tar.gz") as archive:
        names = [os.path.basename(name) for name in archive.getnames()]
    assert {"summary.md", "train.log", "bench_gpu_1.md"} <= set(names) and "model.pt" not in names
    for words in map(shlex.split, calls):  # they have flags that there are
        match words:
            case ["train.py", *flags]:
                assert parse(flags, "cpu")[0] == "full"
            case ["-m", "bench", "profile", *flags]:
                parse_speed(ProfileOptions, flags, "", "")
            case ["-m", "bench", *flags]:
                parse_speed(SuiteOptions, flags, "", "")


def test_a_command_that_fails_is_told_and_stops_no_other(check, tmp_path):
    check("tests")
    code, out, _, calls = check("full", "profile", FAIL="gradcam.py")
    assert code == 1 and len(calls) == 3
    assert "heatmaps: failed with exit code 3" in out and "a reason" in out and "profile: passed" in out
    summary = (tmp_path / "out" / "summary.md").read_text()
    assert "heatmaps: failed with exit code 3" in summary and "tests: passed" in summary  # of the call before


def test_a_command_that_hangs_is_ended(check, tmp_path):
    script = tmp_path / "bench" / "gpu_check.sh"
    script.parent.mkdir()
    script.write_text(SCRIPT.read_text().replace("profile profile 90", "profile profile 1"))
    start = time.monotonic()
    code, out, _, _ = check("profile", script=script, HANG="profile")
    assert code == 1 and "profile: stopped at its limit" in out and time.monotonic() - start < 30


@pytest.mark.parametrize(
    ("parts", "settings", "reason"),
    [
        ([], {"NO_GPU": "1"}, "no CUDA GPU"),
        (["tests", "everything"], {}, "part 'everything' is unknown"),
        pytest.param([], {"PYTHON": sys.executable}, "no CUDA GPU", marks=WITHOUT_GPU),
    ],
)
def test_what_cannot_be_is_a_line_and_nothing_is_run(check, tmp_path, parts, settings, reason):
    code, out, errors, calls = check(*parts, **settings)
    (line,) = errors.splitlines()
    assert code == 2 and line.startswith("gpu-check: ") and reason in line
    assert not calls and not out and not (tmp_path / "out").exists()
