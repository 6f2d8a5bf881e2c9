"""The last layer alone, then all layers: what is fitted, kept, said and gone on with."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression

import train
from engine import checkpoint
from engine.config import PRESETS, Config, parse
from engine.distributed import World
from engine.features import features
from engine.learner import Learner
from engine.machine import Machine
from engine.model import network
from engine.optimizer import create_optimizer
from ground.mistake import Mistake
from pipeline.dali import evaluation_loader
from pipeline.synthetic import generated
from run.frozen import PRIOR, fit_head
from run.pretrained import take_shape
from run.resume import State

CPU = Machine(torch.device("cpu"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """40 pictures of each of two classes, with some for validation and testing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CIFAR10_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for i in range(80):
        levels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        levels[..., i % 2] //= 3
        file = tmp_path / "own" / ("cat", "dog")[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(levels).resize((100, 100)).save(file)
    return tmp_path / "own"


def test_the_last_layer_is_that_of_logistic_regression():
    torch.manual_seed(0)
    split, model = generated(200), network(Config(width=4), generated(2).classes)
    loader = evaluation_loader(split, 32, CPU.device, 1, batch_size=60)
    inputs, labels = features(model, loader, CPU)
    assert inputs.shape == (200, 32) and np.array_equal(labels, split.labels)
    fit_head(model, loader, CPU)
    scaled = (inputs - inputs.mean(0)).double().numpy()
    scaled /= scaled.std()
    reference = LogisticRegression(C=1 / PRIOR, max_iter=5000, tol=1e-8).fit(scaled, labels)
    with torch.no_grad():
        found = model.fc(inputs).softmax(1)
    assert np.abs(found.numpy() - reference.predict_proba(scaled)).max() < 5e-3
    assert model.training


def test_the_body_learns_at_a_share_of_the_head_s_rate():
    config = Config(width=4, muon_lr=0.0, max_lr=0.1, bias_lr_scale=2.0, body_lr_scale=0.1)
    model = network(config, "abc")
    for muon in (0.0, 0.05):
        groups = create_optimizer(model, replace(config, muon_lr=muon), torch.float32).param_groups
        rates = {parameter: group["lr"] for group in groups for parameter in group["params"]}
        assert len(rates) == len(list(model.parameters())) and groups[0]["lr"] == 0.1
        named = {name: rates[parameter] for name, parameter in model.named_parameters()}
        expected = {"fc.weight": 0.1, "fc.bias": 0.2, "stem.0.weight": 0.01, "stem.1.weight": 0.01, "stem.1.bias": 0.02}
        assert {name: named[name] for name in expected} == pytest.approx(expected)
        assert named["layer1.0.conv1.weight"] == pytest.approx(muon or 0.01)


def test_imagenet_s_weights_take_the_recipe():
    assert parse(["--data", "holiday", "--pretrained", "imagenet"], "cpu")[0] == "finetune"
    assert parse(["--data", "holiday", "--pretrained", "mine.pt"], "cpu")[0] == "pictures"
    assert parse(["cpu", "--pretrained", "imagenet"], "cpu")[0] == "cpu"
    assert PRESETS["finetune"].head_first


def test_several_processes_are_refused():
    with pytest.raises(Mistake, match="--head-first is for one process, not for 2"):
        take_shape(Config(pretrained="x.pt", head_first=True), (), State(), World(0, 2))


def tuned(folder: Path) -> list[str]:
    """Flags that go on from a small network, which is trained here first."""
    base = "--device cpu --threads 1 --precision fp32".split()
    small = "--width 4 --stem imagenet --no-whiten --epochs 1 --out base.pt".split()
    train.main(["smoke", *base, *small])
    return ["finetune", *base, "--data", str(folder), "--pretrained", "base.pt", "--epochs", "2", "--size", "96"]


@pytest.mark.parametrize("lr", ["0.02", "1e-9"])
def test_both_answers_are_told_and_the_better_is_kept(folder: Path, capfd, lr: str):
    train.main([*tuned(folder), "--max-lr", lr, "--run-dir", "run", "--out", "out.pt"])
    out = capfd.readouterr().out
    last = json.loads(out.splitlines()[-1])
    frozen, kept = checkpoint.load("run/frozen.pt"), checkpoint.load("out.pt")
    assert f"the last layer alone: test accuracy {last['frozen_accuracy']:.2%}" in out
    assert f"{last['frozen_accuracy']:.2%}, {last['all_layers_accuracy']:.2%}; kept: {last['kept']}" in out
    assert last["frozen_accuracy"] == frozen.metrics["test_accuracy"]
    which = {"frozen": "frozen_accuracy", "all layers": "all_layers_accuracy"}[last["kept"]]
    assert last["test_accuracy"] == last[which] == kept.metrics["test_accuracy"]
    same = checkpoint.digest(dict(kept.model.state_dict())) == checkpoint.digest(dict(frozen.model.state_dict()))
    assert same == (last["kept"] == "frozen")


def test_without_validation_pictures_all_layers_are_kept(folder: Path, capfd):
    files, table = sorted(folder.rglob("*.png")), folder / "table.csv"
    parts = ["train", "test"] * len(files)
    rows = [f"{file},{file.parent.name},{part}" for file, part in zip(files, parts, strict=False)]
    table.write_text("\n".join(["path,label,split", *rows]))
    train.main([*tuned(table), "--run-dir", "run", "--out", "out.pt"])
    out = capfd.readouterr().out
    last, frozen = json.loads(out.splitlines()[-1]), checkpoint.load("run/frozen.pt")
    assert last["frozen_accuracy"] == frozen.metrics["test_accuracy"] and last["kept"] == "all layers"
    assert f"{last['frozen_accuracy']:.2%}, {last['all_layers_accuracy']:.2%}; kept: all layers" in out


@pytest.mark.slow
def test_goes_on_to_the_same_weights(folder: Path, monkeypatch):
    flags = tuned(folder)
    train.main([*flags, "--run-dir", "whole", "--out", "whole.pt"])
    real = Learner.train_step

    def stopped(self: Learner, *batch: torch.Tensor) -> None:
        real(self, *batch)
        if self.step == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Learner, "train_step", stopped)
        train.main([*flags, "--checkpoint-every", "0", "--run-dir", "part", "--out", "part.pt"])
    train.main(["--resume", "part", "--device", "cpu", "--threads", "1", "--out", "part.pt"])
    whole, part = (checkpoint.load(f"{name}.pt").model.state_dict() for name in ("whole", "part"))
    assert all(torch.equal(whole[name], part[name]) for name in whole)
