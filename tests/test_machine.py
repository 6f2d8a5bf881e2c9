"""engine/machine.py: what is said where other programs use the cores."""

import time

import pytest
import torch

import train
from bench.recipe import accuracy
from engine.distributed import World
from engine.machine import Machine, busy_cores

SMALL = "smoke --epochs 1 --resolutions 8 --width 4 --threads 1 --data generated:256/128".split()


def test_busy_cores_are_those_of_other_programs_on_the_cores_this_one_may_use(tmp_path, monkeypatch):
    count = tmp_path / "stat"
    before = ["cpu 9 9 9 9", "cpu0 100 10 20 5000 7 1 2 900 0 0", "cpu1 5 5 5 5 5 5 5", "cpu3 1 1 1 1 1 1 1 1 1 1"]
    after = ["cpu 9 9 9 99", "cpu0 110 10 25 5020 9 2 4 990 8 8", "cpu1 25 5 5 5 5 5 5", "cpu3 1 5 1 9 9 2 2 1 1 1"]
    count.write_text("\n".join([*before, "intr 1 2 3 4 5 6 7 8"]))
    monkeypatch.setattr("engine.machine.CORE_TIMES", count)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 3})
    monkeypatch.setattr(time, "sleep", lambda seconds: count.write_text("\n".join(after)))
    assert busy_cores(0.2) == pytest.approx((10 + 5 + 1 + 2 + 4 + 1 + 1) / 100 / 0.2)
    monkeypatch.setattr("engine.machine.CORE_TIMES", tmp_path / "none")
    assert busy_cores() == 0


@pytest.mark.parametrize(
    ("cores", "threads", "busy", "advised"),
    [(2, 2, 0.4, 0), (2, 2, 0.9, 1), (2, 2, 2.0, 1), (2, 1, 2.0, 0), (8, 8, 3.1, 5), (8, 4, 3.1, 0), (8, 4, 5.0, 3)],
)
def test_more_threads_than_free_cores_are_told(monkeypatch, cores, threads, busy, advised):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(cores)))
    monkeypatch.setattr("engine.machine.busy_cores", lambda: busy)
    said = Machine(torch.device("cpu"), threads=threads).crowded()
    assert (f"use --threads {advised}" in said and f"{busy} of the {cores} cores" in said) if advised else said == ""
    assert not Machine(torch.device("cuda"), threads=threads).crowded()
    assert not Machine(torch.device("cpu"), threads=threads, world=World(size=2)).crowded()


def test_train_and_bench_say_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Machine, "crowded", lambda self: "other programs keep the cores busy")
    train.main([*SMALL, "--out", str(tmp_path / "model.pt"), "--run-dir", str(tmp_path / "run")])
    assert "other programs keep the cores busy" in "".join(capsys.readouterr())
    accuracy.main([*SMALL, "--seeds", "1", "--out", str(tmp_path)])
    assert "other programs keep the cores busy" in "".join(capsys.readouterr())
