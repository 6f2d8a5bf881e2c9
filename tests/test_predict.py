"""predict.py from its command line, in this process: table, figures, page, and mistakes."""

import csv
import hashlib
import io
import json
import os
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import predict
from engine import checkpoint
from engine.config import Config
from engine.known import fit_known
from engine.machine import Machine
from ground.entry import execute
from judge import answers
from judge.sources import Labels, find
from pipeline.contents import AHEAD, BLOCK, in_order
from pipeline.dataset import DataSet
from tests.cases import CLASSES
from tests.trained import glyphs, trained

CONFIG = Config(width=8, resolutions=(24,), device="cpu", data="generated")
COUNT = 300
IMAGES = trained()[1].images[:COUNT].numpy()
LABELS = trained()[1].labels[:COUNT].numpy()


def save(place: Path | str, index: int) -> Path:
    Path(place).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(IMAGES[index]).save(place, "PNG")
    return Path(place)


def folder(name: str, names: tuple[str, ...] = CLASSES) -> list[int]:
    """Class folders under these names, "" of those left out; the indices of their images."""
    kept = [i for i in range(COUNT) if names[LABELS[i]]]
    for i in kept:
        save(f"{name}/{names[LABELS[i]]}/{i}.png", i)
    return kept


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run predict.py beside model.pt; gives the exit code, the result, what was said, stderr."""
    monkeypatch.chdir(tmp_path)
    net, test = trained()
    some, machine = glyphs(600, seed=1), Machine(torch.device("cpu"))
    known = fit_known(net, [(some.inputs, some.labels)], [(test.inputs[300:], test.labels[300:])], 1.0, machine)
    checkpoint.save_model("model.pt", net, CONFIG, {"precision": "fp32"}, None, known)

    def command(*arguments: str, stdin: str = "") -> tuple[int, dict[str, Any], list[str], str]:
        monkeypatch.setattr(sys, "argv", ["predict.py", "--device", "cpu", "--threads", "1", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(os.fsencode(stdin))))
        threads = torch.get_num_threads()
        with pytest.raises(SystemExit) as stopped:
            execute(predict.main, "predict.py")
        torch.set_num_threads(threads)
        out, err = capsys.readouterr()
        lines = out.splitlines()
        return int(stopped.value.code or 0), json.loads(lines[-1]) if lines else {}, lines[:-1], err

    return command


def table(path: str = "predictions.csv") -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def expected(indices: list[int]) -> np.ndarray:
    """(n, 10) probabilities by the plain model."""
    seen = np.stack([IMAGES[i] for i in indices])
    return trained()[0].predict(torch.from_numpy(seen)).numpy()


def test_every_picture_gets_what_predict_says_whatever_its_place(run):
    folder("own")
    names = sorted(str(path) for path in Path("own").rglob("*.png"))
    Path("list.csv").write_text("file,class\n" + "".join(f"{name},{Path(name).parent.name}\n" for name in names))
    whole = expected([int(Path(name).stem) for name in names])
    for given, stdin in ((["own"], ""), (names, ""), (["list.csv"], ""), (["-"], "\n".join(names))):
        code, result, _, _ = run(*given, stdin=stdin)
        rows = table()
        assert code == 0 and result["pictures"] == len(rows) == COUNT
        assert [row["file"] for row in rows] == names if given != ["own"] else {row["file"] for row in rows} == {*names}
        of = {row["file"]: row for row in rows}
        for name, p in zip(names, whole, strict=True):
            row, order = of[name], np.argsort(-p)
            assert row["prediction"] == CLASSES[order[0]]
            assert float(row["probability"]) == pytest.approx(p.max(), abs=1e-5)
            assert [row[f"class_{k}"] for k in range(2, 6)] == [CLASSES[c] for c in order[1:5]]
            assert row["known"] in ("0", "1")
        assert bool(rows[0]["label"]) == (given in (["own"], ["list.csv"])) == bool(result["scored"])
    code, result, _, _ = run("own", "--all", "--out", "all.jsonl")
    lines = [json.loads(line) for line in Path("all.jsonl").read_text().splitlines()]
    assert len(lines) == COUNT and {type(line["known"]) for line in lines} == {bool}
    by_file = {line["file"]: line for line in lines}
    for name, p in zip(names, whole, strict=True):
        assert [by_file[name][f"p {one}"] for one in CLASSES] == pytest.approx(p.tolist(), abs=1e-5)
    assert run("own", "--all")[0] == 0
    assert [float(table()[0][f"p {name}"]) for name in CLASSES] == pytest.approx(whole[0].tolist(), abs=1e-5)


def test_the_figures_are_those_of_the_table_and_the_page_of_lines_tells_them(run):
    folder("own")
    _, result, said, _ = run("own", "--promise", "0.9")
    rows = table()
    right = [row["prediction"] == row["label"] for row in rows]
    assert result["scored"] == COUNT and result["accuracy"] == pytest.approx(np.mean(right))
    sure = [one for one, row in zip(right, rows, strict=True) if row["known"] == "1"]
    assert result["known"] == len(sure) and result["answered_accuracy"] == pytest.approx(np.mean(sure))
    assert result["answered"] == pytest.approx(len(sure) / COUNT) and result["accuracy"] < np.mean(sure)
    p = expected([int(Path(row["file"]).stem) for row in rows])
    own = p[np.arange(COUNT), [CLASSES.index(row["label"]) for row in rows]]
    assert result["log_loss"] == pytest.approx(-np.log(own).mean(), abs=1e-4)
    for name in CLASSES:
        mine = [row["prediction"] == name for row in rows if row["label"] == name]
        assert result["classes"][name]["recall"] == pytest.approx(np.mean(mine))
    assert sum(n for *_, n in result["confusions"]) == COUNT - sum(right)
    text = "\n".join(said)
    assert f"{COUNT} pictures with a label: right {np.mean(right):.2%} (95% interval" in text and "ECE" in text
    start = next(i for i, line in enumerate(said) if "confusions" in line) + 1
    matrix = np.array([line.split()[-10:] for line in said[start:][:10]], int)
    assert matrix.sum() == COUNT and np.trace(matrix) == sum(right)
    assert result["known"] < run("own", "--promise", "0.8")[1]["known"] < COUNT


def shown(run, names: tuple[str, ...]) -> tuple[dict[str, Any], float]:
    """The result for class folders of these names, and the accuracy by the plain model."""
    kept = folder("own", names)
    known = [i for i in kept if names[LABELS[i]].lower() in CLASSES]
    p = expected(known)
    code, result, _, _ = run("own")
    assert code == 0 and result["pictures"] == len(kept) and result["scored"] == len(known)
    right = [CLASSES[k] == names[LABELS[i]].lower() for i, k in zip(known, p.argmax(1), strict=True)]
    return result, float(np.mean(right))


def test_classes_are_matched_by_name_where_some_are_missing_renamed_or_new(run):
    names = ("Airplane", "", "bird", "kitty", "DEER", "dog", "frog", "horse", "ship", "truck")
    result, accuracy = shown(run, names)
    assert result["accuracy"] == pytest.approx(accuracy) and accuracy > 0.6
    assert result["foreign_labels"] == ["kitty"] and result["absent"] == ["automobile", "cat"]
    assert {"automobile", "cat"}.isdisjoint(result["classes"]) and len(result["classes"]) == 8
    labels = {Path(row["file"]).parent.name: row["label"] for row in table()}
    assert labels["kitty"] == "kitty" and labels["DEER"] == "DEER"


def test_order_and_number_of_the_folders_mean_nothing(run):
    for name in ("aardvark", "zebra"):  # before and after all others
        save(f"own/{name}/x.png", 0)
    kept = folder("own")
    right = expected(kept).argmax(1) == LABELS[kept]
    _, result, said, _ = run("own")
    assert result["accuracy"] == pytest.approx(right.mean()) and result["scored"] == COUNT
    assert result["foreign_labels"] == ["aardvark", "zebra"]
    assert said[0] == "not scored, as the model has no such class: aardvark, zebra"


def test_parts_above_or_below_the_classes_and_a_single_class_are_read_too(run):
    for path, i in (("a/train/cat/1.png", 1), ("a/test/dog/2.png", 2), ("b/cat/val/3.png", 3), ("frog/4.png", 4)):
        save(path, i)
    items, total = find(["a", "b", "frog"], Labels(CLASSES))
    assert list(items) == [
        ("a/test/dog/2.png", "dog"), ("a/train/cat/1.png", "cat"), ("b/cat/val/3.png", "cat"), ("frog/4.png", "frog"),
    ]  # fmt: skip
    assert total == 4


def test_pictures_that_were_trained_on_are_told_by_content_and_left_out(run):
    folder("own")
    loaded = checkpoint.load("model.pt")
    learnt = sorted(Path("own").rglob("*.png"))[::2]
    contents = [int.from_bytes(hashlib.sha256(path.read_bytes()).digest()[:8]) for path in learnt]
    trained_on = torch.from_numpy(np.sort(np.array(contents, np.uint64).view(np.int64)))
    checkpoint.save_model("half.pt", loaded.model, CONFIG, loaded.metrics, trained_on, loaded.known)
    for path in learnt[:20]:
        path.rename(path.with_name(f"renamed-{path.name}"))
    _, result, said, _ = run("own", "--ckpt", "half.pt")
    assert (result["trained_on"], result["scored"], result["pictures"]) == (150, 150, COUNT)
    assert said[0].startswith("150 of the pictures were trained on: they do not count")
    assert len(table()) == COUNT
    result = run("own", "--ckpt", "half.pt", "--with-training")[1]
    assert (result["trained_on"], result["scored"]) == (150, COUNT)


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_part_of_the_checkpoint_s_own_data(run, monkeypatch: pytest.MonkeyPatch, part: str):
    split = trained()[1].split()
    monkeypatch.setattr("pipeline.dataset.open_dataset", lambda *_: DataSet(lambda name: split))
    code, result, _, _ = run("--part", part)
    rows = table()
    assert code == 0 and len(rows) == 1000 and rows[7]["file"] == "test image 7"
    assert result["trained_on"] == (1000 if part == "train" else 0)
    assert result["scored"] == (0 if part == "train" else 1000)
    right = [row["prediction"] == row["label"] for row in rows]
    assert part == "train" or result["accuracy"] == pytest.approx(np.mean(right))
    code, _, _, err = run("--part", "validation")
    assert (code, err.count("\n")) == (2, 1) and "--part is validation: model.pt was trained without" in err


def test_bad_files_are_named_and_the_rest_goes_on(run):
    folder("own")
    whole = save("own/cat/whole.png", 0).read_bytes()
    for i in range(20):
        Path(f"own/cat/bad{i}.png").write_bytes(whole[: 50 + i])
    Path("own/notes.txt").write_text("no picture")
    code, result, said, _ = run("own")
    assert code == 0 and result["skipped_total"] == 21 and result["pictures"] == COUNT + 1 == len(table())
    assert {f"own/cat/bad{i}.png" for i in range(20)} == {
        line.split()[1].rstrip(":") for line in said if line.startswith("skipped own/cat/bad")
    }
    skipped = [line for line in said if line.startswith("skipped ")]
    assert len(skipped) == 21 and skipped[-1] == "skipped own/notes.txt: no picture, .txt"
    for i in range(99):
        Path(f"own/a{i}.txt").touch()
    code, result, said, _ = run("own")
    assert (code, result["skipped_total"]) == (0, 120)
    assert sum(line.startswith("skipped own/cat/bad") for line in said) == 20 and "skipped 20 more" in said


def test_the_page_shows_the_errors_with_the_figures(run):
    folder("own")
    save("own/zebra/1.png", 1)
    rows = [row for row in table() if row["label"] != "zebra"] if run("own")[0] == 0 else []
    wrong = {row["file"]: (row["label"], row["prediction"]) for row in rows if row["label"] != row["prediction"]}
    code, _, said, _ = run("own", "--out", "report.html")
    text = Path("report.html").read_text()
    assert "--layer" not in text
    data = json.loads(text.split('type="application/json">')[1].split("</script>")[0])
    pairs = [(CLASSES[true], CLASSES[other]) for true, other in zip(data["true"], data["predicted"], strict=True)]
    assert code == 0 and dict(zip(data["files"], pairs, strict=True)) == wrong
    assert f"{len(wrong)} errors of {COUNT} labelled images" in text and said[1] in text
    assert run("own", "--out", "report.html")[0] == 0  # one of ours is written over
    code, _, _, err = run("own/zebra", "--out", "report.html")
    assert (code, err.count("\n")) == (2, 1) and "there are 0 errors among 0 pictures with a label" in err


def test_names_open_harmlessly_in_a_spreadsheet(run):
    names = ["=cmd|' '!A0.png", "+1.png", "-2.png", "@a.png", 'quo"te, comma.png', "new\nline.png", "\udcff.png"]
    for i, name in enumerate(names):
        save(Path("own") / name, i)
    os.chdir("own")
    code, result, _, _ = run(*(f"./{name}" for name in names), "--ckpt", "../model.pt", "--out", "../t.csv")
    assert code == 0 and result["pictures"] == 7
    code, result, _, _ = run("-", "--ckpt", "../model.pt", "--out", "../t.csv", stdin="\n".join(names[:5] + names[6:]))
    with open("../t.csv", newline="", errors="surrogateescape") as file:
        found = [row["file"] for row in csv.DictReader(file)]
    assert code == 0 and found == [*(f"'{name}" for name in names[:4]), names[4], names[6]]
    assert all(not name.startswith(("=", "+", "-", "@")) for name in found)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name pictures: files, folders, a table"),
        (["empty"], "there are no pictures in empty"),
        (["nowhere.png"], "nowhere.png: No such file"),
        (["notes.txt"], "notes.txt: its first line must name the column path; path is missing"),
        (["notes.md"], "none of 1 files is a picture that can be read: notes.md: no picture, .md"),
        (["-"], "none of 0 files is a picture"),
        (["own", "--ckpt", "resume.pt"], "resume.pt is not a model checkpoint"),
        (["own", "--ckpt", "nowhere.pt"], "nowhere.pt: no such checkpoint"),
        (["own", "--out", "nowhere/p.csv"], "nowhere/p.csv: its folder cannot be written"),
        (["own", "--out", "own/p.csv"], "own/p.csv lies in own, among what this command reads"),
        (["own", "--out", "theirs.csv"], "theirs.csv would be overwritten, and is not of this program"),
        (["own", "--out", "theirs.jsonl"], "theirs.jsonl would be overwritten, and is not of this program"),
        (["own", "--promise", "0.9", "--ckpt", "bare.pt"], "has no pictures to keep a promise by"),
        (["--part", "test", "--out", "r.html"], "--part has no page here: gradcam.py"),
        (["own", "--part", "test"], "name pictures: files, folders, a table"),
    ],
)
def test_mistakes_get_one_line_and_exit_code_2(run, arguments: list[str], said: str):
    save("own/cat/1.png", 1)
    Path("empty").mkdir()
    Path("notes.txt").write_text("shopping\n")
    Path("notes.md").write_text("shopping\n")
    Path("theirs.csv").write_text("path,label\na.png,cat\n")
    Path("theirs.jsonl").write_text('{"file": "a.png"}\n')
    loaded = checkpoint.load("model.pt")
    checkpoint.save_model("bare.pt", loaded.model, CONFIG, {})
    content = torch.load("model.pt", weights_only=True)
    torch.save(content | {"format": "cifar10-resnet resume"}, "resume.pt")
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    code, _, _, err = run(*arguments)
    assert (code, err.count("\n")) == (2, 1) and err.startswith("predict.py: ") and said in err, err
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "p.xlsx"], "--out is p.xlsx: its name must end in .csv, .jsonl or .html"),
        (["--promise", "1.0"], "--promise is 1.0: it must be above 0.5 and below 1"),
        (["--top", "0"], "--top is 0: it must be 1 to 1000"),
        (["--part", "all"], "invalid choice"),
    ],
)
def test_flags_out_of_range_are_told_by_their_name(run, arguments: list[str], said: str):
    code, _, _, err = run("own", *arguments)
    assert code == 2 and said in " ".join(err.split()) and "Traceback" not in err


def test_a_checkpoint_without_a_promise_says_so_and_one_that_cannot_be_kept_too(run):
    save("own/cat/1.png", 1)
    loaded = checkpoint.load("model.pt")
    checkpoint.save_model("bare.pt", loaded.model, CONFIG, {"precision": "fp32"})
    code, result, said, _ = run("own", "--ckpt", "bare.pt")
    assert code == 0 and result["known"] is None and table()[0]["known"] == ""
    assert any("cannot tell what it knows" in line for line in said)
    code, result, said, _ = run("own", "--promise", "0.9999")
    assert code == 0 and result["least_probability"] is None and table()[0]["known"] == "0"
    assert any("no probability keeps it, so nothing is known" in line for line in said)


def test_a_killed_or_failed_run_leaves_the_table_that_was_there(run, monkeypatch: pytest.MonkeyPatch):
    folder("own")
    assert run("own")[0] == 0
    before = Path("predictions.csv").read_bytes()
    calls = []

    def failing(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return pooled(*arguments)

    pooled = answers.pooled
    monkeypatch.setattr(answers, "pooled", failing)
    assert run("own")[0] == 130 and len(calls) == 2
    assert Path("predictions.csv").read_bytes() == before
    assert sorted(path.name for path in Path().iterdir()) == ["model.pt", "own", "predictions.csv"]


def test_in_order_keeps_the_order_takes_little_ahead_and_stops():
    taken, cores = list[int](), len(os.sched_getaffinity(0))

    def items():
        for i in range(100_000):
            taken.append(i)
            yield i

    assert list(islice(in_order(lambda i: i * i, items()), 10)) == [i * i for i in range(10)]
    assert len(taken) <= (AHEAD * cores + 2) * BLOCK
    assert list(in_order(lambda i: -i, range(1000))) == [-i for i in range(1000)]
    assert list(in_order(str, [])) == []
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda i: 1 // (i - 77), range(100)))
