"""train.py as a user meets it: what it writes, what it says, and how it refuses. Generated images, width 8."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch

import train
from engine import checkpoint
from engine.config import PRESETS
from engine.learner import Learner, evaluate
from engine.machine import Machine
from pipeline.dali import evaluation_loader
from pipeline.synthetic import generated
from run import resume
from tests.commands import call, refused

CPU = torch.device("cpu")
ENTRY = Path(train.__file__)
LICENSE = ENTRY.with_name("LICENSE")
FEW = ["--data", "generated:256/128"]
QUICK = "smoke --epochs 2 --resolutions 16 --device cpu --precision fp32 --threads 1".split() + FEW


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_a_run_learns_and_leaves_what_it_promises(capsys, monkeypatch):
    made, real = [], Learner.__init__

    def counted(own, *arguments):
        made.append(own)
        real(own, *arguments)

    monkeypatch.setattr(Learner, "__init__", counted)
    Path("far").mkdir()
    Path("link.pt").symlink_to("far/model.pt")
    given = ["--epochs", "4", "--batch-size", "16", "--run-dir", "runs/a", "--out", "link.pt"]
    code, out, _ = call(capsys, *QUICK, *given)
    assert code == 0
    assert len(made) == 1, "no throwaway models to guess how long it will take"
    summary = json.loads(out.splitlines()[-1])
    assert summary["test_accuracy"] > 0.8
    assert {"test_accuracy_tta", "train_seconds", "images_per_second", "data_seconds", "eval_seconds"} <= set(summary)
    rows = [json.loads(line) for line in Path("runs/a/log.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["reported_accuracy"] == summary["test_accuracy"]
    names = {path.name for path in Path("runs/a").iterdir()}
    assert {"config.json", "log.jsonl", "curves.png", "predictions.npz"} <= names
    assert any(name.startswith("events.out") for name in names)
    assert Path("link.pt").is_symlink(), "a link for the model is followed"
    loaded = checkpoint.load("far/model.pt")
    assert loaded.metrics["test_correct"] == round(summary["test_accuracy"] * 128)
    assert loaded.metrics["precision"] == "fp32"
    assert (loaded.config.epochs, loaded.config.out) == (4, "link.pt")
    assert "ResNet" in out
    assert "\x1b" not in out
    with np.load("runs/a/predictions.npz") as kept:
        test = generated(128, seed=1)
        p = loaded.model.predict(torch.from_numpy(test.images)).numpy()
        assert np.array_equal(kept["predicted"], p.argmax(1))
        assert np.array_equal(kept["labels"], test.labels)
        assert kept["probability"] == pytest.approx(p.max(1), abs=5e-3)  # DALI resizes otherwise
        assert (kept["files"][7], kept["contents"].shape) == ("test image 7", (0,))
        assert tuple(kept["classes"]) == test.classes


def test_an_epoch_is_evaluated_at_its_own_resolution_and_the_model_at_the_last(capsys, monkeypatch):
    seen = []
    real = Learner.evaluate

    def noted(own, batches, flip, *others):
        kept = list(batches)
        seen.append((kept[0][0].shape[-1], flip))
        return real(own, kept, flip, *others)

    monkeypatch.setattr(Learner, "evaluate", noted)
    code, out, _ = call(capsys, *QUICK, "--epochs", "3", "--resolutions", "8", "16", "16", "--run-dir", "run")
    assert code == 0
    assert seen == [(8, False), (16, False), (16, False), (16, True)]
    rows = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    assert [row["resolution"] for row in rows] == [8, 16, 16]
    test = evaluation_loader(generated(128, seed=1), 16, CPU, 1)
    plain = evaluate(checkpoint.load("model.pt").model, test, Machine(CPU))
    summary = json.loads(out.splitlines()[-1])
    assert plain.correct == summary["test_correct"]
    assert plain.loss == pytest.approx(summary["test_loss"])
    assert summary["test_accuracy"] == rows[-1]["reported_accuracy"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cpux"], "preset 'cpux' is unknown"),
        (["smoke", "--epochs", "0"], "--epochs is 0"),
        (["smoke", "--max-lr", "-1"], "--max-lr is -1.0"),
        (["smoke", "--epochz", "3"], "--epochz"),
        (["smoke", "--epochs", "three"], "three"),
        (["smoke", "--batch-size", "300", *FEW], "--batch-size is 300: it must be 1 to 256"),
        (["smoke", "--translate", "17"], "--translate is 17: it must be 0 to 16 for images of 32 pixels"),
        (["smoke", "--data", "pictures/of/cats"], "--data is pictures/of/cats: it must be cifar10, generated"),
        (["smoke", "--resolutions", "4"], "--resolutions is (4,)"),
        (["smoke", "--out", "missing/model.pt"], "missing"),
        (["smoke", "--out", "."], "it is a folder"),
        (["smoke", "--out=~/model.pt"], "write the home folder out"),
        (["smoke", "--out", "resume-00000099.pt"], "--out is resume-00000099.pt"),
        (["smoke", *FEW, "--threads", "1024"], "--threads is 1024: it must be 0 to "),
        (["smoke", *FEW, "--muon-lr", "1e308"], "--muon-lr is too large"),
        (["smoke", *FEW, "--muon-lr", "0.1", "--bias-lr-scale", "1e308"], "--bias-lr-scale or --muon-lr is too large"),
        (["smoke", "--resume", "none.pt"], "none.pt: No such file or directory"),
        ([f"--resume={LICENSE}"], "LICENSE is not a resume checkpoint"),
        (["smoke", "--precision", "fp16", "--device", "cpu"], "--precision is fp16 on a CPU"),
    ],
)
def test_bad_input_is_one_message_and_exit_2(capsys, tmp_path, arguments, message):
    code, _, err = call(capsys, *arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_test_loss_that_is_not_finite_is_said_and_never_saved(capsys, monkeypatch):
    real = Learner.evaluate
    monkeypatch.setattr(Learner, "evaluate", lambda *a: replace(real(*a), loss=float("inf")))
    assert "test images is not finite after step 4" in refused(capsys, *QUICK, "--run-dir", "run")
    assert not Path("model.pt").exists()


def test_a_full_disk_at_the_end_keeps_the_old_model_and_the_resume_state(capsys, monkeypatch):
    assert call(capsys, *QUICK, "--epochs", "1")[0] == 0
    old, full = Path("model.pt").read_bytes(), OSError(28, "No space left on device", "model.pt")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_model", Mock(side_effect=full))
        code, _, err = call(capsys, *QUICK, "--epochs", "1", "--seed", "1", "--run-dir", "second")
    assert (code, err) == (2, "train.py: model.pt: No space left on device\n")
    assert Path("model.pt").read_bytes() == old
    state = resume.find("second", "")
    assert (state.config.seed, len(state.rows)) == (1, 1)
    assert call(capsys, "--resume", "second")[0] == 0
    assert checkpoint.load("model.pt").config.seed == 1


def test_presets_are_for_real_data_but_smoke():
    assert {name for name, config in PRESETS.items() if config.data != "cifar10"} == {"smoke"}
    assert not any(config.validate for config in PRESETS.values())


def test_help_names_every_setting_and_prints_no_traceback(tmp_path):
    result = subprocess.run([sys.executable, ENTRY, "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0
    for flag in ("--epochs", "--max-lr", "--resolutions", "--validate", "--resume", "|".join(PRESETS)):
        assert flag in result.stdout
    assert "all biases, those of norms and of the last layer" in " ".join(result.stdout.replace("│", " ").split())
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("machine", "code", "line"),
    [
        ("exec 1>&-", 0, ""),
        ("exec 1>&- 2>&-", 0, ""),
        ("export PYTHONOPTIMIZE=2", 2, "NVIDIA DALI does not work without docstrings: unset PYTHONOPTIMIZE"),
        ("ulimit -v 4000000", 2, "ulimit -v leaves 4.1 GB of address space"),
    ],
)
def test_an_odd_machine_is_taken_or_gets_one_line(tmp_path, machine, code, line):
    command = [sys.executable, str(ENTRY), *QUICK, "--epochs", "1", "--run-dir", "run"]
    shell = ["sh", "-c", f'{machine}; exec "$@"', "sh", *command]
    result = subprocess.run(shell, capture_output=True, text=True, cwd=tmp_path)
    assert (result.returncode, (tmp_path / "model.pt").exists()) == (code, code == 0), result.stderr
    assert line in result.stderr and result.stderr.count("\n") == bool(line)
