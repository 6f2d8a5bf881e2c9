"""explain/errors.py: the misclassified set, counted and measured a second time in plain NumPy."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from engine.learner import evaluate
from engine.machine import Machine
from engine.model import ResNet
from explain import errors
from explain.cam import class_maps, heatmaps
from explain.errors import Errors, Outcome
from pipeline.cifar10 import CLASSES, Split
from tests.trained import trained

CPU = torch.device("cpu")


def batches(size: int = 300):
    """The glyphs in batches, the last one filled up with images labelled -1."""
    _, test = trained()
    for inputs, labels in zip(test.inputs.split(size), test.labels.split(size), strict=True):
        missing = size - len(labels)
        yield torch.cat([inputs, test.inputs[:missing]]), torch.cat([labels, torch.full((missing,), -1)])


def glyph_split() -> Split:
    test = trained()[1]
    return Split(test.images.numpy(), test.labels.numpy().astype(np.uint8), "test")


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    return errors.examine(trained()[0], batches(), CPU, "fp32")


@pytest.fixture(scope="module")
def wrong(outcome: Outcome) -> Errors:
    return errors.misclassified(outcome, glyph_split())


def test_the_pass_finds_what_the_model_says(outcome: Outcome):
    net, test = trained()
    with torch.no_grad():
        features = net.features(test.inputs)
        torch.testing.assert_close(outcome.logits, net.head(features), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(outcome.class_maps, class_maps(features, net.fc), rtol=1e-4, atol=1e-4)
    assert np.array_equal(outcome.labels, test.labels.numpy())
    for size in (1000, 64):
        other = errors.examine(net, batches(size), CPU, "fp32")
        torch.testing.assert_close(other.logits, outcome.logits, rtol=1e-4, atol=1e-4)


def test_each_error_is_found_once_and_only_errors(outcome: Outcome, wrong: Errors):
    net, test = trained()
    expected = np.flatnonzero(outcome.logits.numpy().argmax(1) != test.labels.numpy())
    assert 50 < len(expected) < 500
    assert np.array_equal(wrong.index, expected)
    assert np.array_equal(wrong.true, test.labels.numpy()[expected])
    assert np.array_equal(wrong.predicted, outcome.logits.numpy()[expected].argmax(1))
    assert torch.equal(wrong.inputs, test.inputs[torch.from_numpy(expected)])
    assert torch.equal(wrong.class_maps, outcome.class_maps[torch.from_numpy(expected)])
    score = evaluate(net, batches(), Machine(CPU))
    assert (score.total, score.correct) == (wrong.total, wrong.total - len(wrong))
    assert float(outcome_loss(outcome)) == pytest.approx(score.loss, rel=1e-5)


def outcome_loss(outcome: Outcome) -> float:
    return -np.log(outcome.probabilities[np.arange(len(outcome.labels)), outcome.labels]).mean()


def test_probabilities_loss_and_rank_follow_from_the_logits(wrong: Errors):
    for i in range(len(wrong)):
        logits = wrong.logits[i].tolist()
        parts = [math.exp(v - max(logits)) for v in logits]
        assert wrong.probabilities[i].tolist() == pytest.approx([p / sum(parts) for p in parts], rel=1e-9)
        assert wrong.loss[i] == pytest.approx(-math.log(parts[wrong.true[i]] / sum(parts)), rel=1e-9)
        assert wrong.rank[i] == 1 + sum(v > logits[wrong.true[i]] for v in logits) >= 2
    assert np.array_equal(wrong.probability(wrong.true), wrong.probabilities[np.arange(len(wrong)), wrong.true])


def test_labels_are_disputed_only_where_they_are_those_of_the_study(
    outcome: Outcome, wrong: Errors, monkeypatch: pytest.MonkeyPatch
):
    assert not wrong.disputed.any()
    named = frozenset(wrong.index[[0, 5]].tolist())
    monkeypatch.setattr(errors, "DISPUTED_TEST_INDICES", named)
    assert not errors.misclassified(outcome, glyph_split()).disputed.any()
    monkeypatch.setattr(errors, "SHA256", {"test_labels": glyph_split().labels_sha256})
    marked = errors.misclassified(outcome, glyph_split())
    assert frozenset(marked.index[marked.disputed].tolist()) == named


def test_the_model_is_left_in_the_mode_it_was_in(outcome: Outcome):
    net = trained()[0]
    net.train()
    try:
        again = errors.examine(net, batches(), CPU, "fp32")
        assert all(module.training for module in net.modules())
    finally:
        net.eval()
    assert torch.equal(again.logits, outcome.logits)


def test_logits_that_are_not_finite_are_refused():
    net = ResNet(width=8)
    with torch.no_grad():
        net.fc.bias[3] = torch.nan
    with pytest.raises(ValueError, match="not finite for 1000 of 1000 images"):
        errors.examine(net, batches(), CPU, "fp32")


# Which come first


@pytest.mark.parametrize(
    ("sort", "key"),
    [
        ("loss", lambda e: -e.loss),
        ("confidence", lambda e: -e.probabilities.max(1)),
        ("index", lambda e: e.index),
    ],
)
def test_orders(wrong: Errors, sort: str, key):
    values = key(wrong)[wrong.select(sort)]
    assert len(values) == len(wrong) and (np.diff(values) >= 0).all()


def test_a_random_order_is_one_for_each_seed(wrong: Errors):
    first, again, other = (wrong.select("random", seed=seed).tolist() for seed in (1, 1, 2))
    assert first == again != other
    assert sorted(first) == sorted(other) == list(range(len(wrong)))


def test_filters_keep_the_order_and_leave_nothing_else(wrong: Errors):
    true, predicted = (CLASSES[int(c[0])] for c in (wrong.true, wrong.predicted))
    every: list[dict[str, Any]] = [{"true": true}, {"predicted": predicted}, {"true": true, "predicted": predicted}]
    for filters in every:
        kept = wrong.select("loss", **filters).tolist()
        assert kept == [
            i
            for i in wrong.select("loss").tolist()
            if filters.get("true") in (None, CLASSES[wrong.true[i]])
            and filters.get("predicted") in (None, CLASSES[wrong.predicted[i]])
        ]
        assert kept
    random = wrong.select("random", true=true, seed=3).tolist()
    assert random == [i for i in wrong.select("random", seed=3).tolist() if CLASSES[wrong.true[i]] == true]


def test_what_matches_nothing_is_named(wrong: Errors):
    with pytest.raises(ValueError, match="of true class frog and predicted class frog"):
        wrong.select("loss", "frog", "frog")
    with pytest.raises(ValueError, match="class 'wolf' is unknown"):
        wrong.select("loss", "wolf")
    with pytest.raises(ValueError, match="--sort is size"):
        wrong.select("size")


# Their heatmaps


@pytest.mark.parametrize(("layer", "method"), [("layer4", "gradcam"), ("layer3", "gradcam"), ("layer2", "hirescam")])
def test_every_error_has_the_maps_of_its_own_classes(wrong: Errors, layer: str, method: str):
    net = trained()[0]
    for target in ("pred", "true", "margin", "frog"):
        counted: list[int] = []
        maps = errors.explain(net, wrong, layer, method, target, CPU, "fp32", counted.append)
        assert sum(counted) == len(wrong) == len(maps.chosen)
        frog = np.full_like(wrong.true, CLASSES.index("frog"))
        predicted, true, third = (
            heatmaps(net, wrong.inputs, torch.from_numpy(c), layer, method) for c in (wrong.predicted, wrong.true, frog)
        )
        expected = {"pred": predicted, "true": true, "margin": predicted - true, "frog": third}
        for got, want in ((maps.predicted, predicted), (maps.true, true), (maps.chosen, expected[target])):
            torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-5)
        assert torch.equal(maps.margin, maps.predicted - maps.true)
    with pytest.raises(ValueError, match="class 'wolf' is unknown"):
        errors.explain(net, wrong, layer, method, "wolf", CPU, "fp32")


@pytest.mark.parametrize("layer", ["layer4", "layer3"])
def test_no_errors_have_no_maps(outcome: Outcome, layer: str):
    net = trained()[0]
    perfect = Outcome(outcome.predicted, outcome.logits, outcome.class_maps, outcome.wrong_inputs[:0])
    none = errors.misclassified(perfect, glyph_split())
    assert len(none) == 0 and none.select("loss").tolist() == none.select("loss", "cat").tolist() == []
    maps = errors.explain(net, none, layer, "gradcam", "pred", CPU, "fp32")
    assert maps.chosen.shape == ((0, 3, 3) if layer == "layer4" else (0, 6, 6))


# What they have in common


def test_confusions_are_counted(outcome: Outcome):
    pairs = Counter(zip(outcome.labels.tolist(), outcome.predicted.tolist(), strict=True))
    matrix = errors.confusion_matrix(outcome.labels, outcome.predicted)
    assert {(t, p): int(matrix[t, p]) for t in range(10) for p in range(10) if matrix[t, p]} == dict(pairs)
    mistaken = {pair: n for pair, n in pairs.items() if pair[0] != pair[1]}
    top = errors.top_confusions(matrix, 7)
    assert [n for *_, n in top] == sorted(mistaken.values(), reverse=True)[:7]
    assert all(mistaken[true, predicted] == n for true, predicted, n in top)
    assert errors.class_errors(matrix).tolist() == [
        sum(n for (true, _), n in mistaken.items() if true == c) for c in range(10)
    ]
    assert errors.top_confusions(np.diag([3, 4, 5])) == []


def test_calibration_is_the_mean_gap_of_the_bins(outcome: Outcome):
    result = errors.calibration(outcome)
    bins: dict[int, list[tuple[float, bool]]] = {}
    for p, true in zip(outcome.probabilities.tolist(), outcome.labels.tolist(), strict=True):
        bins.setdefault(min(int(max(p) * 15), 14), []).append((max(p), p.index(max(p)) == true))
    gaps = {b: abs(sum(c for c, _ in rows) - sum(r for _, r in rows)) / len(rows) for b, rows in bins.items()}
    assert result.error == pytest.approx(sum(gaps[b] * len(rows) for b, rows in bins.items()) / 1000)
    assert result.images.tolist() == [len(bins.get(b, [])) for b in range(15)]
    assert np.abs(result.accuracy - result.confidence)[list(gaps)].tolist() == pytest.approx(list(gaps.values()))


@pytest.mark.parametrize(("right", "error"), [(4, 0.0), (5, 0.2), (0, 0.8)])
def test_calibration_of_a_classifier_that_is_always_80_percent_sure(right: int, error: float):
    """Five images, of which `right` are right."""
    logits = torch.tensor([math.log(4.0), 0.0]).expand(5, 2)
    labels = np.array([0] * right + [1] * (5 - right))
    outcome = Outcome(labels, logits, torch.zeros(5, 2, 1, 1), torch.zeros(5 - right, 3, 8, 8, dtype=torch.uint8))
    assert errors.calibration(outcome).error == pytest.approx(error, abs=1e-7)
