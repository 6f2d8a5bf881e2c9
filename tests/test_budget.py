"""run/budget.py: what the pictures and the minutes decide, and what a person has given."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import train
from engine import checkpoint
from engine.config import PRESETS, Config, parse
from engine.machine import Machine
from pipeline.split import Split
from pipeline.synthetic import generated
from run import budget
from run.budget import MOST_EPOCHS, decide, image_seconds
from run.resume import State

CPU = Machine(torch.device("cpu"))
OWN = replace(PRESETS["pictures"], data="holiday")


def split(count: int, side: int) -> Split:
    return Split(
        images=np.zeros((count, side, side, 3), np.uint8), labels=np.arange(count) % 2, name="train", classes=("a", "b")
    )


@pytest.fixture
def speed(monkeypatch):
    """A machine that trains 1,000 images a second at width 32 and 16 px, and goes by FLOPs."""

    def rates(config, *_):
        sides = {*config.resolutions, config.model_side}
        return {side: 1e-3 * (config.width / 32) ** 2 * (side / 16) ** 2 for side in sides}

    monkeypatch.setattr(budget, "image_seconds", rates)


@pytest.mark.parametrize(
    ("count", "side", "resolutions", "stem", "batch", "translate"),
    [
        (3000, 64, (32, 32, 48, 48, 64), "small", 64, 6),
        (3000, 128, (64, 64, 96, 96, 128), "strided", 64, 12),
        (200, 32, (16, 16, 24, 24, 32), "small", 25, 3),
        (30_000, 32, (16, 16, 24, 24, 32), "small", 128, 3),
        (60_000, 8, (8, 8, 8, 8, 8), "small", 256, 1),
        (2, 64, (32, 32, 48, 48, 64), "small", 2, 6),
    ],
)
def test_a_recipe_follows_the_pictures(count, side, resolutions, stem, batch, translate):
    config = decide(replace(OWN, minutes=0.0), (), State(), split(count, side), 10, CPU)
    assert config == replace(
        OWN, minutes=0.0, size=side, resolutions=resolutions, stem=stem, batch_size=batch, translate=translate
    )


def test_given_resolutions_leave_the_shift_as_it_is():
    config = replace(OWN, minutes=0.0, resolutions=(8, 16))
    assert decide(config, {"resolutions"}, State(), split(3000, 64), 10, CPU).translate == OWN.translate


def test_what_is_given_stays(speed):
    given: dict[str, Any] = {"resolutions": (16,), "batch_size": 128, "stem": "small", "translate": 1, "width": 64}
    config = decide(replace(OWN, minutes=0.01, **given), given, State(), split(200, 128), 10, CPU)
    assert config == replace(OWN, minutes=0.01, **given, size=128, epochs=1)
    assert decide(PRESETS["cpu"], (), State(), split(200, 32), 10, CPU) == PRESETS["cpu"]
    imagenet = replace(OWN, minutes=0.0, stem="imagenet")  # as --pretrained takes it over
    assert decide(imagenet, (), State(), split(200, 128), 10, CPU).stem == "imagenet"


@pytest.mark.parametrize(
    ("minutes", "epochs", "width"),
    [
        (1, 6, 32),  # 10,000 images take 10 s an epoch; 300 more to evaluate cost as 100
        (0.5, 3, 32),
        (0.25, 6, 16),
        (0.05, 4, 8),
        (0.001, 1, 8),
        (1000, MOST_EPOCHS, 32),
    ],
)
def test_minutes_choose_the_epochs_and_then_the_width(speed, minutes, epochs, width):
    config = Config(minutes=minutes, width=32, resolutions=(16,))
    config = decide(config, (), State(), split(9900, 32), 300, CPU)
    assert (config.epochs, config.width) == (epochs, width)


@pytest.mark.parametrize(
    ("side", "minutes", "given", "resolutions", "width"),
    [
        (64, 10, (), (32, 32, 48, 48, 64), 32),
        (64, 1.5, (), (24, 24, 32, 32, 48), 32),
        (64, 1, (), (16, 16, 24, 24, 32), 32),
        (64, 0.5, (), (16, 16, 24, 24, 32), 16),
        (64, 0.5, ("width",), (16, 16, 24, 24, 32), 32),
        (64, 0.5, ("resolutions",), (32, 32, 48, 48, 64), 8),
        (128, 0.5, (), (64, 64, 96, 96, 128), 8),
    ],
)
def test_a_large_set_gets_smaller_pictures_before_a_narrower_network(speed, side, minutes, given, resolutions, width):
    config = decide(replace(OWN, minutes=minutes), given, State(), split(5000, side), 300, CPU)
    assert (config.resolutions, config.width) == (resolutions, width)


def test_small_pictures_first_are_counted_as_what_they_cost(speed):
    config = decide(Config(minutes=2.5, width=32, resolutions=(16, 32)), (), State(), split(9000, 32), 3000, CPU)
    assert config.epochs == 6  # three epochs of 10 s and three of 40 s


def test_a_run_that_goes_on_keeps_the_choice(speed):
    begun = decide(replace(OWN, minutes=1.0), (), State(), split(3000, 64), 10, CPU)
    again = decide(replace(OWN, minutes=1.0), (), State(Path("state"), begun), split(3000, 64), 10, CPU)
    assert again == begun and begun.epochs != OWN.epochs


def test_epochs_and_minutes_are_either_or():
    assert parse(["cpu", "--minutes", "3"], "cpu")[1].minutes == 3
    assert parse(["--data", "holiday", "--epochs=3"], "cpu")[1].minutes == 0
    with pytest.raises(ValueError, match="--epochs and --minutes: give one of them"):
        parse(["cpu", "--epochs", "3", "--minutes", "3"], "cpu")


def test_larger_images_take_longer():
    seconds = image_seconds(Config(width=8, batch_size=32, resolutions=(8, 64, 8)), generated(40), CPU)
    assert seconds.keys() == {8, 64} and 0 < seconds[8] < seconds[64]


def test_measuring_changes_no_weight(tmp_path: Path, monkeypatch):
    """And what is chosen is said, and stands in the checkpoint."""
    flags = "smoke --data generated:128/32 --width 4 --resolutions 8 --device cpu --threads 1".split()
    real, weights = budget.image_seconds, []

    def rates(*arguments):
        return dict.fromkeys(real(*arguments), 0.1)

    monkeypatch.setattr(budget, "image_seconds", rates)
    for name, length in (("a", ["--epochs", "3"]), ("b", ["--minutes", str(3.5 * (128 + 32 / 3) * 0.1 / 60)])):
        out = tmp_path / f"{name}.pt"
        train.main([*flags, *length, "--out", str(out), "--run-dir", str(tmp_path / name)])
        weights.append(checkpoint.load(out).model.state_dict())
    assert all(map(torch.equal, weights[0].values(), weights[1].values()))
    assert checkpoint.load(out).config.epochs == 3
    assert json.loads((tmp_path / "b" / "config.json").read_text())["epochs"] == 3
