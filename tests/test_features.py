"""features.npz, of the checkpoint's data and of other pictures; what errors are like, on the page."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from engine import checkpoint
from engine.config import Config
from engine.model import ResNet
from explain import neighbours, page
from explain.options import GradcamOptions
from export import ExportOptions, export
from pipeline.dali import evaluation_loader
from pipeline.dataset import open_dataset
from tests.cases import CPU, explainer, layer4_maps, made_up
from tests.test_page import smooth_images, start, study_of  # noqa: F401
from tests.trained import RESOLUTION, glyphs, trained, wrong_cases


def features_of(config: Config, data: str = "") -> dict[str, Any]:
    """What export.py writes of a random network of that configuration."""
    torch.manual_seed(0)
    train = open_dataset(config.data, config.size).load("train")
    model, learnt = ResNet(train.classes, width=config.width).eval(), torch.from_numpy(train.contents)
    checkpoint.save_model("m.pt", model, config, {"precision": "fp32"}, learnt)
    export(ExportOptions(ckpt="m.pt", out="features.npz", threads=1, data=data))
    return dict(np.load("features.npz"))


@pytest.mark.parametrize("validate", [False, True])
def test_every_picture_has_its_features_and_what_is_said_of_it(monkeypatch, tmp_path, validate):
    monkeypatch.chdir(tmp_path)
    config = Config(data="generated:70/30", width=2, resolutions=(32,), validate=validate)
    found, net = features_of(config), checkpoint.load_model("m.pt")
    both = open_dataset(config.data).splits(validate)
    images = np.concatenate([np.asarray(one.images) for one in both])
    labels = np.concatenate([one.labels for one in both])
    with torch.no_grad():
        probabilities = net.predict(torch.tensor(images))
        own = net.fc(torch.tensor(found["features"])).softmax(1)
    assert found["features"].dtype == np.float32 and float((own - probabilities).abs().max()) < 1e-5
    assert found["part"].tolist() == [one.name for one in both for _ in range(len(one))]
    assert np.array_equal(found["label"], labels)
    assert np.array_equal(found["prediction"], probabilities.argmax(1))
    assert np.abs(found["probability"] - probabilities.amax(1).numpy()).max() < 1e-5
    assert found["path"][-1] == f"{both[1].name} image {len(both[1]) - 1}"
    assert found["classes"].tolist() == list(net.classes) and "checkpoint_sha256" in found


def test_a_folder_that_moved_keeps_its_parts_and_others_have_labels_by_name(monkeypatch, tmp_path):
    monkeypatch.setenv("CIFAR10_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for place in ("own/a", "own/b", "other/b", "other/c"):
        Path(place).mkdir(parents=True)
        for i in range(6):
            rng = np.random.default_rng([i, *place.encode()])
            pixels = rng.integers(0, 256, (40, 40, 3), np.uint8)
            Image.fromarray(pixels).save(f"{place}/{i}.png")
    config = Config(data=str(tmp_path / "own"), size=32, width=2, resolutions=(32,))
    first = features_of(config)
    assert first["part"].tolist() == ["train"] * 8 + ["validation"] * 2 + ["test"] * 2
    Path("moved").symlink_to("own")
    again = features_of(config, data="moved")
    assert all(np.array_equal(again[name], first[name]) for name in ("features", "part", "label"))
    Path("other/b/0.png").write_bytes(Path("own/a/1.png").read_bytes())
    Path("other/b/1.png").write_text("no picture")
    decoded = sorted(Path("cache").rglob("*.pictures"))
    found = features_of(config, data="other")
    names = [f"other/{c}/{i}.png" for c in "bc" for i in range(6)]
    assert found["path"].tolist() == [name for name in names if name != "other/b/1.png"]
    assert found["label"].tolist() == [1] * 5 + [-1] * 6 and set(found["part"]) == {""}
    same = first["path"] == str(tmp_path / "own/a/1.png")
    assert np.abs(found["features"][0] - first["features"][same]).max() < 1e-5
    assert decoded and sorted(Path("cache").rglob("*.pictures")) == decoded


def test_neighbours_have_the_largest_cosines(monkeypatch):
    net, cases, train = trained()[0], wrong_cases(), glyphs(500, seed=3).split()
    np.asarray(train.images)[7] = cases.pictures[5]
    found = neighbours.find(explainer(net), cases, train)
    with torch.no_grad():
        inputs = torch.cat([images for images, _ in evaluation_loader(train, RESOLUTION, CPU, 1)])
        ours, theirs = (net.features(some).mean((2, 3)).double() for some in (cases.inputs, inputs))
    lengths = ours.norm(dim=1)[:, None] * theirs.norm(dim=1)
    cosines = (ours @ theirs.T / lengths).numpy()
    places = np.array([int(name.removeprefix("test image ")) for name in found.names])
    nearest = places[found.nearest]
    assert len(set(places)) == len(places) and nearest[5, 0] == 7
    own = np.take_along_axis(cosines, nearest, 1)
    assert np.abs(own + np.sort(-cosines, 1)[:, :5]).max() < 1e-5
    assert np.abs(own - found.likeness).max() < 6e-4
    assert np.array_equal(found.pictures, train.images[places])
    assert np.array_equal(found.labels, train.labels[places])
    monkeypatch.setattr(neighbours, "COMPARED", 3)
    monkeypatch.setattr(neighbours, "SHOWN", 10)
    some = neighbours.find(explainer(net), cases, train)
    assert some.names == ("test image 0", "test image 249", "test image 499")
    assert np.flatnonzero(some.nearest[:, 0] >= 0).tolist() == sorted(cases.select()[:10])


def test_the_page_shows_the_five_beside_an_error_and_stays_small(start, tmp_path):  # noqa: F811
    count, rng = 10_000, np.random.default_rng(0)
    pictures = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)  # 8 MB as they are
    names = tuple(f"<b>{i}.png" for i in range(count))
    nearest, labels = np.arange(count).reshape(-1, 5), np.arange(count) % 7
    likeness = np.full(nearest.shape, 0.123)
    nearest[1] = -1
    window = start("--window-size=1300,1000")
    near = neighbours.Neighbours(nearest, likeness, pictures, labels, names)
    cases = made_up(2000, cells=16, pictures=smooth_images(2000))
    options = GradcamOptions(out="a.html")
    content = page.render(study_of(cases), layer4_maps(cases), None, options, "a net", near=near)
    assert len(content) < 9e6
    (tmp_path / "a.html").write_bytes(content)
    window.open(tmp_path / "a.html")
    window.run("choose(399)")
    figures = "[...document.querySelectorAll('.near figure')]"
    said = window.run(f"return {figures}.map((one) => [one.innerText, one.title])")
    words = [(names[i], cases.classes[labels[i]]) for i in nearest[399]]
    assert said == [[word, f"{name}: {word}, cosine 0.123"] for name, word in words]
    drawn = window.pixels(".near figure:last-child canvas")
    small = [np.array(Image.fromarray(pictures[i]).resize(drawn.shape[:2])) for i in nearest[399]]
    assert int(np.argmin([np.abs(drawn - one).mean() for one in small])) == 4
    window.run("choose(1)")
    assert window.box(".near")["height"] == 0 and window.complaints() == []
