"""The misclassified set of the small trained net, its order, maps and figures, counted a second time in plain NumPy."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.learner import evaluate
from engine.machine import Machine
from engine.model import ResNet
from explain import page, study
from explain.cam import class_maps, heatmaps
from explain.cases import Cases
from explain.explainer import Explainer
from tests.cases import CLASSES, CPU, explainer, layer4_maps, made_up
from tests.trained import trained, wrong_cases


def batches(size: int = 300):
    """The glyphs in batches, the last one filled up with images labelled -1."""
    _, test = trained()
    for inputs, labels in zip(test.inputs.split(size), test.labels.split(size), strict=True):
        missing = size - len(labels)
        yield torch.cat([inputs, test.inputs[:missing]]), torch.cat([labels, torch.full((missing,), -1)])


@pytest.fixture(scope="module")
def model() -> Explainer:
    return explainer(trained()[0])


@pytest.fixture(scope="module")
def logits(model: Explainer) -> Tensor:
    return model.examine(batches())[0]


@pytest.fixture(scope="module")
def wrong() -> Cases:
    return wrong_cases()


def test_the_pass_finds_what_the_model_says(model: Explainer):
    net, test = trained()
    with torch.no_grad():
        features = net.features(test.inputs)
        logits, maps = net.head(features), class_maps(features, net.fc)
    expected = logits.argmax(1) != test.labels
    assert 50 < expected.sum() < 500
    for size in (300, 64):
        net.train(size == 64)
        found = model.examine(batches(size))
        assert all(module.training == (size == 64) for module in net.modules())
        net.eval()
        torch.testing.assert_close(found[0], logits, rtol=1e-4, atol=1e-4)
        assert torch.equal(found[1], expected)
        torch.testing.assert_close(found[2], maps[expected], rtol=1e-4, atol=1e-4)
        assert torch.equal(found[3], test.inputs[expected])
    score = evaluate(net, batches(), Machine(CPU))
    assert (score.total, score.total - score.correct) == (1000, int(expected.sum()))


def test_without_labels_every_image_is_a_case(model: Explainer):
    _, test = trained()
    logits, chosen, _, inputs = model.examine((some, None) for some in test.inputs[:50].split(20))
    assert chosen.tolist() == [True] * 50 and torch.equal(inputs, test.inputs[:50])
    cases = replace(wrong_cases(), labels=None, logits=logits, index=np.arange(50), total=50)
    assert cases.rival_is == "second" and (cases.rank == 2).all()
    assert np.array_equal(np.stack([cases.predicted, cases.rival], 1), logits.topk(2).indices.numpy())


def test_probabilities_loss_and_rank_follow_from_the_logits(wrong: Cases):
    assert np.array_equal(wrong.rival, trained()[1].labels.numpy()[wrong.index]) and wrong.rival_is == "true"
    for i in range(len(wrong)):
        logits = wrong.logits[i].tolist()
        parts = [math.exp(v - max(logits)) for v in logits]
        assert wrong.probabilities[i].tolist() == pytest.approx([p / sum(parts) for p in parts], rel=1e-9)
        assert wrong.loss[i] == pytest.approx(-math.log(parts[wrong.rival[i]] / sum(parts)), rel=1e-9)
        assert wrong.rank[i] == 1 + sum(v > logits[wrong.rival[i]] for v in logits) >= 2
    assert np.array_equal(wrong.probability(wrong.rival), wrong.probabilities[np.arange(len(wrong)), wrong.rival])


def test_logits_that_are_not_finite_are_refused():
    net = ResNet("abcdefghij", width=8)
    with torch.no_grad():
        net.fc.bias[3] = torch.nan
    with pytest.raises(ValueError, match="not finite for 1000 of 1000 images"):
        explainer(net).examine(batches())


# Which come first


def test_orders(wrong: Cases):
    keys = {"loss": -wrong.loss, "confidence": -wrong.probabilities.max(1), "index": wrong.index}
    for sort, key in keys.items():
        values = key[wrong.select(sort)]
        assert len(values) == len(wrong) and (np.diff(values) >= 0).all(), sort
    first, again, other = (wrong.select("random", seed=seed).tolist() for seed in (1, 1, 2))
    assert first == again != other
    assert sorted(first) == sorted(other) == list(range(len(wrong)))


@pytest.mark.parametrize("sort", ["loss", "random"])
def test_filters_keep_the_order_and_leave_nothing_else(wrong: Cases, sort: str):
    first = (CLASSES[wrong.rival[0]], CLASSES[wrong.predicted[0]])
    for true, said in ((first[0], "any"), ("any", first[1]), first):
        kept = [
            i
            for i in wrong.select(sort, seed=3).tolist()
            if true in ("any", CLASSES[wrong.rival[i]]) and said in ("any", CLASSES[wrong.predicted[i]])
        ]
        assert kept and wrong.select(sort, true, said, seed=3).tolist() == kept


def test_what_matches_nothing_is_named(wrong: Cases):
    with pytest.raises(ValueError, match="of true class frog and predicted class frog"):
        wrong.select("loss", "frog", "frog")
    with pytest.raises(ValueError, match="class 'wolf' is unknown"):
        wrong.select("loss", "wolf")


# Their heatmaps


@pytest.mark.parametrize(("layer", "method"), [("layer4", "gradcam"), ("layer3", "gradcam"), ("layer2", "hirescam")])
def test_every_error_has_the_maps_of_its_own_classes(model: Explainer, wrong: Cases, layer: str, method: str):
    frog = wrong.every("frog")
    predicted, true, third = (
        heatmaps(model.model, wrong.inputs, torch.from_numpy(classes), layer, method)
        for classes in (wrong.predicted, wrong.rival, frog)
    )
    expected = {"pred": predicted, "true": true, "margin": predicted - true, "frog": third}
    for target, wanted in expected.items():
        maps = model.explain(wrong, layer, method, target)
        assert len(wrong) == len(maps.chosen)
        for got, want in ((maps.predicted, predicted), (maps.rival, true), (maps.chosen, wanted)):
            torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-5)
    several = model.explain(wrong, layer, method, "pred", several=True)
    torch.testing.assert_close(several.of(frog), third, rtol=1e-3, atol=1e-5)
    with pytest.raises(ValueError, match="class 'wolf' is unknown"):
        model.explain(wrong, layer, method, "wolf")


def test_of_many_classes_the_likeliest_are_kept_and_those_that_are_asked_for():
    names = tuple(f"kind {i}" for i in range(120))
    cases = made_up(40, names)
    maps = layer4_maps(cases, "kind 7")
    assert maps.classes.shape == (40, 10) and maps.computed == cases.total * 120
    needed = np.stack([cases.predicted, cases.rival, cases.every("kind 7")], 1)
    for kept, asked, p in zip(maps.classes, needed, cases.probabilities, strict=True):
        assert set(asked) <= set(kept) and (np.diff(p[kept]) <= 0).all()
        others = np.array(sorted(set(range(120)) - set(asked), key=lambda number: -p[number]))
        assert set(kept) == set(asked) | set(others[: 10 - len(set(asked))])
    assert torch.equal(maps.of(cases.rival), cases.class_maps[np.arange(40), cases.rival])


# What they have in common


def test_confusions_are_counted(logits: Tensor):
    labels, predicted = trained()[1].labels.numpy(), logits.argmax(1).numpy()
    pairs = Counter(zip(labels.tolist(), predicted.tolist(), strict=True))
    matrix = study.confusion_matrix(labels, predicted, 10)
    assert {(t, p): int(matrix[t, p]) for t in range(10) for p in range(10) if matrix[t, p]} == dict(pairs)
    mistaken = {pair: n for pair, n in pairs.items() if pair[0] != pair[1]}
    top = study.top_confusions(matrix, 7)
    assert [n for *_, n in top] == sorted(mistaken.values(), reverse=True)[:7]
    assert all(mistaken[true, predicted] == n for true, predicted, n in top)
    assert [wrong for _, wrong, *_ in page.class_bars(matrix)] == [
        sum(n for (true, _), n in mistaken.items() if true == c) for c in range(10)
    ]
    assert study.top_confusions(np.diag([3, 4, 5])) == []


def test_calibration_is_the_mean_gap_of_the_bins(logits: Tensor):
    labels, probabilities = trained()[1].labels, logits.double().softmax(1)
    result = study.calibration(logits, labels.numpy())
    bins: dict[int, list[tuple[float, bool]]] = {}
    for p, true in zip(probabilities.tolist(), labels.tolist(), strict=True):
        bins.setdefault(min(int(max(p) * 15), 14), []).append((max(p), p.index(max(p)) == true))
    gaps = {b: abs(sum(c for c, _ in rows) - sum(r for _, r in rows)) / len(rows) for b, rows in bins.items()}
    assert result.error == pytest.approx(sum(gaps[b] * len(rows) for b, rows in bins.items()) / 1000)
    assert result.images.tolist() == [len(bins.get(b, [])) for b in range(15)]
    assert np.abs(result.accuracy - result.confidence)[list(gaps)].tolist() == pytest.approx(list(gaps.values()))
