"""Results: written, read back, compared; and what a process of its own reports."""

import json
import os
import re
import subprocess

import pytest

from bench.core import chart, record
from bench.core.record import Result, Row
from bench.speed import compare
from bench.speed.scaling import report_of
from ground.mistake import Mistake
from tests.measured import last_line


def example(scale=1.0, noise=0.02, theme="bench"):
    values = {"a": 100.0, "b": 2000.0, "c": 0.5}
    around = (1.0, 1 - noise / 2, 1 + noise / 2)
    rows = [Row("data", name, "images/s", *(v * scale * a for a in around)) for name, v in values.items()]
    rows += [Row("roof", "single", "x", 3.0 * scale), Row("resources", "absent", "images/J")]
    card = {"command": "python -m bench", "date": "2026-01-01T00:00:00", "commit": "abc", "cpu": "A | B"}
    return Result(theme, card, {"width": 8}, rows)


def test_a_result_comes_back_as_it_was(tmp_path):
    record.save(example(), tmp_path / "r")
    assert record.load(str(tmp_path / "r.json")) == example()
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


def test_compare_asks_for_more_than_the_noise():
    noisy = compare.compare(example(noise=0.2), example(0.8, noise=0.2))
    assert {d.verdict for d in noisy if d.part == "data"} == {"no difference"}
    assert compare.compare(example(), example(0.98))[0].verdict == "no difference"


def test_compare_judges_accuracies_and_gains_by_their_spread_alone():
    for unit, before, after, spread, said in (
        ("%", 90.0, 88.0, 0.1, "less"),
        ("%", 90.0, 89.9, 0.1, "no difference"),
        ("points", 1.0, -1.0, 0.1, "less"),
        ("points", -0.1, 0.1, 0.5, "no difference"),
        ("images/s", 90.0, 88.0, 0.1, "no difference"),
    ):
        a, b = (Row("part", "row", unit, value, value - spread, value + spread) for value in (before, after))
        assert compare.difference(a, b).verdict == said, (unit, before, after)


def test_no_two_bars_have_the_same_name(monkeypatch, tmp_path):
    """Those of one loader at two batch sizes, for instance."""
    drawn = []
    monkeypatch.setattr(chart.Figure, "savefig", lambda figure, *args, **named: drawn.append(figure))
    rows = [Row(f"batch {size}", "DALI, alone", "images/s", 1.0 * size, 0.9 * size, 1.1 * size) for size in (16, 32)]
    chart.draw_bench(Result("loaders", {}, {}, [*rows, Row("roof", "arithmetic", "images/s", 9.0)]), tmp_path / "x")
    labels = [label.get_text() for axes in drawn[0].axes for label in axes.get_yticklabels()]
    assert labels == ["batch 16: DALI, alone", "batch 32: DALI, alone", "arithmetic"]


def test_compare_names_what_only_one_has():
    a, b = example(), example()
    b.rows.pop(0)
    b.rows.append(Row("data", "new", "x", 1.0))
    verdicts = {d.name: d.verdict for d in compare.compare(a, b)}
    assert verdicts["a"] == "only in A" and verdicts["new"] == "only in B"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"null", b"\xff\xfe", b"[" * 100_000, b"9" * 5000])
def test_what_is_no_result_is_one_message(tmp_path, content):
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(Mistake, match=re.escape(str(path))):
        record.load(str(path))


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("version", 3),
        ("theme", ["bench"]),
        ("theme", "\x1b[2J"),
        ("card", {"cpu": "\x1b]0;gone\x07"}),
        ("card", {"\x1b[2J": "x"}),
        ("settings", {"width": {"a": 1}}),
        ("settings", {"out": "\x1b[2J"}),
        ("settings", {"resolutions": [[32]]}),
        ("rows", [[]]),
        ("rows", [{"part": "a"}]),
        ("row", {"value": "fast"}),
        ("row", {"value": float("nan")}),
        ("row", {"high": True}),
        ("row", {"note": "\x1b[2J"}),
        ("row", {"more": 1}),
    ],
)
def test_forged_entries_are_refused(tmp_path, where, value):
    record.save(example(), tmp_path / "r")
    path = tmp_path / "r.json"
    content = json.loads(path.read_text())
    if where == "row":
        content["rows"][1] |= value
    else:
        content[where] = value
    path.write_text(json.dumps(content))
    with pytest.raises(Mistake, match="is not a result of") as caught:
        record.load(str(path))
    assert str(caught.value).isprintable()


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="no plain file"):
        compare.main([str(tmp_path / "pipe"), str(tmp_path / "pipe")])


def test_commit_of_no_repository_is_unknown(tmp_path):
    assert record.commit(tmp_path) == "unknown"


def test_commit_tells_changes_but_not_results(tmp_path):
    def git(*command):
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        subprocess.run(["git", *who, *command], cwd=tmp_path, check=True, capture_output=True)

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
    script = "print('a table'); print('{\"rows\": [1]}'); print({'not': 'json'})"
    assert report_of(["-S", "-c", script], 60) == {"rows": [1]}
    for script, said in (
        ("import sys; sys.exit('a\\nbench, rank 1: a hole\\nb')", "exit code 1: bench, rank 1: a hole"),
        ("import sys; sys.exit('a\\nb')", "exit code 1: b"),
        ("print('no report')", "exit code 0: it said nothing"),
        ("import subprocess, time; subprocess.Popen(['sleep', '60']); time.sleep(60)", "did not end within 0 s"),
    ):
        with pytest.raises(ValueError, match=said):
            report_of(["-S", "-c", script], 0.5 if "sleep" in script else 60)


def test_compare_of_files(tmp_path, capsys):
    record.save(example(), tmp_path / "a")
    record.save(example(0.8), tmp_path / "b")
    a, b = (str(tmp_path / f"{name}.json") for name in "ab")
    compare.main([a, a])
    report, out = last_line(capsys)
    assert report["differences"] == 0 and "no difference" in out
    compare.main([a, b])
    report, _ = last_line(capsys)
    assert report["differences"] == 4


def test_results_of_two_kinds_are_not_compared(tmp_path):
    for theme in ("bench", "sweep"):
        record.save(example(theme=theme), tmp_path / theme)
    with pytest.raises(ValueError, match="of a kind"):
        compare.main([str(tmp_path / "bench.json"), str(tmp_path / "sweep.json")])
