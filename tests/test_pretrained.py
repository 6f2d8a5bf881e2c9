"""`--pretrained`: what is taken from a finished model, and what is refused."""

from pathlib import Path

import pytest
import torch

from engine import checkpoint
from engine.config import Config
from engine.model import create
from pipeline.synthetic import load
from run.pretrained import OWN, start_from
from tests.commands import call, refused, weights

RUN = "smoke --data generated:256/64 --epochs 2 --resolutions 16 --precision fp32 --threads 1".split()

STILL = "--max-lr 1e-30 --muon-lr 0 --weight-decay 0".split()


@pytest.fixture(autouse=True)
def first(tmp_path: Path, monkeypatch) -> Path:
    """A finished model of width 4, and another file."""
    monkeypatch.chdir(tmp_path)
    config = Config(width=4, data="generated:256/64", seed=9)
    checkpoint.save_model("first.pt", create(config, load("train", 64, 64)), config, {})
    Path("log.jsonl").write_text("{}")
    return tmp_path / "first.pt"


def test_all_weights_but_the_last_layer_s_are_taken(first: Path):
    model = create(Config(width=4), load("train", 64, 64))
    before, theirs = {k: v.clone() for k, v in model.state_dict().items()}, weights(first)
    start_from(model, checkpoint.load(first))
    for name, value in model.state_dict().items():
        assert torch.equal(value, (before if name.startswith(OWN) else theirs)[name]), name
    assert {name for name in before if name.startswith(OWN)} == {"fc.weight", "fc.bias", "mean", "std"}


def test_a_run_starts_there_with_its_width_and_other_classes(first: Path, capsys):
    """With steps of nothing the filters stay what they were."""
    code, out, _ = call(capsys, *RUN, *STILL, "--pretrained", "first.pt", "--run-dir", "second", "--out", "second.pt")
    assert code == 0 and "width 4, from first.pt" in out
    assert checkpoint.load("second.pt").config.width == 4
    old, new = weights(first), weights("second.pt")
    assert all(torch.allclose(old[name], new[name], rtol=0, atol=1e-20) for name in old if "conv" in name)
    assert not torch.equal(old["fc.weight"], new["fc.weight"])


def test_it_is_not_read_again_when_the_run_goes_on(first: Path, capsys):
    given = [*RUN, "--pretrained", "first.pt", "--resume", "auto", "--run-dir"]
    assert call(capsys, *given, "whole", "--out", "whole.pt")[0] == 0
    assert call(capsys, *given, "cut", "--out", "cut.pt", "--checkpoint-every", "0")[0] == 0
    early, *later = sorted(Path("cut").glob("resume-*.pt"))
    for state in later:
        state.unlink()
    first.unlink()
    code, out, _ = call(capsys, *given, "cut", "--out", "cut.pt")
    assert code == 0 and f"going on from {early}" in out and later
    whole, cut = weights("whole.pt"), weights("cut.pt")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_a_file_that_is_replaced_meanwhile_is_read_once(first: Path, capsys, monkeypatch):
    """Its weights and its width are those of one file."""
    read, old = checkpoint.load, weights(first)
    config = Config(width=8, data="generated:256/64")
    checkpoint.save_model("other.pt", create(config, load("train", 64, 64)), config, {})

    def replaced(path):
        loaded = read(path)
        Path("other.pt").replace(path)
        return loaded

    monkeypatch.setattr(checkpoint, "load", replaced)
    given = [*RUN, *STILL, "--pretrained", "first.pt", "--run-dir", "run", "--out", "new.pt"]
    assert call(capsys, *given)[0] == 0
    new = read("new.pt").model.state_dict()
    assert all(torch.allclose(old[name], new[name], rtol=0, atol=1e-20) for name in old if "conv" in name)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--width", "8"], "--width is 8, but --pretrained first.pt has 4: leave --width out"),
        (["--depth", "34"], "--depth is 34, but --pretrained first.pt has 18: leave --depth out"),
        (["--validate"], "was trained on maybe some of the validation images"),
        (["--out", "loop"], "loop: Too many levels of symbolic links"),
        (["--fold", "1/3"], "was trained on maybe some of the validation images"),
        (["--out", "./first.pt"], "--out is ./first.pt, the file of --pretrained"),
        (["--pretrained", "none.pt"], "none.pt"),
        (["--pretrained", "log.jsonl"], "log.jsonl is not a model checkpoint"),
        (["--pretrained", "."], "train.py: .: it is a folder: name a file\n"),
    ],
)
def test_what_cannot_be_is_a_line(capsys, flags, said):
    Path("loop").symlink_to("loop")
    assert said in refused(capsys, *RUN, "--pretrained", "first.pt", *flags, "--run-dir", "other")
    assert not Path("other").exists()
