"""What a run says and leaves behind: run/."""

import io
import json
import math
import re
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]
from torch import nn

from engine import checkpoint
from engine.config import PRESETS, Config
from engine.cost import training_flops
from engine.learner import Progress
from engine.machine import Machine
from engine.model import ResNet
from ground import terminal
from ground.interval import DEVIATIONS, wilson
from ground.terminal import stdout_console
from run import curves
from run import folder as run_folder
from run import reporter as progress
from run.folder import RunFolder
from run.reporter import Reporter, model_summary, throughput
from run.resume import State

CPU = torch.device("cpu")
SUMMARY = {
    "test_accuracy": 0.8290,
    "test_accuracy_tta": 0.8333,
    "test_correct": 8290,
    "test_total": 10000,
    "data_seconds": 1.23,
    "train_seconds": 301.2,
    "eval_seconds": 12.3,
    "images_per_second": 3200.0,
    "images_per_second_q1": 3150.0,
    "images_per_second_q3": 3250.0,
    "peak_memory_bytes": 3 << 30,
    "checkpoint": "/a/very/long/path/that/no/terminal/of/eighty/columns/would/show/on/a/single/line/model.pt",
}
METRICS = Progress(loss=1.2345, accuracy=0.5678, last_loss=1.0, last_accuracy=0.5, images=100)


def row(epoch, epochs=4, **changed):
    return {
        "epoch": epoch,
        "epochs": epochs,
        "step": epoch * 10,
        "steps": epochs * 10,
        "resolution": 16 if epoch < 3 else 24,
        "lr": 0.5 / epoch,
        "loss": 1.5 / epoch,
        "last_loss": 1.4 / epoch,
        "train_accuracy": 1 - 0.6 / epoch,
        "last_accuracy": 1 - 0.5 / epoch,
        "it_per_s": 12.34,
        "images_per_s": 3159.0,
        "train_seconds": 15.0,
        "wait_seconds": 1.0,
        "eval_seconds": 3.0,
        "reported_loss": 1.2 / epoch,
        "reported_correct": 10000 - 4000 // epoch,
        "reported_total": 10000,
        "reported_accuracy": 1 - 0.4 / epoch,
        "split": "test",
    } | changed


def reporter(terminal=False, width=80):
    file = io.StringIO()
    return Reporter(Console(file=file, force_terminal=terminal, width=width)), file


@pytest.fixture
def clock(monkeypatch):
    """Stands in for perf_counter: it goes on when told to."""
    clock = SimpleNamespace(now=0.0)
    for module in (progress, run_folder, terminal):
        monkeypatch.setattr(module, "perf_counter", lambda: clock.now)
    return clock


def run_epoch(said, clock, seconds_a_step, metrics=METRICS, epoch=1, epochs=4):
    """20 make-believe steps of 100 images; gives how often the metrics were asked for."""
    peek = Mock(return_value=metrics)
    with said.epoch(epoch, epochs, 20, 100, peek) as bar:
        for _ in range(20):
            clock.now += seconds_a_step
            bar.advance()
    return peek.call_count


# What is said


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("terminal", [False, True])
def test_the_last_line_is_the_summary_as_json_at_any_width(terminal, width):
    said, file = reporter(terminal, width)
    said.finish(SUMMARY)
    text = file.getvalue()
    assert text.endswith("}\n")
    assert json.loads(text.splitlines()[-1]) == SUMMARY
    for shown in ("8290 of 10000; 95% interval 82.1% to 83.6%", "5 min 01 s", "3,200", "3,150 to 3,250", "3.00 GiB"):
        assert shown in text
    assert f"{SUMMARY['checkpoint']}\n" in text, "a path must be copied from one line"
    plain, flip = (line for line in text.splitlines()[:-1] if "accuracy" in line)
    assert "82.90%" in plain and "TTA" not in plain
    assert "83.33%" in flip and "TTA" in flip


def test_the_interval_is_where_the_true_accuracy_may_lie():
    for correct, total in ((303, 341), (0, 5), (5, 5), (9481, 10_000)):
        for bound in wilson(correct, total):  # as many deviations of that accuracy away, by its definition
            spread = DEVIATIONS * math.sqrt(max(bound * (1 - bound), 0) / total)
            assert abs(correct / total - bound) == pytest.approx(spread, abs=1e-7)
        low, high = wilson(correct, total)
        assert -1e-9 <= low <= correct / total + 1e-9 and correct / total <= high + 1e-9 <= 1 + 2e-9


def test_what_was_not_measured_says_so_and_nan_is_null():
    said, file = reporter()
    absent = {"test_accuracy_tta": None, "compile_seconds": None}
    said.finish({"test_accuracy": 0.5, "split": "validation", "x": [math.nan, math.inf]} | absent)
    lines = dict(re.split("  +", line, maxsplit=1) for line in file.getvalue().splitlines()[1:-1])
    assert lines.pop("validation accuracy") == "50.00%"
    assert lines.pop("checkpoint") == "none"
    assert len(lines) == 9 and set(lines.values()) == {"not measured"}
    assert json.loads(file.getvalue().splitlines()[-1])["x"] == [None, None]


def test_off_a_terminal_there_are_only_plain_lines(monkeypatch, clock):
    monkeypatch.setenv("FORCE_COLOR", "1")
    file = io.StringIO()
    monkeypatch.setattr("sys.stdout", file)
    said = Reporter(stdout_console())
    said.say(model_summary(ResNet("abcdefghij", width=8), 16))
    run_epoch(said, clock, seconds_a_step=31)
    said.row(row(1))
    said.finish(SUMMARY)
    text = file.getvalue()
    assert "layer4" in text and "correct/total" in text and text.count("loss 1.234") == 20
    assert all(character.isprintable() or character == "\n" for character in text)


def test_a_plain_run_says_soon_how_long_it_takes_and_then_a_line_every_half_minute(clock):
    said, file = reporter()
    assert run_epoch(said, clock, seconds_a_step=1) == 1
    assert run_epoch(said, clock, seconds_a_step=1, epoch=2) == 0
    assert run_epoch(said, clock, seconds_a_step=4, epoch=3) == 2
    first, second, third = file.getvalue().splitlines()
    assert first == "epoch 1/4  10/20  loss 1.234  acc 56.8%  ETA 1:10  100 images/s"
    assert second.startswith("epoch 3/4  8/20  loss 1.234  acc 56.8%  ETA")
    assert third.startswith("epoch 3/4  16/20 ")


@pytest.mark.parametrize("width", range(30, 101, 10))
def test_a_bar_and_what_fits_beside_it_are_one_line(clock, width):
    said, file = reporter(True, width)
    assert run_epoch(said, clock, seconds_a_step=0.25, epoch=12, epochs=20) == 10, "every half second"
    text = file.getvalue()
    assert text.endswith("\x1b[1A\x1b[2K"), "the bar is gone at the end"
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).split("\r")[-2].rstrip("\n")
    assert len(last) <= width and "…" not in last
    assert sum(last.count(glyph) for glyph in "━╸╺") >= terminal.MINIMUM_BAR
    shown = [part in last for part in ("epoch 12/20", "20/20", "loss 1.234", "acc 56.8%", "ETA 0:40", "400 images/s")]
    assert shown == sorted(shown, reverse=True), "what matters less goes first"
    assert sum(shown) == 6 or width < 80


def test_a_bar_without_numbers_yet_shows_its_steps(clock):
    said, file = reporter(True)
    run_epoch(said, clock, seconds_a_step=1, metrics=None)
    assert "loss" not in file.getvalue() and "20/20" in file.getvalue()


def test_an_interrupted_epoch_gives_the_cursor_back():
    said, file = reporter(True)
    with pytest.raises(KeyboardInterrupt), said.epoch(1, 4, 20, 100, lambda: None):
        raise KeyboardInterrupt
    assert file.getvalue().rindex("\x1b[?25h") > file.getvalue().rindex("\x1b[?25l")


def test_eta_weighs_the_epochs_by_their_pixels(clock):
    said, file = reporter()
    config = Config(epochs=3, resolutions=(16, 16, 32))
    said.choice("cpu", config, Machine(CPU))
    # A run that goes on in epoch 2: 40 s for half an epoch of 16 px; the other half and one of 32 px (4 times as dear).
    with said.epoch(2, 3, 2, 100, lambda: None) as bar:
        clock.now += 40
        bar.advance()
    assert "1/2  ETA 6:00  2 images/s" in file.getvalue()


def test_the_choice_names_everything_that_was_chosen():
    said, file = reporter()
    machine = Machine(CPU, "bf16", 3, compiled=True)
    said.choice("cpu", replace(PRESETS["cpu"], run_dir="runs/[red]x"), machine)
    for part in ("cpu: 5 epochs", machine.card()["cpu"], "bf16, compiled", "runs/[red]x", "16 to 32 px"):
        assert part in file.getvalue()


@pytest.mark.parametrize(("terminal", "split"), [(False, "test"), (True, "validation")])
def test_an_epoch_is_one_line_of_at_most_80_columns_with_all_its_numbers(terminal, split):
    said, file = reporter(terminal)
    for epoch in range(1, 26):
        said.row(row(epoch, epochs=25, split=split))
    header, first, *rest = file.getvalue().splitlines()
    assert len(rest) == 25, "24 rows and one more heading"
    word = "val" if split == "validation" else "test"  # held-out images are told apart from the test set
    assert f"{word} loss" in header and f"{word} %" in header and header.count("test") == 2 * (word == "test")
    assert len(header) == len(first) <= 80
    cells = ["1/25", "16", "1.5000", "1.4000", "40.00", "12.3", "3,159", "1.2000", "6000/10000", "60.00"]
    assert first.split() == cells


def test_throughput_is_median_and_quartiles():
    names = ("images_per_second_q1", "images_per_second", "images_per_second_q3")
    assert [throughput([10, 40, 20, 30, 50])[name] for name in names] == [20, 30, 40]
    assert [throughput([7.0])[name] for name in names] == [7, 7, 7]
    assert throughput([]) == {}


def test_durations_carry_over():
    seconds = (None, 0.04, 9.96, 59.6, 3599, 3599.6, 1e5)
    assert [*map(progress.duration, seconds)] == [
        "not measured", "0.0 s", "10 s", "1 min 00 s", "59 min 59 s", "1 h 00 min", "27 h 47 min",
    ]  # fmt: skip


# What is left behind


def logged(path):
    return [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]


def board(path, tag="loss/training"):
    events = EventAccumulator(str(path))
    events.Reload()
    return [(event.step, round(event.value, 4)) for event in events.Scalars(tag)]


def test_a_run_folder_holds_config_log_scalars_and_picture(tmp_path):
    with RunFolder(tmp_path / "a" / "b") as folder:
        folder.write_config({"epochs": 2, "resolutions": (16, 24)})
        for epoch in (1, 2):
            folder.add(row(epoch, reported_loss=math.nan))
            assert len(logged(folder.path)) == len(board(folder.path)) == epoch, "on disk before the next epoch"
    assert json.loads((folder.path / "config.json").read_text()) == {"epochs": 2, "resolutions": [16, 24]}
    assert logged(folder.path) == [row(1, reported_loss=None), row(2, reported_loss=None)]
    assert board(folder.path) == [(10, 1.5), (20, 0.75)]
    assert board(folder.path, "accuracy/test") == [(10, 0.6), (20, 0.8)]
    assert Image.open(folder.path / "curves.png").width > 1000
    assert not list(folder.path.glob(".*")), "no temporary file stays"


def test_going_on_drops_the_rows_beyond_the_resumed_epoch(tmp_path):
    with RunFolder(tmp_path) as folder:
        for epoch in (1, 2, 3):
            folder.add(row(epoch))
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"epoch": 4, "lo')
    for path in (tmp_path, tmp_path / "moved"):
        with RunFolder(path, State(rows=[row(1)])) as folder:
            for epoch in (2, 3, 4):
                folder.add(row(epoch, loss=0.25))
        assert logged(path) == folder.rows == [row(1)] + [row(epoch, loss=0.25) for epoch in (2, 3, 4)]
        assert board(path) == [(10, 1.5), (20, 0.25), (30, 0.25), (40, 0.25)]


def test_a_fresh_run_in_an_old_folder_starts_anew(tmp_path):
    with RunFolder(tmp_path) as folder:
        folder.add(row(1))
    (tmp_path / "log.jsonl").write_text("not even a log\n")
    with RunFolder(tmp_path) as folder:
        assert logged(tmp_path) == []
        folder.add(row(1, loss=0.25))
    assert (logged(tmp_path), board(tmp_path)) == ([row(1, loss=0.25)], [(10, 0.25)])


def test_runs_of_the_same_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with RunFolder() as one, RunFolder() as two, RunFolder() as three:
        assert len({folder.path for folder in (one, two, three)}) == 3
    for folder in (one, two, three):
        assert folder.path.parent.name == "runs"
        assert not (folder.path / "curves.png").exists(), "nothing to draw"


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("a file")
    for path in ("", "runs", "runs/x"):
        with pytest.raises(ValueError, match=r"^cannot write runs.*--run-dir$"):
            RunFolder(path)


def test_pictures_between_epochs_take_little_of_the_time(tmp_path, monkeypatch, clock):
    drawn = []

    def slow_draw(rows, *_):
        drawn.append(len(rows))
        clock.now += 1

    monkeypatch.setattr(run_folder, "draw", slow_draw)
    with RunFolder(tmp_path) as folder:
        for epoch in range(1, 101):
            clock.now += 2
            folder.add(row(epoch, epochs=100))
    assert drawn[-1] == 100, "the last picture has all rows"
    assert 2 <= len(drawn) - 1 <= 200 * run_folder.DRAWING_SHARE + 1


@pytest.mark.parametrize("epochs", [1, 2, 100])
@pytest.mark.filterwarnings("error")
def test_curves_of_short_and_long_runs_are_drawn(tmp_path, monkeypatch, epochs):
    path = tmp_path / "curves.png"
    path.write_text("the old one")
    rows = [row(epoch, loss=math.nan if epoch == 2 else 1.0) for epoch in range(1, epochs + 1)]
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", Mock(side_effect=OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            curves.draw(rows, lambda step: 0.1 * step, path)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["the old one"]
    curves.draw(rows, lambda step: 0.1 * step, path)
    image = np.asarray(Image.open(path).convert("RGB"))
    assert image.shape[1] > 2 * image.shape[0] > 600
    training = np.frombuffer(bytes.fromhex(curves.TRAIN["color"][1:]), np.uint8)
    assert (image == training).all(2).any()
    assert [file.name for file in tmp_path.iterdir()] == ["curves.png"]


# The model's summary


def closed_form_flops(depth, width, resolution):
    """Forward FLOPs of one image, layer by layer from the architecture alone."""
    macs, before, side = 27 * width * resolution**2, width, resolution
    for stage, blocks in enumerate({18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}[depth]):
        channels = width << stage
        side = side if stage == 0 else math.ceil(side / 2)
        first = 9 * before * channels + 9 * channels**2 + (before * channels if stage else 0)
        macs += side**2 * (first + (blocks - 1) * 18 * channels**2)
        before = channels
    return 2 * (macs + before * 10)


def cells(table):
    return [list(column.cells) for column in table.columns], [str(column.footer) for column in table.columns]


@pytest.mark.parametrize(("depth", "width", "resolution"), [(18, 16, 32), (34, 8, 20), (18, 8, 15), (18, 8, 8)])
def test_summary_totals_are_the_models(depth, width, resolution):
    model = ResNet("abcdefghij", depth, width)
    (names, _, shapes, parameters, mflops), footer = cells(model_summary(model, resolution))
    total, cost = sum(p.numel() for p in model.parameters()), closed_form_flops(depth, width, resolution) / 1e6
    assert footer[3:] == [f"{total:,}", f"{cost:,.2f}"]
    layers = [i for i, name in enumerate(names) if name.startswith(" ")] + [names.index("fc")]
    groups = [i for i, name in enumerate(names) if not name.startswith(" ")]
    for rows in (layers, groups):
        assert sum(int(parameters[i].replace(",", "")) for i in rows) == total
    # Each group's figure is rounded to two digits.
    assert sum(float(mflops[i]) for i in groups) == pytest.approx(cost, abs=0.03)
    side = math.ceil(resolution / 8)
    assert shapes[names.index("layer4")] == f"{8 * width} x {side} x {side}"
    assert len(layers) == sum(isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.Linear) for m in model.modules())


def test_the_standard_network_has_its_known_size_and_fits_80_columns():
    model = ResNet("abcdefghij")
    table = model_summary(model, 32)
    assert cells(table)[1][3:] == ["11,173,962", "1,110.85"]
    assert training_flops(model, 32) == pytest.approx(3.34e9, rel=0.005)
    file = io.StringIO()
    Console(file=file, width=80).print(table)
    assert "layer4" in file.getvalue() and "…" not in file.getvalue()


def test_training_costs_three_forward_passes_less_the_images_gradient():
    forward = closed_form_flops(18, 8, 16)
    assert training_flops(ResNet("abcdefghij", width=8), 16) == 3 * forward - 2 * 27 * 8 * 16**2


def test_summary_and_flops_leave_model_and_random_state_alone():
    model = ResNet("abcdefghij", width=8)
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    model(images).sum().backward()
    model.get_submodule("layer2").eval()

    def everything():
        modes = [module.training for module in model.modules()]
        hooks = [len(module._forward_hooks) for module in model.modules()]
        tensors = {"random": torch.get_rng_state(), **model.state_dict()}
        gradients = {f"{name}.grad": parameter.grad for name, parameter in model.named_parameters()}
        return modes, hooks, checkpoint.digest(tensors | gradients)

    before = everything()
    with torch.no_grad():
        model_summary(model, 16)
        training_flops(model, 16)
    assert everything() == before
