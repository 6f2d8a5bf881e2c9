"""gradcam.py from its command line, in this process: what it finds, what it writes, and what it says to mistakes."""

import base64
import csv
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image

import gradcam
from engine import checkpoint
from engine.config import Config
from engine.device import DTYPES
from engine.known import fit_known
from engine.learner import evaluate
from engine.machine import Machine
from engine.model import STAGES, ResNet
from explain import cam, faithfulness, options
from ground.entry import execute
from pipeline.dali import evaluation_loader
from pipeline.dataset import DataSet
from pipeline.pictures import decode
from pipeline.split import Split
from tests.cases import CLASSES
from tests.forged import rewritten
from tests.trained import trained

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
CONFIG = Config(width=8, resolutions=(24,), device="cpu", data="generated")


@pytest.fixture(scope="module")
def split() -> Split:
    return trained()[1].split()


def open_only(split: Split, part: str = "test") -> Callable[..., DataSet]:
    """Stands for open_dataset: a data set of which one part alone may be opened."""

    def load(name: str) -> Split:
        assert name == part, f"{name} was opened"
        return split

    return lambda *_: DataSet(load)


@pytest.fixture(scope="module")
def loaded(split: Split) -> tuple[torch.Tensor, dict[str, Any]]:
    """Logits by a plain forward pass over the loader, and the metrics that train.py would report."""
    net = trained()[0]
    loader = evaluation_loader(split, 24, CPU, 2)
    with torch.no_grad():
        logits = torch.cat([net(images) for images, _ in loader])
    score = evaluate(net, loader, Machine(CPU))
    return logits, {"test_correct": score.correct, "test_total": score.total, "precision": "fp32"}


@pytest.fixture
def run(tmp_path: Path, split: Split, loaded, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run gradcam.py in a folder that holds model.pt; gives the exit code, the result and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.dataset.open_dataset", open_only(split))
    checkpoint.save_model("model.pt", trained()[0], CONFIG, loaded[1])

    def command(*arguments: str) -> tuple[int, dict[str, Any], str]:
        monkeypatch.setattr(sys, "argv", ["gradcam.py", "--device", "cpu", "--threads", "1", *arguments])
        threads = torch.get_num_threads()
        with pytest.raises(SystemExit) as stopped:
            execute(gradcam.main, "gradcam.py")
        torch.set_num_threads(threads)
        out, err = capsys.readouterr()
        code = int(stopped.value.code or 0)
        return code, json.loads(out.splitlines()[-1]) if code == 0 else {}, err

    return command


def table(path: str = "errors.csv") -> list[dict[str, str]]:
    return list(csv.DictReader(Path(path).read_text().splitlines()))


def test_the_whole_set_is_found_explained_and_written(run, split: Split, loaded):
    code, result, err = run()
    assert (code, err) == (0, "")
    wrong = np.flatnonzero(loaded[0].numpy().argmax(1) != split.labels)
    assert [int(row["index"]) for row in table()] == wrong.tolist()
    assert [result[name] for name in ("errors", "maps", "checkpoint_errors")] == [len(wrong)] * 3
    assert result["accuracy"] == pytest.approx(loaded[1]["test_correct"] / 1000)
    assert (result["maps_computed"], result["drawn"], result["total"]) == (10_000, 10, 1000)
    assert 0 < result["layer4_against_autograd"] <= 1e-5
    with np.load("heatmaps.npz") as archive:
        assert archive["index"].tolist() == wrong.tolist()
        assert archive["maps"].shape == (len(wrong), 3, 3)
        net = trained()[0]
        sums = archive["maps"].sum((1, 2)) + net.fc.bias.detach().numpy()[archive["predicted"]]
        np.testing.assert_allclose(sums, archive["logits"].max(1), rtol=1e-4, atol=1e-4)
    assert Image.open("gallery.png").size[0] > 800
    assert sum(n for *_, n in result["confusions"]) <= result["errors"]
    assert set(Path().iterdir()) == {Path(n) for n in ("model.pt", "gallery.png", "errors.csv", "heatmaps.npz")}
    # Filters choose what is drawn, not what is stored.
    pairs = [(row["true"], row["predicted"]) for row in table()]
    true, predicted = max(pairs, key=pairs.count)
    everything = Path("errors.csv").read_bytes()
    code, result, _ = run("--true", true, "--pred", predicted, "--n", "200")
    assert (code, result["drawn"]) == (0, pairs.count((true, predicted)))
    assert Path("errors.csv").read_bytes() == everything


@pytest.mark.parametrize(
    ("out", "flags"),
    [
        ("gallery.png", ["--layer", "layer2", "--method", "hirescam", "--sort", "random", "--seed", "3"]),
        ("page.HTML", ["--layer", "layer3", "--faithfulness"]),
    ],
)
def test_running_twice_gives_the_same_bytes(run, out: str, flags: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(faithfulness, "IMAGES", 10)
    written = []
    for _ in range(2):
        code, result, _ = run("--out", out, *flags)
        assert code == 0 and ("faithfulness" in result) == ("--faithfulness" in flags)
        written.append({path.name: path.read_bytes() for path in Path().iterdir()})
    assert written[0] == written[1]
    assert (b"Are the maps faithful?" in written[0][out]) == ("--faithfulness" in flags)


def page_data(path: str) -> dict[str, Any]:
    """What the page's script works on."""
    return json.loads(Path(path).read_text().split('type="application/json">')[1].split("</script>")[0])


@pytest.mark.parametrize("layer", ["layer4", "layer3"])
def test_the_page_holds_what_the_table_and_the_archive_hold(run, layer: str):
    saved, batch = checkpoint.load("model.pt"), (trained()[1].inputs, trained()[1].labels)
    known = fit_known(saved.model, [batch], [batch], 1.0, Machine(CPU))
    checkpoint.save_model("model.pt", saved.model, CONFIG, saved.metrics, None, known)
    code, result, _ = run("--out", "page.html", "--layer", layer, "--sort", "confidence", "--target", "frog")
    assert known and str(known.keep(0.98)) in Path("page.html").read_text()
    data, rows = page_data("page.html"), table()
    assert (code, result["drawn"]) == (0, len(rows))
    assert data["start"] == {"true": "", "pred": "", "sort": "confidence", "map": 6}  # frog
    for i, row in enumerate(rows):
        assert data["index"][i] == int(row["index"])
        true, predicted = data["true"][i], data["predicted"][i]
        assert (CLASSES[true], CLASSES[predicted]) == (row["true"], row["predicted"])
        assert (data["rank"][i], data["loss"][i]) == (int(row["rank_of_true"]), float(row["loss"]))
        assert data["probabilities"][i][predicted] == pytest.approx(float(row["p_predicted"]), abs=1e-6)
        assert data["probabilities"][i][true] == pytest.approx(float(row["p_true"]), abs=1e-6)
    with np.load("heatmaps.npz") as archive:
        height, width = archive["maps"].shape[1:]
        assert data["grid"] == [height, width]
        cells = np.frombuffer(base64.b64decode(data["cells"]), np.int8).reshape(-1, 10, height, width)
        scales = np.frombuffer(base64.b64decode(data["scales"]), "<f4").reshape(-1, 10)
        rows_of = np.arange(len(rows))
        for name, classes in (("predicted_maps", archive["predicted"]), ("true_maps", archive["true"]), ("maps", 6)):
            stored = archive[name]
            restored = cells[rows_of, classes] * scales[rows_of, classes][:, None, None]
            assert np.abs(restored - stored).max() <= 1.001 * np.abs(stored).max() / 127


def test_own_pictures_by_confidence_with_the_unreadable_ones_named(run, split: Split):
    Path("own").mkdir()
    for i in range(12):
        Image.fromarray(split.images[i]).save(f"own/{i:02}.png")
    Path("own/broken.png").write_bytes(Path("own/00.png").read_bytes()[:99])
    for out in ("own.html", "own.png"):
        code, result, err = run("--images", "own", "--out", out, "--n", "5")
        assert (code, err, result["pictures"]) == (0, "", 12)
        assert result["drawn"] == (12 if out == "own.html" else 5)
        assert len(result["skipped"]) == 1 and result["skipped"][0].startswith("own/broken.png: ")
        assert "errors" not in result and not Path("errors.csv").exists()
        rows = table("images.csv")
        assert [row["file"] for row in rows] == [f"own/{i:02}.png" for i in range(12)]
        with np.load("images.npz") as archive:
            assert [CLASSES[k] for k in archive["predicted"]] == [row["predicted"] for row in rows]
    data = page_data("own.html")
    assert data["start"]["sort"] == "confidence" and data["files"] == [row["file"] for row in rows]
    net = trained()[0]
    with torch.no_grad():
        seen = [decode(Path(row["file"]), 32, "crop") for row in rows]  # as the data set has them
        likely = net.predict(torch.from_numpy(np.stack(seen))).topk(2)
    for row, values, classes in zip(rows, likely.values.tolist(), likely.indices.tolist(), strict=True):
        assert [row["predicted"], row["second"]] == [CLASSES[k] for k in classes]
        assert [float(row["p_predicted"]), float(row["p_second"])] == pytest.approx(values, abs=1e-4)


@pytest.mark.parametrize(
    ("out", "name", "message"),
    [
        ("own.png", "images.csv", "is not of this program: move it"),
        ("own.png", "images.npz", "is not of this program: move it"),
        ("own.png", "own.png", "is not of this program: move it"),
        ("own.html", "own.html", "is not of this program: move it"),
        ("m.html", "m.html", "is what this command reads, and would be overwritten"),
        ("one.png", "one.png", "is what this command reads, and would be overwritten"),
        ("holiday/0.png", "holiday/0.png", "lies in holiday, among what this command reads"),
        ("holiday/new.png", "holiday/0.png", "lies in holiday, among what this command reads"),
    ],
)
def test_a_file_of_the_person_s_own_is_not_overwritten(run, split: Split, out: str, name: str, message: str):
    Path("holiday").mkdir()
    for path in ("one.png", "own.png", "holiday/0.png"):
        Image.fromarray(split.images[0]).save(path)
    for path in ("images.csv", "images.npz", "own.html"):
        Path(path).write_bytes(b"PK\3\4path,label\none.png,cat\n")  # as damaged as an archive can be
    Path("m.html").write_bytes(Path("model.pt").read_bytes())
    if name != out:
        Path(out).unlink(missing_ok=True)
    for path in {"images.csv", "images.npz"} - {name}:
        Path(path).unlink()
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    code, _, err = run("--ckpt", "m.html", "--images", "one.png", "holiday", "--out", out)
    assert (code, err.count("\n")) == (2, 1) and err.startswith(f"gradcam.py: {out if 'new' in out else name} ")
    assert message in err
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_names_that_are_no_text_or_more_than_text_are_drawn_and_written_as_text(run, split: Split):
    Path("own").mkdir()
    names = [b"\xff.png", b"a\nb.png", b"\x1b[2J.png", b"[_x]<b>'\".png"]
    for i, name in enumerate(names):
        Image.fromarray(split.images[i]).save(os.path.join(b"own", name).decode(errors="surrogateescape"))
    Image.fromarray(split.images[9]).save("=cmd().png")
    Path(os.fsdecode(b"own/\x1b\xfe.png")).write_bytes(b"")
    for out in ("own.html", "own.png"):
        code, result, err = run("--images", "own", "=cmd().png", "--out", out)
        assert (code, err, result["pictures"]) == (0, "", 5)
    with open("images.csv", newline="", encoding="utf-8", errors="surrogateescape") as file:
        found = {row["file"] for row in csv.DictReader(file)}
    assert found == {f"own/{os.fsdecode(name)}" for name in names} | {"'=cmd().png"}


def test_layer_method_and_target_reach_the_maps(run, split: Split):
    _, result, _ = run("--layer", "layer3", "--method", "hirescam", "--target", "frog")
    net = trained()[0]
    with np.load("heatmaps.npz") as archive:
        images = next(iter(evaluation_loader(split, 24, CPU, 2)))[0][archive["index"]]
        expected = cam.heatmaps(net, images, torch.full((len(images),), 6), "layer3", "hirescam").numpy()
        np.testing.assert_allclose(archive["maps"], expected, rtol=1e-3, atol=1e-5)
        assert not np.allclose(archive["maps"], archive["predicted_maps"], rtol=1e-2)
    assert result["maps_computed"] == 3 * result["errors"]


@pytest.mark.parametrize("layer", ["layer4", "layer3"])
def test_a_perfect_model_has_an_empty_table_and_a_picture_and_a_page_that_say_so(
    run, split: Split, loaded, layer: str, monkeypatch: pytest.MonkeyPatch
):
    perfect = replace(split, labels=loaded[0].argmax(1).numpy())
    monkeypatch.setattr("pipeline.dataset.open_dataset", open_only(perfect))
    code, result, _ = run("--layer", layer, "--true", "cat")
    assert (code, result["errors"], result["drawn"], result["accuracy"]) == (0, 0, 0, 1.0)
    assert table() == []
    with np.load("heatmaps.npz") as archive:
        assert archive["maps"].shape[0] == 0
    width, height = Image.open("gallery.png").size
    assert width > 800 and height < 500
    assert run("--out", "page.html", "--layer", layer)[0] == 0
    assert "There is nothing to show" in Path("page.html").read_text()
    code, _, err = run("--out", "page.html", "--faithfulness")
    assert code == 2 and "there are 0" in err


def test_another_depth_other_classes_and_larger_images_in_files(run, loaded, monkeypatch):
    names, random = tuple(f"kind {i}" for i in range(12)), np.random.default_rng(0)
    other = Split(
        images=random.integers(0, 256, (40, 40, 40, 3), dtype=np.uint8),
        labels=random.integers(0, 12, 40), name="test", classes=names,
        files=tuple(f"photos/{i}.jpg" for i in range(40)), disputed=tuple(range(0, 40, 2)),
    )
    monkeypatch.setattr("pipeline.dataset.open_dataset", open_only(other))
    torch.manual_seed(0)
    model = ResNet(names, depth=34, width=4, resolution=24).eval()
    checkpoint.save_model("other.pt", model, replace(CONFIG, width=4, depth=34), loaded[1])
    for out in ("other.png", "other.html"):
        code, result, err = run("--ckpt", "other.pt", "--out", out, "--target", "kind 5", "--layer", "layer3")
        assert (code, err, result["errors"]) == (0, "", len(table()))
        assert result["checkpoint_errors"] != result["errors"]
    for row in table():
        i = int(row["index"])
        assert (row["file"], row["true"]) == (other.files[i], names[other.labels[i]])
        assert row["label_disputed"] == str(int(i % 2 == 0))
    with np.load("heatmaps.npz") as archive:
        assert archive["classes"].tolist() == list(names) and archive["layer4_class_maps"].shape[1] == 12
    data = page_data("other.html")
    assert data["files"] == [row["file"] for row in table()] and data["side"] == 40
    assert all(len(shown) == 10 and 5 in shown for shown in data["shown"])


def test_neighbours_stand_on_the_page_and_an_image_is_its_own(run, split: Split, monkeypatch):
    monkeypatch.setattr("pipeline.dataset.open_dataset", lambda *_: DataSet(lambda part: split))
    code, result, _ = run("--out", "page.html", "--neighbours")
    data = page_data("page.html")
    near = data["near"]
    assert code == 0 and 0 < result["errors"] == len(near["nearest"])
    nearest = [near["names"][row[0]] for row in near["nearest"]]
    assert nearest == [f"test image {index}" for index in data["index"]]


def test_a_validation_checkpoint_never_opens_the_test_set(run, split: Split, loaded, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipeline.dataset.open_dataset", open_only(replace(split, shuffled=True), "train"))
    checkpoint.save_model("held_out.pt", trained()[0], replace(CONFIG, validate=True), loaded[1])
    code, result, _ = run("--ckpt", "held_out.pt", "--n", "1")
    assert code == 0
    assert (result["split"], result["total"]) == ("validation", len(split) // 10)


def test_the_precision_is_the_checkpoints_own(run, loaded):
    fp32 = "--precision fp32"
    for stored, flags, used in (("bf16", "", "bf16"), ("fp16", "", "fp32"), ("bf16", fp32, "fp32")):
        checkpoint.save_model("model.pt", trained()[0], CONFIG, loaded[1] | {"precision": stored})
        assert run(*flags.split())[1]["precision"] == used


# Mistakes: one line, exit code 2, and nothing touched


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--n", "0"], "--n is 0: it must be 1 to 200"),
        (["--n", "201"], "--n is 201"),
        (["--seed", "-1"], "--seed is -1"),
        (["--threads", "-1"], "--threads is -1"),
        (["--out", "gallery.jpg"], "must end in .png or .html"),
        (["--neighbours"], "--neighbours are shown on a page: name it by --out errors.html"),
        (["--images", "own", "--true", "cat"], "need labels"),
        (["--images", "own", "--target", "true"], "need labels"),
        (["--images", "own", "--faithfulness"], "need labels"),
        (["--images", "nowhere"], "nowhere: No such file or directory"),
        (["--images", "text.pt"], "text.pt: cannot identify it as a picture"),
        (["--out", "missing/page.html"], "missing"),
        (["--true", "cat", "--pred", "cat"], "both cat"),
        (["--nn", "3"], "--nn"),
        (["--true", "wolf"], "--true is wolf: model.pt has no such class; it knows any, airplane"),
        (["--pred", "hors"], "--pred is hors: model.pt has no such class; it knows any, horse"),
        (["--target", "Frog"], "--target is Frog: model.pt has no such class; it knows pred, true, margin, frog"),
        (["--precision", "fp16"], "fp16 on a CPU"),
        (["--out", "folder.png"], "folder.png"),
        (["--ckpt", "missing.pt"], "missing.pt: no such checkpoint: `make train` makes model.pt"),
        (["--ckpt", "corrupt.pt"], "corrupt.pt is damaged"),
        (["--ckpt", "foreign.pt"], "foreign.pt is not a model checkpoint"),
        (["--ckpt", "text.pt"], "text.pt is not a model checkpoint"),
        (["--ckpt", "folder.png"], "gradcam.py: folder.png: it is a folder: name a file"),
        (["--ckpt", "spoilt.pt"], "a number in a tensor is not finite"),
    ],
)
def test_mistakes(run, flags: list[str], message: str, loaded):
    Path("folder.png").mkdir()
    data = bytearray(Path("model.pt").read_bytes())
    data[len(data) // 2] ^= 1
    Path("corrupt.pt").write_bytes(data)
    Path("text.pt").write_text("no checkpoint")
    torch.save({"weights": torch.zeros(3)}, "foreign.pt")
    shutil.copy("model.pt", "spoilt.pt")
    rewritten("spoilt.pt", lambda content: content["weights"]["fc.bias"].fill_(torch.nan))
    before = {path.name for path in Path().iterdir()}
    code, _, err = run(*flags)
    assert code == 2 and message in " ".join(err.replace("|", " ").split())
    assert "For full helptext" in err or (err.startswith("gradcam.py: ") and err.count("\n") == 1)
    assert {path.name for path in Path().iterdir()} == before


def test_old_files_survive_when_new_ones_cannot_be_written(run):
    assert run()[0] == 0
    before = {path.name: path.read_bytes() for path in Path().iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # bytes a file
    try:
        code, _, err = run("--layer", "layer3")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 2 and "gallery.png: File too large" in err
    assert {path.name: path.read_bytes() for path in Path().iterdir()} == before


# The command line


def test_flags_name_the_stages_methods_and_orders():
    fields = options.GradcamOptions.__dataclass_fields__
    assert get_args(fields["layer"].type) == STAGES
    assert get_args(fields["method"].type) == tuple(cam.METHODS)
    assert get_args(fields["sort"].type) == tuple(options.ORDERS)
    assert {"checkpoint", *DTYPES} == set(get_args(fields["precision"].type))


def test_help_loads_nothing_heavy():
    code = (
        "import runpy, sys; sys.argv = ['gradcam.py', '--help']\n"
        "try: runpy.run_path('gradcam.py', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'nvidia.dali', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    words = " ".join(done.stdout.replace("│", " ").split())
    assert "--layer" in words and "What --sort random and --faithfulness draw by" in words
