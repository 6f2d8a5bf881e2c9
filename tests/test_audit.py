"""audit.py: labels planted wrong are found first, by models that have not seen them; a mistake ends it in one line."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import audit
import train
from engine import checkpoint
from explain import study
from pipeline.dataset import DataSet, open_dataset

ROOT = Path(__file__).resolve().parent.parent
COLOURS = {"blue": (40, 60, 200), "green": (50, 200, 60), "red": (200, 60, 50)}
PLANTED = ("blue/7.png", "green/3.png", "red/11.png")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    """Models of two folds of noisy colours, 60 of each; PLANTED have the colour of the next class."""
    folder, random = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for place, name in enumerate(COLOURS):
        (folder / "pictures" / "train" / name).mkdir(parents=True)
        for i in range(60):
            wrong = f"{name}/{i}.png" in PLANTED
            colour = list(COLOURS.values())[(place + wrong) % 3]
            pixels = (random.normal(colour, 25, (16, 16, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "pictures" / "train" / name / f"{i}.png")
    flags = "pictures --size 16 --resolutions 16 --width 8 --epochs 6 --batch-size 15 --device cpu --threads 1"
    found = [folder / "1.pt", folder / "2.pt"]
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CIFAR10_DIR", str(folder))
        for k, out in enumerate(found, 1):
            own = ["--data", f"{folder}/pictures", "--fold", f"{k}/2", "--out", str(out), "--run-dir", f"{folder}/{k}"]
            train.main([*flags.split(), *own])
        yield found
    torch.set_num_threads(threads)


def data_of(models: list[Path]) -> DataSet:
    return open_dataset(str(models[0].parent / "pictures"), 16)


def test_labels_planted_wrong_come_first(models: list[Path], tmp_path: Path, monkeypatch, capsys):
    asked = []

    def trained(recipe, out, fold):
        asked.append((list(recipe), out, fold))
        return models[len(asked) - 1]

    monkeypatch.setattr(audit, "train", trained)
    recipe = ["--data", str(models[0].parent / "pictures"), "--size", "16"]
    audit.main(["--folds", "2", "--out", str(tmp_path), *recipe])
    assert asked == [(recipe, tmp_path, f"{k}/2") for k in (1, 2)]
    lines = capsys.readouterr().out.splitlines()
    result = json.loads(lines[-1])
    assert lines[0].startswith(f"{result['errors']} of 180 train images are judged otherwise")
    assert "labelled" in lines[1] and "looks like" in lines[1]
    assert result["total"] == 180 and result["split"] == "train"
    worst = [(one["image"].partition("/train/")[2], one["label"], one["predicted"]) for one in result["worst"][:3]]
    assert set(worst) == set(zip(PLANTED, ("blue", "green", "red"), ("green", "red", "blue"), strict=True))
    with open(tmp_path / "errors.csv", newline="") as file:
        rows = {row["file"].partition("/train/")[2]: row for row in csv.DictReader(file)}
    # Not each of them everywhere: a model this sure of all images is as sure as on average of half of them.
    assert any(rows[name]["label_disputed"] == "1" for name in PLANTED)
    assert sum(row["label_disputed"] == "1" for row in rows.values()) == result["disputed"] < 10
    train_part = data_of(models).load("train")
    for row in rows.values():
        assert train_part.files[int(row["index"])] == row["file"]
    assert np.load(tmp_path / "heatmaps.npz")["maps"].shape[0] == len(rows) == result["errors"]
    page = (tmp_path / "labels.html").read_text()
    assert "label disputed" in page and "the labelled class" in page and "--layer" not in page


def test_each_image_is_judged_by_the_model_that_has_not_seen_it(models: list[Path]):
    (first, second), data = (checkpoint.load(path) for path in models), data_of(models)
    together = study.of_folds([second, first], data)
    alone = [study.of_split(study.Explainer.of(one, "cpu", threads=1), one, data) for one in (first, second)]
    files = [file for one in alone for file in one.cases.files]
    assert sorted(together.cases.files) == sorted(files)
    for field in ("logits", "class_maps", "inputs"):
        expected = torch.cat([getattr(one.cases, field) for one in alone])[np.argsort(files)]
        assert torch.equal(getattr(together.cases, field)[np.argsort(together.cases.files)], expected), field
    assert together.matrix is not None and together.matrix.sum() == 180
    assert together.reported == sum(one.reported for one in alone) == len(together.cases)


def test_disputed_is_what_the_model_is_as_sure_of_as_on_average():
    probabilities = np.array([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8], [0.35, 0.65], [0.6, 0.4]])
    labels = np.array([0, 0, 1, 0, 1])
    # Of its own images class 0 has 0.58 on average, class 1 has 0.6.
    assert study.surer(torch.tensor(probabilities).log(), labels).tolist() == [False, False, False, True, True]
    three = torch.tensor([[0.3, 0.3, 0.4], [0.6, 0.4, 0.0]])
    assert not study.surer(three.log(), np.array([0, 0])).any(), "no image of the third class says what it should reach"
    labels[3] = 1  # now class 0 has 0.7, which the last image does not reach
    assert not study.surer(torch.tensor(probabilities).log(), labels).any()


def test_a_model_of_other_classes_or_data_that_have_changed_since_are_refused(models: list[Path]):
    one = checkpoint.load(models[0])
    one.model.classes = ("blue", "green", "pink")
    with pytest.raises(ValueError, match="other classes"):
        study.of_folds([one], data_of(models))
    one.metrics["test_total"] -= 1
    with pytest.raises(ValueError, match="the data have changed"):
        study.of_folds([one], data_of(models))


SAID = {
    "--validate": "leave it out",
    "--run-dir=x": "leave it out",
    "cpu --fold 1/2": "leave it out",
    "--resume auto": "leave it out",
    "--folds 1": "--folds is 1: it must be 2 to 99",
    "--folds 100": "--folds is 100: it must be 2 to 99",
    "--data .": "out lies in ., among what this command reads",
}


@pytest.mark.parametrize("words", SAID)
def test_mistakes_are_told_before_anything_is_made(words: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=SAID[words]):
        audit.main([*words.split(), "--out", "out"])
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_or_is_a_person_s_own_is_told_before_anything_is_trained(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(audit, "train", lambda *_: pytest.fail("trained"))
    foreign = {audit.PAGE: b"<html>mine", "errors.csv": b"path,label", "heatmaps.npz": b"PK\3\4damaged"}
    for name, content in foreign.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} would be overwritten, and is not of this program: move it"):
            audit.main(["--out", str(tmp_path)])
        assert (tmp_path / name).read_bytes() == content
        (tmp_path / name).unlink()
    (tmp_path / audit.PAGE).mkdir()
    with pytest.raises(OSError, match="it is a folder"):
        audit.main(["--out", str(tmp_path)])


def test_a_mistake_in_the_recipe_is_train_py_s_to_tell(tmp_path: Path, capfd):
    wrong = ["smoke", "--translate", "40"]
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        audit.main([*wrong, "--out", str(tmp_path / "out")])
    assert end.value.code == 2
    assert signal.getsignal(signal.SIGTERM) == before, "it ends the audit again"
    error = capfd.readouterr().err
    assert error.startswith("train.py: --translate is 40") and error.count("\n") == 1
    (tmp_path / "out" / "fold-1-of-4").mkdir()
    with pytest.raises(SystemExit):
        audit.main([*wrong, "--out", str(tmp_path / "out")])
    assert capfd.readouterr().err.endswith("name another --out\n")


TRAINING = """import os, signal, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, lambda *_: (Path("told").touch(), sys.exit(128 + 15)))
Path("pid").write_text(str(os.getpid()))
time.sleep(60)
"""


# As if the signal came between the start of the training and the handler.
EARLY = "signal.signal = lambda *_: time.sleep(60)"


@pytest.mark.parametrize(("before", "sent"), [("", signal.SIGKILL), ("", signal.SIGTERM), (EARLY, signal.SIGTERM)])
def test_the_training_ends_however_the_audit_does(tmp_path: Path, before: str, sent: signal.Signals):
    (tmp_path / "train.py").write_text(TRAINING)
    code = f"import audit, signal, time; from pathlib import Path; {before or 'pass'}\n"
    code += "audit.preflight.ROOT = Path.cwd(); audit.train([], Path.cwd(), '1/2')"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment) as process:
        wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        process.send_signal(sent)
    wait_for((tmp_path / "told").exists)
    assert process.returncode == (128 + sent if sent == signal.SIGTERM and not before else -sent)


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
def test_sigterm_stops_the_training_too_and_the_audit_goes_on(tmp_path: Path):
    words = "smoke --width 1 --epochs 30 --threads 1 --folds 2 --out".split()
    command = [sys.executable, str(ROOT / "audit.py"), *words, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        log = tmp_path / "fold-1-of-2" / "log.jsonl"
        wait_for(lambda: log.exists() and log.read_text())
        process.send_signal(signal.SIGTERM)
        error = process.communicate(timeout=60)[1]
    assert error.endswith("audit.py: stopped in fold 1/2; to go on, run audit.py again as before\n")
    assert process.returncode == 128 + signal.SIGTERM
    assert list((tmp_path / "fold-1-of-2").glob("resume-*.pt"))
    assert not (tmp_path / "fold-1-of-2.pt").exists()
    before = log.read_text()
    again = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    assert again.returncode == 0 and json.loads(again.stdout.splitlines()[-1])["total"] == 2048
    assert log.read_text().startswith(before) and len(log.read_text().splitlines()) == 30
