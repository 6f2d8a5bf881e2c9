"""compare-answers: against statsmodels, on what predict.py and train.py write, and refusals."""

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar as theirs

from bench import __main__ as entry
from bench.recipe.compare_answers import Told, compare, mcnemar, pictures_needed
from engine import checkpoint
from engine.config import Config
from explain.outputs import cell
from ground.entry import execute
from pipeline.dataset import DataSet
from run.folder import RunFolder
from tests.cases import CLASSES
from tests.trained import trained


@pytest.mark.parametrize("seed", range(40))
def test_the_exact_test_is_statsmodels(seed: int):
    a, b = np.random.default_rng(seed).integers(0, (2, 30, 400, 3000)[seed % 4], 2).tolist()
    expected = theirs([[9, a], [b, 9]], exact=True).pvalue
    assert mcnemar(a, b) == pytest.approx(expected, rel=0, abs=1e-12)


def test_so_many_pictures_show_a_difference_in_80_of_100_cases():
    random, found = np.random.default_rng(0), []
    count = pictures_needed(0.08, 0.02)
    assert count and count == pictures_needed(0.08, -0.02) and pictures_needed(0.08, 0.0) is None
    for _ in range(1000):
        _, a, b = random.multinomial(count, (0.92, 0.03, 0.05)).tolist()
        found.append(mcnemar(a, b) <= 0.05)
    assert 0.76 < np.mean(found) < 0.83  # an exact test finds a little less than the formula's


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """The command in a folder with a.pt and b.pt, of which b has one unit of layer4 less."""
    monkeypatch.chdir(tmp_path)
    net, test = trained()
    images, files = test.inputs.permute(0, 2, 3, 1), tuple(f"=at/{i}.png" for i in range(1000))
    split = replace(test.split(), images=images.numpy(), contents=np.arange(1000), files=files)
    monkeypatch.setattr("pipeline.dataset.open_dataset", lambda *_: DataSet(lambda name: split))
    config = Config(width=8, resolutions=(24,), device="cpu", data="generated")
    kept = {"precision": "fp32"}
    checkpoint.save_model("a.pt", net, config, kept)
    other = checkpoint.load("a.pt").model
    other.fc.weight[:, :8] = 0
    checkpoint.save_model("b.pt", other, config, kept)
    for name, model in (("a", net), ("b", other)):
        p = model.predict(images).numpy()
        with RunFolder(f"runs/{name}") as folder:
            folder.write_predictions(split, p.argmax(1), p.max(1))
        said = [CLASSES[i] for i in p.argmax(1)]
        rows = [*zip(map(cell, split.files), said, (CLASSES[i] for i in split.labels), strict=True)]
        with open(f"{name}.csv", "w", newline="") as file:
            head, unlabelled = ("file", "prediction", "label"), ("x", "cat", "")
            csv.writer(file).writerows([head, *rows[::-1], unlabelled])

    def command(*arguments: str) -> tuple[int, dict[str, Any], str, str]:
        words = ["bench", "compare-answers", "--device", "cpu", *arguments]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as stopped:
            execute(entry.main, "bench")
        out, err = capsys.readouterr()
        code = int(stopped.value.code or 0)
        return code, json.loads(out.splitlines()[-1]) if code == 0 else {}, out, err

    return command


def test_checkpoints_run_folders_and_tables_say_the_same(run):
    code, result, out, _ = run("a.pt", "b.pt")
    net, test = trained()
    models = net, checkpoint.load_model("b.pt")
    right = [model(test.inputs).argmax(1) == test.labels for model in models]
    assert code == 0 and result["pictures"] == 1000 and result["matched_by"] == "content"
    assert result["accuracy"] == pytest.approx([float(one.double().mean()) for one in right])
    alone = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    assert (result["right_in_a_alone"], result["right_in_b_alone"]) == alone and min(alone) > 0
    assert f"{alone[0]} are right in A alone, {alone[1]} in B alone" in out and "=at/" in out
    kept = "runs/a/predictions.npz"
    for pair in (("runs/a", "b.pt"), (kept, "runs/b"), ("a.csv", "runs/b"), ("a.csv", "b.csv")):
        code, other, _, _ = run(*pair)
        assert code == 0 and len(other.pop("changed")) == sum(alone)
        assert other.pop("matched_by") == ("file" if "a.csv" in pair else "content")
        assert other == {key: result[key] for key in other}
    _, same, out, _ = run("a.csv", "a.pt")
    assert (same["p"], same["pictures_needed"], same["changed"]) == (1, None, [])
    assert "chance may be all" in out


def test_the_page_holds_what_one_alone_gets_right(run):
    code, result, _, _ = run("a.pt", "b.pt", "--out", "changed.html")
    page = Path("changed.html").read_text()
    data = json.loads(page.split('id="data" type="application/json">')[1].split("</script>")[0])
    marked = {file for file, mark in zip(data["files"], data["disputed"], strict=True) if mark}
    right_in_b = {file for file, label, _, said_b in result["changed"] if said_b == label}
    assert code == 0 and result["out"] == "changed.html"
    assert len(data["files"]) == result["right_in_a_alone"] + result["right_in_b_alone"]
    assert len(marked) == result["right_in_a_alone"] and right_in_b == {*data["files"]} - marked
    assert f"right in A alone ({len(marked)})" in page and "of 1,000 test images" in page
    assert "% right</b>" not in page and "--layer" not in page
    assert all(true != said for true, said in zip(data["true"], data["predicted"], strict=True))
    code, _, _, err = run("a.pt", "a.pt", "--out", "same.html")
    assert code == 2 and "there are 0 pictures that one alone gets right" in err and not Path("same.html").exists()
    refused = (("b.csv", "x.html", "needs two checkpoints"), ("b.pt", "x.png", "must end in .html"))
    for name, page, said in refused:
        code, _, _, err = run("a.pt", name, "--out", page)
        assert code == 2 and said in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("a.pt", "b.pt", "--out", "notes.html"), "notes.html would be overwritten, and is not of this program"),
        (("a.pt", "c.pt"), "c.pt: no such checkpoint"),
        (("a.pt", "empty"), "empty/predictions.npz: No such file"),
        (("a.csv", "notes.csv"), "notes.csv holds no predictions of this program"),
        (("a.csv", "notes.jsonl"), "notes.jsonl holds no predictions"),
        (("a.csv", "notes.npz"), "notes.npz holds no predictions"),
        (("a.csv", "none.csv"), "predictions of this program for pictures with labels"),
        (("a.csv", "far.csv"), "the two have no pictures in common, by their files"),
        (("a.csv", "other.csv"), "=at/0.png has the label "),
    ],
)
def test_refusals_are_one_line(run, arguments: tuple[str, str], said: str):
    for name in ("notes.csv", "notes.jsonl", "notes.npz", "notes.html"):
        Path(name).write_text("shopping\n")
    Path("empty").mkdir()
    Path("none.csv").write_text("file,prediction,label\nx,cat,\n")
    Path("far.csv").write_text("file,prediction,label\nx,cat,cat\n")
    Path("other.csv").write_text("file,prediction,label\n'=at/0.png,cat,zebra\n")
    code, _, _, err = run(*arguments)
    assert (code, err.count("\n")) == (2, 1) and said in err


def test_classes_go_by_name_in_any_spelling_and_others_are_refused():
    a = Told("pq", ["Cat", "dog"], ["cat", "cat"], (), ["cat", "dog"])
    b = Told("qp", ["dog", "cat "], ["dog", "dog"], (), ["dog", "cat"])
    result, wrong = compare(a, b)
    assert wrong == ([1], [1])
    assert (result["right_in_a_alone"], result["right_in_b_alone"]) == (1, 1)
    assert result["accuracy"] == [0.5, 0.5]
    with pytest.raises(ValueError, match="the two have other classes: cow are in one alone"):
        compare(a, replace(b, classes=["dog", "cat", "cow"]))
