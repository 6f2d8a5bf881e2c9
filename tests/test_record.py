"""Results: written, read back, compared; and what a process of its own reports."""

import json
import os
import re
import subprocess

import pytest

from bench.core import record
from bench.core.record import Result, Row
from bench.speed import compare
from bench.speed.scaling import report_of
from ground.mistake import Mistake
from tests.measured import last_line


def example(scale=1.0, noise=0.02, theme="bench"):
    values = {"a": 100.0, "b": 2000.0, "c": 0.5}
    around = (1.0, 1 - noise / 2, 1 + noise / 2)
    rows = [Row("data", name, "images/s", *(v * scale * a for a in around)) for name, v in values.items()]
    rows += [Row("roof", "single", "x", 3.0 * scale), Row("resources", "absent", "s")]
    card = {"command": "python -m bench", "date": "2026-01-01T00:00:00", "commit": "abc", "cpu": "A | B"}
    return Result(theme, card, {"width": 8}, rows)


@pytest.fixture
def saved(tmp_path):
    """Writes a result; its path."""
    return lambda name, result: record.save(result, tmp_path / name)[0]


def test_a_result_comes_back_as_it_was(saved, tmp_path):
    assert record.load(saved("r", example())) == example()
    text = (tmp_path / "r.md").read_text()
    assert "not measured" in text and "python -m bench" in text
    rows = [line for line in text.splitlines() if line.startswith("| data")]
    assert len(rows) == 3 and all(line.count("|") == 6 for line in rows)


def test_results_of_the_first_version_are_read():
    """Theirs call the bounds of a value quartiles, which those of an ablation are not."""
    path = next((record.ROOT / "docs" / "results").glob("ablation-cpu_1-cores-*-034446.json"))
    old = json.loads(path.read_text())
    result = record.load(str(path))
    assert old["version"] == 1 and "standard error" in result.meaning
    assert [(row.low, row.high) for row in result.rows] == [(row["q1"], row["q3"]) for row in old["rows"]]
    assert result.rows[0].low is not None


def test_compare_finds_itself_the_same_and_a_fifth_slower_different():
    assert {d.verdict for d in compare.compare(example(), example())} == {"no difference", "not measured"}
    slower = {d.name: d for d in compare.compare(example(), example(0.8))}
    assert all(slower[name].verdict == "less" and slower[name].ratio == pytest.approx(0.8) for name in "abc")
    assert slower["single"].verdict == "less"
    assert {d.verdict for d in compare.compare(example(0.8), example()) if d.a} == {"more"}
    a, b = example(), example()
    b.rows[0] = Row("data", "new", "x", 1.0)
    one, *_, other = [(d.name, d.verdict) for d in compare.compare(a, b)]
    assert (one, other) == (("a", "only in A"), ("new", "only in B"))


@pytest.mark.parametrize(
    ("unit", "before", "after", "spread", "verdict"),
    [
        ("images/s", 100.0, 80.0, 4.0, "less"),
        ("images/s", 100.0, 80.0, 11.0, "no difference"),  # the bounds are wider than that
        ("images/s", 90.0, 88.0, 0.1, "no difference"),  # 2%
        ("%", 90.0, 88.0, 0.1, "less"),  # of accuracies and gains the bounds alone decide
        ("%", 90.0, 89.9, 0.1, "no difference"),
        ("points", 1.0, -1.0, 0.1, "less"),
        ("points", -0.1, 0.1, 0.5, "no difference"),
    ],
)
def test_a_difference_must_exceed_the_noise(unit, before, after, spread, verdict):
    a, b = (Row("part", "row", unit, value, value - spread, value + spread) for value in (before, after))
    assert compare.difference(a, b).verdict == verdict


def test_compare_of_files(saved, capsys):
    a, b = saved("a", example()), saved("b", example(0.8))
    compare.main([a, a])
    report, out = last_line(capsys)
    assert report["differences"] == 0 and "no difference" in out
    compare.main([a, b])
    assert last_line(capsys)[0]["differences"] == 4
    with pytest.raises(Mistake, match="of a kind"):
        compare.main([a, saved("sweep", example(theme="sweep"))])


def test_what_is_no_result_is_one_message(tmp_path):
    path = tmp_path / "bad.json"
    for content in (b"", b"{", b"[]", b"{}", b"null", b"\xff\xfe", b"[" * 100_000, b"9" * 5000):
        path.write_bytes(content)
        with pytest.raises(Mistake, match=re.escape(str(path))):
            record.load(str(path))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="no plain file"):  # and is not waited for
        record.load(str(tmp_path / "pipe"))


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("version", 3),
        ("theme", ["bench"]),
        ("card", {"cpu": "\x1b]0;gone\x07"}),
        ("card", {"\x1b[2J": "x"}),
        ("settings", {"width": {"a": 1}}),
        ("settings", {"resolutions": [[32]]}),
        ("rows", [[]]),
        ("rows", [{"part": "a"}]),
        ("row", {"value": "fast"}),
        ("row", {"value": float("nan")}),
        ("row", {"note": "\x1b[2J"}),
        ("row", {"more": 1}),
    ],
)
def test_forged_entries_are_refused(saved, tmp_path, where, value):
    path = tmp_path / "r.json"
    saved("r", example())
    content = json.loads(path.read_text())
    content |= {"rows": [content["rows"][1] | value]} if where == "row" else {where: value}
    path.write_text(json.dumps(content))
    with pytest.raises(Mistake, match="is not a result of") as caught:
        record.load(str(path))
    assert str(caught.value).isprintable()


def test_the_commit_tells_changes_but_not_results(tmp_path):
    def git(*command):
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        subprocess.run(["git", *who, *command], cwd=tmp_path, check=True, capture_output=True)

    assert record.commit(tmp_path) == "unknown"
    git("init")
    (tmp_path / "x").write_text("1")
    git("add", "x")
    git("commit", "-m", "x")
    (tmp_path / "docs" / "results").mkdir(parents=True)
    (tmp_path / "docs" / "results" / "new.json").write_text("{}")
    assert re.fullmatch("[0-9a-f]{12}", record.commit(tmp_path))
    (tmp_path / "x").write_text("2")
    assert record.commit(tmp_path).endswith(" and changes")


def test_the_report_of_another_process():
    assert report_of(["-S", "-c", "print('a table'); print('{\"rows\": [1]}')"], 60) == {"rows": [1]}
    for script, reason in (
        ("import sys; sys.exit('a\\nbench, rank 1: a hole\\nb')", "exit code 1: bench, rank 1: a hole"),
        ("import subprocess, time; subprocess.Popen(['sleep', '60']); time.sleep(60)", "did not end within 0 s"),
    ):
        with pytest.raises(Mistake, match=reason):
            report_of(["-S", "-c", script], 0.5 if "sleep" in script else 60)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):  # a defect, told whole
        report_of(["-S", "-c", "1 / 0"], 60)
