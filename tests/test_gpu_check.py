"""The GPU check on scripts that pass, fail and hang, and whole on a CPU."""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import gpu_check
from bench.core import record
from ground.entry import execute

CARD = {"command": "c", "date": "d", "cpu": "some"}
WRITES_A_RESULT = """
import sys; sys.path.insert(0, {root!r})
from pathlib import Path
from bench.core import record
row = record.Row("data", "measured before the end", "images/s", 7.0)
record.save(record.Result("bench", {{"command": "c", "date": "d", "commit": "x"}}, {{}}, [row]), Path({stem!r}))
import time; time.sleep(60)
"""


def checked(tmp_path, card=CARD, **scripts):
    """The outcomes of parts that run these scripts, each a list with its time limit at the end."""
    work = Path(tempfile.mkdtemp(dir=tmp_path))
    parts = {
        name: gpu_check.Part(work / name, [(sys.executable, "-S", "-c", script) for script in each], limit)
        for name, (*each, limit) in scripts.items()
    }
    summary = gpu_check.Summary(tmp_path, tmp_path, ["a", "b", "c", "d"], card)
    gpu_check.run_parts(parts, tmp_path, summary, {"CACHE": "here"})
    return summary.outcomes


def packed(path):
    """What an archive holds, by name."""
    with tarfile.open(path) as archive:
        return {name: archive.extractfile(name).read() for name in archive.getnames()}  # type: ignore[union-attr]


def test_a_part_that_fails_or_hangs_loses_nothing(tmp_path):
    start = time.perf_counter()
    outcomes = checked(
        tmp_path,
        a=('print(\'hello\')\nprint(\'{"accuracy": 0.5, "name": "x"}\')', 20),
        b=("print('{\"first\": 1.0}')", "raise SystemExit('a reason')", "print('never')", 20),
        c=("import subprocess, time; subprocess.Popen(['sleep', '60']); time.sleep(60)", 0.5),
        d=("import os; print('{\"cache\": \"' + os.environ['CACHE'] + '\"}')", 20),
    )
    assert time.perf_counter() - start < 15
    assert [outcomes[name].said == gpu_check.PASSED for name in "abcd"] == [True, False, False, True]
    assert outcomes["a"].reports == [{"accuracy": 0.5, "name": "x"}] and outcomes["b"].reports == [{"first": 1.0}]
    assert "limit" in outcomes["c"].said and outcomes["d"].reports == [{"cache": "here"}]
    logs = {name: packed(tmp_path / f"{name}.tar.gz")[f"{name}.log"].decode() for name in "abcd"}
    assert "hello" in logs["a"] and "never" not in logs["b"] and not list(tmp_path.glob("*.log"))
    text = (tmp_path / "summary.md").read_text()
    assert "| accuracy | 0.5 |" in text and "failed with exit code 1" in text and "stopped at its limit" in text
    assert "a reason" in text and "hello" not in text  # what went wrong can be read without unpacking


def test_what_was_measured_before_the_limit_reaches_the_summary_also_while_it_runs(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.core.process.MEANWHILE", 0.2)
    seen = []

    class Watched(gpu_check.Summary):
        def note(self, name, outcome):
            super().note(name, outcome)
            seen.append((tmp_path / "summary.md").read_text())

    part = gpu_check.Part(tmp_path / "part", [], 15)
    script = WRITES_A_RESULT.format(root=str(record.ROOT), stem=str(part.folder / "bench_x"))
    part = replace(part, commands=[(sys.executable, "-c", script)])
    gpu_check.run_parts({"a": part}, tmp_path, Watched(tmp_path, tmp_path, ["a"], CARD), dict(os.environ))
    assert any("| a | running |" in text and "measured before the end" in text for text in seen)
    assert "stopped at its limit" in seen[-1] and "measured before the end" in seen[-1]


def test_a_later_call_keeps_the_parts_of_earlier_ones_on_the_same_machine_and_commit(tmp_path):
    checked(tmp_path, a=("pass", 20))
    assert "| b | not measured yet |" in (tmp_path / "summary.md").read_text()
    outcomes = checked(tmp_path, CARD | {"date": "later"}, b=("raise SystemExit(3)", 20))
    assert {name: outcome.said for name, outcome in outcomes.items()} == {
        "a": "passed",
        "b": "failed with exit code 3",
    }
    assert "| a | passed |" in (tmp_path / "summary.md").read_text()
    assert list(checked(tmp_path, CARD | {"cpu": "another"}, c=("pass", 20))) == ["c"]


def test_a_pack_holds_all_but_checkpoints(tmp_path):
    folder = tmp_path / "work"
    (folder / "run").mkdir(parents=True)
    for name in ("model.pt", "gallery.png", "run/state.pt", "run/log.jsonl"):
        (folder / name).write_text(name)
    (tmp_path / "full.log").write_text("said")
    gpu_check.pack(tmp_path, "full", folder)
    assert set(packed(tmp_path / "full.tar.gz")) == {"full.log", "full/gallery.png", "full/run/log.jsonl"}
    assert not (tmp_path / "full.log").exists()


def test_without_a_gpu_the_check_says_so(tmp_path, monkeypatch, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setattr(sys, "argv", ["bench", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as exit:
        execute(gpu_check.main, "bench")
    assert exit.value.code == 2 and "no usable NVIDIA GPU" in capsys.readouterr().err


def test_every_command_of_the_check_exists_and_two_calls_of_ten_minutes_hold_them(tmp_path):
    every = gpu_check.parts(tmp_path, "cuda", quick=False)
    for call in ("tests,full,dali", "bench,profile"):
        assert f"--only {call}" in gpu_check.__doc__
        assert sum(every.pop(name).limit for name in call.split(",")) <= 590  # 10 s to start and to pack
    assert not every
    for part in gpu_check.parts(tmp_path, "cuda", quick=False).values():
        for python, *command in part.commands:
            assert python == sys.executable
            assert command[0] == "-m" or (record.ROOT / command[0]).exists()


@pytest.mark.slow
def test_the_whole_check_on_a_cpu(tmp_path):
    out = tmp_path / "out"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "bench", "gpu-check", "--device", "cpu", "--quick"),
            *("--out", str(out), "--work", str(tmp_path / "work")),
        ],
        cwd=record.ROOT, capture_output=True, text=True, timeout=540,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert all(outcome["said"] == "passed" for outcome in report["parts"].values())
    text = (out / "summary.md").read_text()
    assert "DALI over synthetic" in text and "test_accuracy" in text and "top over bottom" in text
    files = list(out.iterdir())
    assert len(files) <= 8 and all(file.stat().st_size < 16 * 2**20 for file in files)
    assert any(name.endswith(".trace.json.gz") for name in packed(out / "profile.tar.gz"))
