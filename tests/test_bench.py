"""The command line of bench/: help, refusals, and the driver's check."""

import contextlib
import sys

import pytest

from bench import __main__ as entry
from bench.core.options import SpeedOptions, parse_speed
from bench.recipe import reference
from bench.speed import compare, suite, sweep
from engine.config import PRESETS
from ground.entry import execute
from tests.measured import last_line


@pytest.mark.parametrize(
    ("command", "arguments", "said"),
    [
        (suite.main, ["--only", "data,speed"], "'speed' is unknown"),
        (entry.main, ["data", "--device", "cpu"], "parts go by --only"),
        (sweep.main, ["fast"], "preset 'fast' is unknown"),
        (sweep.main, ["--batch-sizes", "16", "60000", "--data", "generated"], "--batch-sizes is 60000: it must be"),
        (sweep.main, ["--batch-sizes", "16", "32", "--data", "generated:20/20"], "--batch-sizes is 32: it must be"),
        (reference.main, ["--data", "nowhere"], "--data is nowhere"),
        (reference.main, ["--data", "generated", "--minutes", "0"], "--minutes is 0.0: it must be above 0"),
        (suite.main, ["--batch-size", "50000", "--data", "generated"], "--batch-size is 50000"),
        (sweep.main, ["--compile-modes", "default", "--data", "generated", "--device", "cpu"], "--compile on"),
        (sweep.main, ["--compile-modes", "fast", "--compile", "on", "--data", "generated"], "--compile-mode is fast"),
        (suite.main, ["--data", "generated", "--out", "/proc/none"], "/proc/none"),
        (compare.main, ["only-one.json"], "two results"),
        (compare.main, ["missing-a.json", "missing-b.json"], "missing-a.json"),
    ],
)
def test_bad_input_is_one_message(command, arguments, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    with pytest.raises(SystemExit) as exit:
        execute(command, "bench")
    assert exit.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bench: ") and said in line


@pytest.mark.parametrize(
    "arguments",
    [
        ["sweep", "--batch-sizes", "0"],
        ["scaling", "--processes", "0"],
        ["profile", "--steps", "0"],
        ["accuracy", "--seeds", "0"],
        ["ablate", "--seeds", "1001"],
    ],
)
def test_a_number_out_of_bounds_is_refused_by_its_flag(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        entry.main([*arguments, "--device", "cpu"])
    _, flag, value = arguments
    error = capsys.readouterr().err
    assert exit.value.code == 2 and f"{flag} is " in error and value in error and "it must be" in error


@pytest.mark.parametrize("command", sorted(entry.COMMANDS))
def test_help_of_each_command_lists_its_flags(command, capsys):
    """Those of train.py too, where it measures what train.py would do."""
    with contextlib.suppress(SystemExit):
        entry.main([command, "--help"])
    out = capsys.readouterr().out
    if command == "compare":
        assert "A.json B.json" in out
        return
    assert "--out" in out and ("--only" in out) == (command == "ablate")
    assert "--width" in out and "--resolutions" in out and "--max-lr" in out
    assert f"a preset: {', '.join(PRESETS)}" in " ".join(out.split())
    assert "--resume" not in out and "--run-dir" not in out


@pytest.mark.parametrize("command", sorted(set(entry.COMMANDS) - {"compare"}))
def test_a_misspelt_flag_is_answered_by_the_command_itself(command, capsys):
    with pytest.raises(SystemExit) as exit:
        entry.main([command, "--epochz", "3", "--device", "cpu"])
    assert exit.value.code == 2
    error = " ".join(capsys.readouterr().err.replace("│", "").split())
    assert "--epochz" in error and f"python -m bench {command} --help" in error


def test_speed_is_measured_at_the_images_own_pixels():
    unnamed, named = (parse_speed(SpeedOptions, arguments, "", "") for arguments in ([], ["full"]))
    assert unnamed.resolutions == (32,) and named.resolutions == PRESETS["full"].resolutions


def test_a_preset_may_stand_where_a_command_does(tmp_path, capsys):
    """And its recipe is what is measured."""
    flags = ["--only", "compute", "--quick", "--device", "cpu", "--threads", "1", "--batch-size", "16"]
    entry.main(["smoke", *flags, "--resolutions", "8", "--out", str(tmp_path)])
    report, _ = last_line(capsys)
    assert report["settings"]["preset"] == "smoke" and report["settings"]["width"] == PRESETS["smoke"].width


def test_a_driver_that_is_too_old_stops_what_would_take_the_gpu(monkeypatch):
    asked: list[str] = []
    monkeypatch.setattr(entry.preflight, "check_driver", asked.append)
    monkeypatch.setattr(suite, "main", lambda arguments: None)
    monkeypatch.setattr(entry, "COMMANDS", dict.fromkeys(("sweep", "compare"), lambda arguments: None))
    for arguments in ([], ["--only", "data"], ["sweep", "--device", "cpu"], ["--device=cpu"], ["compare", "a", "b"]):
        entry.main(arguments)
    assert asked == ["auto", "auto", "cpu", "cpu"]
