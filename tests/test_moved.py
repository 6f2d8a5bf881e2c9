"""Pictures that moved, that changed, or that a file of a stranger names: what every command says of them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import export
import gradcam
from engine import checkpoint
from ground.entry import execute
from run import resume
from tests.commands import call

ROOT = Path(__file__).resolve().parents[1]
QUICK = "pictures --size 8 --resolutions 8 --width 2 --epochs 2 --batch-size 6 --device cpu --threads 1".split()


@pytest.fixture(scope="module")
def made(tmp_path_factory, request):
    """A folder with pictures of two classes, a model of these, and the state of a run that stopped in its middle."""
    folder = tmp_path_factory.mktemp("moved")
    rng = np.random.default_rng(0)
    for label in ("bus", "car"):
        for i in range(20):
            path = folder / "holiday" / label / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).save(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("CIFAR10_DIR", str(folder / "cache"))
        patch.setattr(resume.Keeper, "end_epoch", lambda own: own.save())
        import train

        threads = torch.get_num_threads()
        train.main([*QUICK, "--data", "holiday", "--run-dir", "run"])
        torch.set_num_threads(threads)
    return folder


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """A copy of it all to work in."""
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("CIFAR10_DIR", str(tmp_path / "here" / "cache"))
    return tmp_path / "here"


def entry(capsys, module, *words):
    sys.argv = [module.__name__, *words]
    with pytest.raises(SystemExit) as end:
        execute(module.main, module.__name__)
    out, err = capsys.readouterr()
    return end.value.code, out, err


COMMANDS = [(gradcam, "--device cpu --out a.png"), (export, "--out a.safetensors")]


@pytest.mark.parametrize(("module", "words"), COMMANDS)
def test_pictures_that_moved_are_found_by_data_if_they_are_the_same(place, capsys, module, words):
    os.rename("holiday", "elsewhere")
    code, _, err = entry(capsys, module, *words.split())
    assert code == 2 and "names the pictures in holiday, which are not there: say by --data" in err
    assert entry(capsys, module, *words.split(), "--data", "elsewhere")[0] == 0
    image = next(Path("elsewhere/car").iterdir())
    image.write_bytes(image.read_bytes() + b" ")
    for data in ("elsewhere", "generated"):
        code, _, err = entry(capsys, module, *words.split(), "--data", data)
        assert code == 2 and "these are not the pictures of model.pt" in err


@pytest.mark.parametrize(("module", "words"), COMMANDS)
@pytest.mark.parametrize("named", ["/", "secrets", "~", "generated:1/9999999", "generated:9999999/1"])
def test_what_a_strangers_checkpoint_names_is_not_searched(place, capsys, monkeypatch, module, words, named):
    (place / "secrets" / "a").mkdir(parents=True)
    loaded = checkpoint.load("model.pt")
    checkpoint.save_model("model.pt", loaded.model, replace(loaded.config, data=named), loaded.metrics)
    monkeypatch.setattr(os, "scandir", lambda *args: pytest.fail("a folder was searched"))
    code, _, err = entry(capsys, module, *words.split())
    assert code == 2 and err.count("\n") == 1
    assert f"names the pictures in {named}, which " in err or " lies in /, among what this command reads" in err


def test_pictures_that_moved_serve_a_run_and_an_export_needs_none(place, capsys):
    first = sorted(Path("run").glob("resume-*.pt"))[0]
    os.rename("holiday", "elsewhere")
    words = ["--resume", str(first), "--device", "cpu", "--threads", "1", "--out", "again.pt"]
    code, _, err = call(capsys, *words)
    assert code == 2 and "names the pictures in holiday, which are not there: say by --data" in err
    assert call(capsys, *words, "--data", "elsewhere")[0] == 0
    old, new = (checkpoint.load(name).model.state_dict() for name in ("model.pt", "again.pt"))
    assert all(torch.equal(old[name], new[name]) for name in old)
    code, out, _ = entry(capsys, export, "--out", "a.safetensors", "--random")
    result = json.loads(out.splitlines()[-1])
    assert code == 0 and result["checked_images"] == 256 and result["size"] == "8"


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_picture_that_goes_between_stop_and_resume_is_noticed(place, capsys, part):
    first = sorted(Path("run").glob("resume-*.pt"))[0]
    from pipeline.dataset import open_dataset

    os.remove(open_dataset("holiday", 8).load(part).files[0])
    code, _, err = call(capsys, "--resume", str(first), "--device", "cpu", "--threads", "1")
    assert code == 2 and "trained on other data" in err.splitlines()[-1]


def test_pretrained_on_what_is_held_out_is_told_by_content(place, capsys):
    """By another path, as a copy and as a table; and a fold of it, whose other pictures are new."""
    shutil.copytree("holiday", "copy")
    rows = [f"copy/{label}/{i}.png,{label}" for label in ("bus", "car") for i in range(20)]
    Path("table.csv").write_text("path,label\n" + "\n".join(rows))
    words = [*QUICK[1:], "--epochs", "1", "--pretrained", "model.pt", "--out", "b.pt", "--run-dir", "b"]
    for data in ("holiday", f"{place}/../here/holiday", "copy", "table.csv"):
        code, _, err = call(capsys, "pictures", *words, "--data", data, "--fold", "1/2")
        assert code == 2 and "was trained on" in err.splitlines()[-1] and "of the " in err
        assert not Path("b").exists()
    assert call(capsys, "pictures", *words, "--data", "copy")[0] == 0, "its test pictures were not trained on"


def test_a_model_that_another_program_writes_meanwhile_stays(place, capsys, monkeypatch):
    from engine.learner import Learner

    real = Learner.train_step

    def writes(own, *batch):
        Path("c.pt").write_bytes(b"another's")
        real(own, *batch)

    monkeypatch.setattr(Learner, "train_step", writes)
    code, out, _ = call(capsys, *QUICK, "--data", "holiday", "--out", "c.pt", "--run-dir", "runs/c")
    assert code == 0 and "another program has written c.pt meanwhile: this model goes to c-c.pt" in out
    assert Path("c.pt").read_bytes() == b"another's"
    assert json.loads(out.splitlines()[-1])["checkpoint"] == "c-c.pt" and checkpoint.load("c-c.pt").model.width == 2


def test_a_checkpoint_that_says_no_size_is_taken_at_its_resolution(place, capsys):
    loaded = checkpoint.load("model.pt")
    checkpoint.save_model("model.pt", loaded.model, replace(loaded.config, size=0), loaded.metrics)
    assert entry(capsys, gradcam, "--images", "holiday/bus", "--device", "cpu", "--out", "own.png")[0] == 0
    assert entry(capsys, export, "--random", "--out", "a.safetensors")[0] == 0


@pytest.mark.slow
def test_ctrl_c_while_decoding_ends_it_soon(place):
    Image.effect_noise((6000, 4000), 9).save("large.jpg")
    for i in range(600):  # more than a minute of a core
        Path(f"holiday/car/large{i}.jpg").write_bytes(Path("large.jpg").read_bytes() + bytes(i))
    command = [sys.executable, str(ROOT / "train.py"), *QUICK, "--data", "holiday"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(6)
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        said = process.communicate(timeout=60)[1]
    assert process.returncode in (130, -2) and "Traceback" not in said
    assert time.monotonic() - start < 8


def test_outputs_take_nothing_of_a_persons(place, capsys, monkeypatch):
    Path("mine.pt").write_bytes(b"my own file")
    Path("table.csv").write_text("path,label\nholiday/bus/1.png,bus\nholiday/car/1.png,car\n")
    for words, said in (
        (["--data", "table.csv", "--out", "table.csv"], "is what this command reads"),
        (["--data", "holiday", "--out", "mine.pt"], "is not of this program"),
        (["--data", "holiday", "--out", "holiday/bus/1.png"], "among what this command reads"),
        (["--data", "holiday", "--run-dir", "holiday/run"], "among what this command reads"),
    ):
        before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
        code, _, err = call(capsys, *QUICK, *words)
        assert code == 2 and said in err and err.count("\n") == 1
        assert before == {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
