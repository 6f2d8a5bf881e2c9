"""explain/metrics.py against scikit-learn and statsmodels, on random tables."""

from typing import Any

import numpy as np
import pytest
import sklearn.metrics
from scipy.stats import binom
from statsmodels.stats.proportion import proportion_confint

from engine.known import binomial_tail
from explain.metrics import calibrated, class_scores, confusion_matrix, ranks, share
from ground.interval import wilson


def close(ours: Any, theirs: Any) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Labels (N,), predictions (N,), logits (N, C), C; in every third table two have no images."""
    random = np.random.default_rng(seed)
    classes, count = int(random.integers(2, 31)), int(random.integers(1, 400))
    labels = random.integers(0, max(1, classes - 2 * (seed % 3 == 0)), count)
    logits = random.normal(size=(count, classes)) + 1.5 * np.eye(classes)[labels]
    return labels, logits.argmax(1), logits, classes


@pytest.mark.parametrize("seed", range(30))
def test_every_figure_is_scikit_learn_s(seed: int):
    labels, predicted, logits, classes = drawn(seed)
    ours = class_scores(confusion_matrix(labels, predicted, classes))
    theirs = sklearn.metrics.precision_recall_fscore_support(
        labels, predicted, labels=range(classes), zero_division=np.nan
    )
    for mine, other in zip((ours["precision"], ours["recall"], ours["f1"], ours["images"]), theirs, strict=True):
        both = ~np.isnan(other.astype(float))
        close(mine[both], other[both])
    assert np.isnan(ours["precision"]).tolist() == (ours["predicted"] == 0).tolist()
    assert np.isnan(ours["recall"]).tolist() == (ours["images"] == 0).tolist()
    matrix = sklearn.metrics.confusion_matrix(labels, predicted, labels=range(classes))
    assert np.array_equal(confusion_matrix(labels, predicted, classes), matrix)
    seen = ours["images"] > 0
    if seen.sum() > 1:
        expected = np.diag(matrix)[seen] / matrix.sum(1)[seen]
        assert ours["recall"][seen].mean() == pytest.approx(expected.mean(), abs=1e-12)
    assert share(labels == predicted)[0] == pytest.approx(sklearn.metrics.accuracy_score(labels, predicted), abs=1e-12)
    places, several = ranks(logits, labels), min(5, classes - 1)
    if classes > 2:
        top = sklearn.metrics.top_k_accuracy_score(labels, logits, k=several, labels=range(classes))
        assert (places <= several).mean() == pytest.approx(top, abs=1e-12)
    assert (places == 1).tolist() == (labels == predicted).tolist()


@pytest.mark.parametrize("seed", range(30))
def test_the_intervals_are_statsmodels(seed: int):
    labels, predicted, _, classes = drawn(seed)
    matrix = confusion_matrix(labels, predicted, classes)
    ours = class_scores(matrix)
    right, said, true = np.diag(matrix), matrix.sum(0), matrix.sum(1)
    for mine, count in ((ours["precision_interval"], said), (ours["recall_interval"], true)):
        some = count > 0
        theirs = np.stack(proportion_confint(right[some], count[some], method="wilson"), 1)
        close(mine[some], theirs)
        assert np.isnan(mine[~some]).all()
    some = (said + true) > 0
    union = np.stack(proportion_confint(right[some], (said + true - right)[some], method="wilson"), 1)
    close(ours["f1_interval"][some], 2 * union / (1 + union))
    interval = share(labels == predicted)[1]
    close(interval, proportion_confint(right.sum(), len(labels), method="wilson"))
    close(wilson(3.0, 7), proportion_confint(3, 7, method="wilson"))


def test_the_interval_of_f1_holds_the_true_one_95_times_in_100():
    random, true, held = np.random.default_rng(0), 2 * 0.32 / (0.4 + 0.4), 0
    for _ in range(2000):
        labels = (random.random(150) < 0.4).astype(np.int64)
        # Of 40% of the images, 80% are recognised, and as many others taken for the class.
        said = (random.random(150) < np.where(labels == 1, 0.8, 0.08 / 0.6)).astype(np.int64)
        low, high = class_scores(confusion_matrix(labels, said, 2))["f1_interval"][1]
        held += low <= true <= high
    assert 0.93 < float(held) / 2000 < 0.97


def test_equals_are_ranked_in_order_and_calibration_is_that_of_the_bins():
    logits = np.array([[1.0, 1.0, 0.0], [2.0, 3.0, 3.0]])
    assert ranks(logits, np.array([1, 2])).tolist() == [2, 2] and ranks(logits, np.array([0, 1])).tolist() == [1, 1]
    found = calibrated(np.array([0.5, 0.5, 1.0]), np.array([True, False, False]), bins=2)
    assert found.images.tolist() == [0, 3] and found.error == pytest.approx(2 / 3 - 1 / 3)


@pytest.mark.parametrize(("hits", "count", "p"), [(0, 200, 0.02), (3, 500, 0.02), (17, 5000, 0.01), (900, 10_000, 0.1)])
def test_the_binomial_tail_is_scipy_s(hits: int, count: int, p: float):
    assert binomial_tail(hits, count, p) == pytest.approx(binom.cdf(hits, count, p), rel=1e-9)
    assert binomial_tail(int(count * p) + 1, count, p) == 1
