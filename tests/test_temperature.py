"""engine/temperature.py, and a checkpoint's temperature from the run to what reads it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine import checkpoint
from engine.checkpoint import Checkpoint
from engine.config import HOTTEST, Config
from engine.learner import Batch
from engine.machine import Machine
from engine.model import ResNet
from engine.temperature import FEWEST, fit_temperature
from explain import study
from explain.explainer import Explainer
from explain.study import calibration
from pipeline.dataset import DataSet, open_dataset
from pipeline.synthetic import generated
from tests.commands import call

CPU = torch.device("cpu")
MACHINE = Machine(CPU)


class Given(nn.Module):
    """Gives the pixels' own numbers as logits."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def batches(logits: Tensor, labels: Tensor, size: int = 300) -> Iterator[Batch]:
    return zip(logits[:, :, None, None].split(size), labels.split(size), strict=True)


def drawn(scale: float, count: int = 20_000) -> tuple[Tensor, Tensor]:
    """Logits that are `scale` times those by whose softmax the labels are drawn."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(count, 10, generator=generator)
    return scale * logits, torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]


@pytest.mark.parametrize("scale", [0.4, 1.0, 2.5])
def test_the_temperature_that_spoilt_the_logits_is_found(scale: float):
    logits, labels = drawn(scale)
    found = fit_temperature(Given(), batches(logits, labels), MACHINE)
    assert found is not None and found == pytest.approx(scale, rel=0.03)
    assert calibration(logits / found, labels.numpy()).error < 0.01
    if scale != 1:
        assert calibration(logits, labels.numpy()).error > 0.05


def test_padding_does_not_count_few_images_give_none_and_all_wrong_ends_at_a_bound():
    logits, labels = drawn(0.4, FEWEST)
    padded = batches(torch.cat([logits, 9 * torch.ones(50, 10)]), torch.cat([labels, torch.full((50,), -1)]))
    assert fit_temperature(Given(), padded, MACHINE) == fit_temperature(Given(), batches(logits, labels), MACHINE)
    assert fit_temperature(Given(), batches(logits[1:], labels[1:]), MACHINE) is None
    assert fit_temperature(Given(), [], MACHINE) is None
    assert fit_temperature(Given(), batches(logits, logits.argmin(1)), MACHINE) == pytest.approx(HOTTEST)


@pytest.mark.parametrize("count", [200, 5000])
def test_a_model_that_makes_no_error_is_not_made_as_sure_as_can_be(count: int):
    labels = torch.arange(count) % 10
    logits = 3.0 * F.one_hot(labels, 10)
    found = fit_temperature(Given(), batches(logits, labels, 100), MACHINE)
    assert found is not None
    wrong = 1 - (logits.double() / found).softmax(1).amax(1)
    assert wrong.numpy() == pytest.approx(1 / (count + 2), rel=1e-6)


DATA = open_dataset("generated:2048/128")
RUN = "smoke --data generated:2048/128 --epochs 1 --resolutions 16 --precision fp32 --threads 1 --run-dir run".split()


def test_a_run_with_images_held_out_is_as_sure_as_it_is_right(capsys, monkeypatch, tmp_path: Path):
    """After one epoch the model is far from that. What reads the checkpoint gets the logits divided."""
    monkeypatch.chdir(tmp_path)
    code, out, _ = call(capsys, *RUN, "--validate")
    loaded = checkpoint.load("model.pt")
    temperature = loaded.metrics["temperature"]
    assert code == 0 and json.loads(out.splitlines()[-1])["temperature"] == temperature != 1
    found = study.of_split(Explainer.of(loaded, "cpu", threads=1), loaded, DATA).plain()
    assert found["calibration_error"] < found["calibration_error_without"]
    assert found["temperature"] == temperature and found["temperature_fitted_here"]

    content = checkpoint.read("model.pt", checkpoint.MODEL)
    content["config"] = checkpoint.config_dict(content["config"])
    content["metrics"].pop("temperature")  # as older checkpoints
    checkpoint.write("older.pt", checkpoint.MODEL, content)
    images = torch.randint(256, (5, 32, 32, 3), dtype=torch.uint8)
    older, newer = (checkpoint.load_model(name).predict(images).log() for name in ("older.pt", "model.pt"))
    torch.testing.assert_close((older / temperature).softmax(1), newer.exp())


def test_test_images_are_not_fitted_to_and_the_config_has_another(capsys, monkeypatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    assert call(capsys, *RUN)[0] == 0
    assert checkpoint.load("model.pt").metrics["temperature"] == 1
    assert call(capsys, *RUN, "--run-dir", "other", "--temperature", "0.5")[0] == 0
    loaded = checkpoint.load("model.pt")
    assert loaded.metrics["temperature"] == 0.5
    assert not study.of_split(Explainer.of(loaded, "cpu", threads=1), loaded, DATA).fitted


@pytest.mark.parametrize(("fold", "own", "fitted"), [("", True, True), ("1/2", True, False), ("1/2", False, True)])
def test_a_fold_s_temperature_comes_from_the_validation_part_if_there_is_one(fold: str, own: bool, fitted: bool):
    trained = Checkpoint(ResNet(["a", "b"], width=1), Config(fold=fold), {"temperature": 0.7}, torch.zeros(0))
    assert study.fitted_to_it(trained, DataSet(lambda part: generated(8), lambda: own)) == fitted
