"""bench accuracy and bench ablate: trainings like train.py's, statistics against NumPy's, and every file in place."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from bench.core import record
from bench.recipe import ablate, accuracy, curve
from engine.config import PRESETS, parse
from engine.learner import Evaluation
from run import budget
from tests.commands import call
from tests.measured import recorded, silent

TINY = ["smoke", "--epochs", "1", "--resolutions", "8", "--batch-size", "64", "--threads", "1", "--precision", "fp32"]
TINY += ["--device", "cpu", "--data", "generated:256/128"]


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def made_up(percent, seconds=1.0):
    result = Evaluation(0.5, round(100 * percent), 10_000, percent / 100)
    return accuracy.Trial(result, result, seconds, 50_000)


def test_a_training_is_train_py_s_and_leaves_no_trace_in_the_next(capsys):
    """The same module serves all seeds, so a second run of a seed must give what the first gave."""
    code, out, _ = call(capsys, *TINY, "--epochs", "2", "--seed", "3")
    assert code == 0
    theirs = json.loads(out.splitlines()[-1])
    config = parse([*TINY, "--epochs", "2", "--seed", "3"], "smoke")[1]
    trainer = accuracy.Trainer(config)
    first, other, again = (trainer.run(replace(config, seed=seed), silent) for seed in (3, 4, 3))
    assert first.plain.loss == theirs["test_loss"] and first.plain.correct == theirs["test_correct"]
    assert first.flipped.accuracy == theirs["test_accuracy_tta"]
    assert (again.plain, again.flipped) == (first.plain, first.flipped)
    assert other.plain.loss != first.plain.loss
    assert first.images == 2 * 256


def test_accuracy_reports_the_mean_and_its_deviation(capsys, tmp_path):
    accuracy.main([*TINY, "--seeds", "2", "--seed", "5", "--out", "results"])
    report, _ = recorded(capsys, pictures=0)
    assert report["settings"]["preset"] == "smoke" and report["settings"]["epochs"] == 1
    (text,) = (tmp_path / "results").glob("accuracy-smoke_*.md")
    assert "Values: means and quartiles over seeds." in text.read_text()

    percents = [95.0, 94.7, 95.6]
    rows = accuracy.rows_of([made_up(*pair) for pair in zip(percents, (10, 30, 20), strict=True)])
    assert rows[0].value == pytest.approx(95.1)
    assert f"+- {np.std(percents, ddof=1):.2f} between seeds, n=3: 95.00, 94.70, 95.60" in rows[0].note
    assert rows[2].value == 20 and "30.0 s the longest" in rows[2].note
    assert rows[3].value == 2500
    assert "no deviation" in accuracy.rows_of([made_up(90.0)])[0].note


def test_what_is_done_is_kept_when_the_next_training_is_stopped(monkeypatch, tmp_path):
    def stops(self, config, say):
        if config.seed == 1:
            raise KeyboardInterrupt
        return made_up(91.0)

    monkeypatch.setattr(accuracy.Trainer, "run", stops)
    with pytest.raises(KeyboardInterrupt):
        accuracy.main([*TINY, "--seeds", "2", "--out", "stopped"])
    (path,) = (tmp_path / "stopped").glob("*.json")
    assert record.load(str(path)).rows[0].value == pytest.approx(91.0)


def test_ablation_pairs_each_ingredient_with_the_recipe(capsys, monkeypatch):
    """Made-up trainings in which an ingredient's worth is known."""
    worth = {"whiten": 2.0, "lookahead": -1.0}
    trained = []

    def known(self, config, say):
        trained.append(config)
        noise = {0: 0.5, 1: -0.5, 2: 0.0}[config.seed]
        gain = sum(points for field, points in worth.items() if getattr(config, field))
        return made_up(80 + gain + noise * (1.0 if config.whiten else 0.4), 2.0 if config.whiten else 1.0)

    monkeypatch.setattr(accuracy.Trainer, "run", known)
    ablate.main([*TINY, "--seeds", "3", "--only", "lookahead,whitened-stem", "--out", "results"])
    _, (stem, lookahead, recipe) = recorded(capsys)
    assert len(trained) == len(set(trained)) == 9  # the recipe once a seed, not once an ingredient
    assert all(config.validate for config in trained)
    error = np.std([2.3, 1.7, 2.0], ddof=1) / 3**0.5
    assert stem.name == "whitened-stem"
    assert (stem.value, stem.low, stem.high) == pytest.approx((2.0, 2.0 - error, 2.0 + error))
    assert "whiten True against False" in stem.note and "n=3: +2.30, +1.70, +2.00; time x2.00" in stem.note
    assert lookahead.name == "lookahead" and lookahead.value == pytest.approx(-1.0)
    assert recipe.value == pytest.approx(81.0) and "+- 0.50 between seeds, n=3" in recipe.note


def test_the_curve_trains_what_fits_each_budget_on_held_out_images(capsys, monkeypatch):
    """A machine that needs 10 ms an image, and a network that is right the more often the longer it trains."""
    trained = []

    def known(self, config, say):
        trained.append(config)
        return made_up(50 + 10 * config.epochs, 60 * config.minutes)

    monkeypatch.setattr(accuracy.Trainer, "run", known)
    monkeypatch.setattr(budget, "image_seconds", lambda config, train, machine: {8: 0.01 * config.width / 8})
    curve.main([TINY[0], *TINY[3:], "--budgets", "0.16", "0.12", "--out", "results"])
    _, (first, second) = recorded(capsys)
    assert [(one.epochs, one.validate, one.minutes) for one in trained] == [(3, True, 0.12), (4, True, 0.16)]
    assert (first.name, second.name) == ("minutes 0.12", "minutes 0.16")
    assert first.note == "3 epochs, width 8, 7 s of training" and second.value == pytest.approx(90)
    assert second.high == pytest.approx(90 + 100 * (0.9 * 0.1 / 10_000) ** 0.5)


@pytest.mark.parametrize("config", PRESETS.values(), ids=list(PRESETS))
def test_every_ingredient_changes_the_recipe_in_one_field_and_has_the_recipe_on_one_side(config):
    pairs = ablate.pairs_of(config, "")
    assert len(pairs) >= 8
    for one in pairs:
        assert config in (one.with_it, one.without), one.name
        assert ";" not in ablate.difference(one.with_it, one.without)


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (accuracy.main, ["--max-lr", "1e30"], "try a smaller --max-lr"),
        (accuracy.main, ["--minutes", "3"], "--epochs and --minutes: give one of them"),
        (ablate.main, ["--only", "luck"], "ingredient 'luck' is unknown"),
        (ablate.main, ["--only", "progressive-resolution"], "the same with and without"),
    ],
)
def test_refusals_say_what_to_do(main, arguments, message):
    with pytest.raises(ValueError, match=message):
        main([*TINY, *arguments])
