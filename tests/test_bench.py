"""The command line of bench/: help, refusals, and the driver's check."""

import contextlib
import sys

import pytest

from bench import __main__ as entry
from bench.core.session import SpeedOptions, parse_speed
from bench.recipe import reference
from bench.speed import suite
from engine.config import PRESETS
from ground.entry import execute
from ground.mistake import Mistake
from tests.measured import last_line

GENERATED = ["--data", "generated"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--only", "data,speed"], "'speed' is unknown"),
        (["data", "--device", "cpu"], "parts go by --only"),
        (["--batch-size", "50000", *GENERATED], "--batch-size is 50000"),
        (["--out", "/proc/none", *GENERATED], "/proc/none"),
        (["sweep", "fast"], "preset 'fast' is unknown"),
        (["sweep", "--batch-sizes", "16", "32", "--data", "generated:20/20"], "--batch-sizes is 32: it must be"),
        (["sweep", "--data", "generated:10/10", "--device", "cpu"], "--batch-sizes is 0: it must be"),
        (["sweep", "--compile-modes", "default", *GENERATED, "--device", "cpu"], "--compile on"),
        (["sweep", "--compile-modes", "fast", "--compile", "on", *GENERATED], "--compile-mode is fast"),
        (["compare", "only-one.json"], "two results"),
        (["compare", "missing-a.json", "missing-b.json"], "missing-a.json"),
        (["sweep", "--batch-sizes", "0"], "--batch-sizes is "),
        (["scaling", "--processes", "0"], "--processes is "),
        (["profile", "--steps", "0"], "--steps is 0"),
        (["accuracy", "--seeds", "0"], "--seeds is 0"),
        (["ablate", "--seeds", "1001"], "--seeds is 1001"),
        (["curve", "--epochz", "3", "--device", "cpu"], "python -m bench curve --help"),
    ],
)
def test_bad_input_is_one_message(arguments, reason, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    with pytest.raises(SystemExit) as exit:
        execute(entry.main, "bench")
    error = " ".join(capsys.readouterr().err.replace("│", "").split())  # without tyro's frame
    assert exit.value.code == 2 and reason in error and "Traceback" not in error


def test_the_reference_refuses_in_a_line():
    for arguments, reason in ((["--data", "nowhere"], "nowhere"), ([*GENERATED, "--minutes", "0"], "0.0")):
        with pytest.raises(Mistake, match=f"^--.*{reason}"):
            reference.main(arguments)


@pytest.mark.parametrize("command", sorted(entry.COMMANDS))
def test_help_of_each_command_lists_its_flags(command, capsys):
    """Those of train.py too, where it measures what train.py would do."""
    with contextlib.suppress(SystemExit):
        entry.main([command, "--help"])
    out = " ".join(capsys.readouterr().out.split())
    if command.startswith("compare"):  # of what is measured already
        assert "A.json B.json" in out or "Two of: checkpoints" in out
        return
    assert ("--only" in out) == (command == "ablate") and "--resume" not in out
    assert "--run-dir" not in out
    for words in ("--out", "--width", "--resolutions", "--max-lr", f"a preset: {', '.join(PRESETS)}"):
        assert words in out


def test_a_preset_s_recipe_is_measured_and_without_one_the_images_own_pixels(tmp_path, capsys):
    unnamed, named = (parse_speed(SpeedOptions, arguments, "", "") for arguments in ([], ["full"]))
    assert unnamed.resolutions == (32,) and named.resolutions == PRESETS["full"].resolutions
    flags = ["--only", "compute", "--quick", "--device", "cpu", "--threads", "1", "--batch-size", "16"]
    entry.main(["smoke", *flags, "--resolutions", "8", "--out", str(tmp_path)])
    report, _ = last_line(capsys)
    assert {row["part"] for row in report["rows"]} == {"compute", "in all"}
    assert report["settings"]["preset"] == "smoke" and report["settings"]["width"] == PRESETS["smoke"].width


def test_a_driver_that_is_too_old_stops_what_would_take_the_gpu(monkeypatch):
    asked: list[str] = []
    monkeypatch.setattr(entry.preflight, "check_driver", asked.append)
    monkeypatch.setattr(suite, "main", lambda arguments: None)
    monkeypatch.setattr(entry, "COMMANDS", dict.fromkeys(("sweep", "compare"), lambda arguments: None))
    for arguments in ([], ["--only", "data"], ["sweep", "--device", "cpu"], ["--device=cpu"], ["compare", "a", "b"]):
        entry.main(arguments)
    assert asked == ["auto", "auto", "cpu", "cpu"]
