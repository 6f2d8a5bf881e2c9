"""engine/known.py: a promise is kept as often as it says; strangers are told; checkpoints keep both."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from engine import checkpoint, known
from engine.config import Config
from engine.features import pooled
from engine.known import BINS, Known, fit_known, sample
from engine.machine import Machine
from ground.mistake import Mistake
from tests.commands import call
from tests.forged import put, rewritten
from tests.trained import RESOLUTION, glyphs, trained

MACHINE = Machine(torch.device("cpu"))


def counted(probabilities: Tensor, right: Tensor, total: int = 0) -> Known:
    """A promise by probabilities (N,) of predicted classes alone."""
    bins = known._bins(probabilities)
    answers = torch.stack([some.bincount(minlength=BINS) for some in (bins, bins[right])])
    return Known(torch.zeros(1, 2), torch.eye(2), 1.0, answers, total or len(bins))


def drawn(count: int, power: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Probabilities, smaller with a larger power; and what is right, less often than they say."""
    probabilities = torch.rand(count, generator=generator, dtype=torch.float64).pow(power)
    return probabilities, torch.rand(count, generator=generator) < probabilities.pow(1.3)


@pytest.mark.parametrize(("promise", "power"), [(0.95, 0.08), (0.95, 0.05), (0.98, 0.03)])
def test_a_promise_is_broken_by_one_fit_in_20_at_most(promise: float, power: float):
    generator, fits = torch.Generator().manual_seed(0), 200
    probabilities, right = drawn(400_000, power, generator)
    broken, shares = 0, []
    for _ in range(fits):
        found = counted(*drawn(4000, power, generator)).keep(promise)
        if found.answered:
            answered = probabilities >= found.probability
            broken += bool(right[answered].double().mean() < promise)
            shares.append((found.answered / 4000, float(answered.double().mean())))
    assert broken <= 0.05 * fits
    # Nor is it timid: it answers most of what it could, had it seen all there is.
    order = probabilities.argsort(descending=True)
    accuracy = right[order].double().cumsum(0) / torch.arange(1, len(order) + 1)
    best = int((accuracy >= promise).nonzero().max()) / len(order)
    assert len(shares) > 0.9 * fits
    fitted, held = np.array(shares).mean(0)
    assert 0.7 * best < held < best and held == pytest.approx(fitted, abs=0.02)


def test_thresholds_by_hand():
    sure, unsure = torch.full((500,), 0.97), torch.full((500,), 0.6)
    kept = counted(torch.cat([sure, unsure]), torch.arange(1000) < 500)
    found = kept.keep(0.98)
    assert (found.answered, found.right) == (500, 500) and 0.6 < found.probability <= 0.97
    assert "answers 50.0%, right on 100.00%" in str(found)
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    p = torch.tensor([[0.4, 0.6], [0.03, 0.97], [0, 1]])
    assert found(features, p).tolist() == [0, 1, 1]
    nearer = replace(found, known=replace(kept, distance=0.5))
    assert nearer(features, p).tolist() == [0, 0, 1]  # the others are 1 from the centre
    none = kept.keep(0.999)  # 500 right answers do not show that
    assert (none.answered, none.probability) == (0, np.inf) and "nothing is known" in str(none)
    assert not none(features, p).any()
    all_right = counted(torch.tensor([0.01] * 200 + [0.99] * 800), torch.ones(1000, dtype=torch.bool)).keep(0.98)
    assert (all_right.probability, all_right.answered) == (0.0, 1000)
    assert counted(torch.zeros(0), torch.zeros(0, dtype=torch.bool), 100).keep(0.9).answered == 0


def test_what_is_unlike_the_training_images_is_told_and_padding_does_not_count():
    net, test = trained()
    some = glyphs(600, seed=1)
    pad = torch.full((7,), -1)
    train = [(torch.cat([some.inputs, some.inputs[:7]]), torch.cat([some.labels, pad]))]
    unseen = list(zip(test.inputs[:800].split(300), test.labels[:800].split(300), strict=True))
    found = fit_known(net, train, unseen, 1.0, MACHINE)
    assert found is not None and found.total == 800
    again = fit_known(net, [(some.inputs, some.labels)], unseen, 1.0, MACHINE)
    assert again is not None and again.distance == found.distance
    assert torch.equal(again.whitener, found.whitener)
    assert int(found.answers[0].sum()) == pytest.approx((1 - known.UNLIKE) * 800, abs=8)

    def unlike(images: Tensor) -> float:
        with torch.no_grad():
            return float(found.unlike(pooled(net, images, MACHINE)).double().mean())

    assert unlike(test.inputs[800:]) < 0.06
    generator = torch.Generator().manual_seed(0)
    stripes = (torch.rand(200, 3, 1, RESOLUTION, generator=generator) > 0.5).expand(200, 3, RESOLUTION, RESOLUTION)
    assert unlike(stripes.to(torch.uint8) * 255) > 0.8
    with torch.no_grad():
        logits = torch.cat([net(images) for images, _ in unseen])
        near = ~found.unlike(torch.cat([pooled(net, images, MACHINE) for images, _ in unseen]))
    right = (logits.argmax(1) == test.labels[:800]) & near
    assert int(found.answers[1].sum()) == int(right.sum())
    assert fit_known(net, train, [(test.inputs[:99], test.labels[:99])], 1.0, MACHINE) is None


def test_the_sample_of_the_training_images_is_spread_and_bounded():
    assert sample(10, 32).tolist() == list(range(10))
    spread = sample(50_000, 32)
    assert len(spread) == 5000 and (spread[0], spread[-1]) == (0, 49_999) and (np.diff(spread) > 0).all()
    assert len(sample(50_000, 256)) < 800


RUN = "smoke --data generated:2048/128 --epochs 1 --resolutions 16 --precision fp32 --threads 1 --run-dir run".split()


def test_a_run_keeps_what_it_knows_and_a_forged_one_is_refused(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert call(capsys, *RUN)[0] == 0
    assert checkpoint.load("model.pt").known is None  # test images are not fitted to
    code, out, _ = call(capsys, *RUN, "--validate", "--run-dir", "other")
    assert code == 0 and json.loads(out.splitlines()[-1])["split"] == "validation"
    loaded = checkpoint.load("model.pt")
    assert loaded.known is not None and loaded.known.total == loaded.metrics["test_total"]
    assert loaded.known.whitener.shape == (64, 64) and loaded.known.centres.shape == (10, 64)
    for path, value in (
        ("known/total", 0), ("known/total", 2**40), ("known/distance", "far"), ("known/extra", 1),
        ("known/answers", torch.zeros(2, 9, dtype=torch.int64)), ("known/centres", torch.zeros(11, 64)),
        ("known/whitener", torch.zeros(8, 8)), ("known/answers", torch.full((2, BINS), 2**40)),
        ("known/answers", torch.arange(2)[:, None].expand(2, BINS).clone()),
    ):  # fmt: skip
        checkpoint.save_model("forged.pt", loaded.model, replace(loaded.config), loaded.metrics, None, loaded.known)
        rewritten("forged.pt", lambda content, path=path, value=value: put(content, path, value))
        with pytest.raises(Mistake, match=r"known|promise"):
            checkpoint.load("forged.pt")
    assert checkpoint.load_model("model.pt").width == Config(width=8).width
