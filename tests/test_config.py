"""Any settings are accepted or refused with one message, and accepted ones run. Values drawn by hypothesis."""

import math
import re
import sys
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import train
from engine import checkpoint, schema
from engine.config import PRESETS, Config, differences, parse
from ground.entry import execute

WHOLE = st.integers(-3, 40) | st.sampled_from([511, 512, 513, 1024, 1025, 50_001, 2**31, 10**30, -(10**30)])
EDGES = [0.0, 1.0, -0.0, 1e30, 1e308, math.inf, -math.inf, math.nan]
REAL = st.floats(-1, 2, allow_nan=False) | st.floats(0, 1e-300) | st.sampled_from(EDGES)
TEXT = st.sampled_from(["", "auto", "on", "off", "random", "alternating", "none", "cpu", "fp32", "bf16", "int8", "a b"])
SWITCH = st.booleans()
KINDS = {int: WHOLE, float: REAL, str: TEXT, bool: SWITCH, tuple: st.lists(WHOLE, max_size=4).map(tuple)}
ANY = st.fixed_dictionaries({}, optional={f.name: KINDS[type(f.default)] for f in fields(Config)})

SHARE, BELOW_1 = st.floats(0, 1, exclude_min=True, exclude_max=True), st.floats(0, 1, exclude_max=True)
RUNNABLE = st.fixed_dictionaries(
    {
        "epochs": st.integers(1, 2),
        "batch_size": st.integers(8, 48),
        "resolutions": st.lists(st.integers(8, 20), min_size=1, max_size=3),
        "depth": st.sampled_from([18, 34]),
        "width": st.integers(1, 8),
        "stem": st.sampled_from(["small", "strided", "imagenet"]),
        "max_lr": st.floats(0, 1e3, exclude_min=True),
        **dict.fromkeys(["weight_decay", "momentum", "label_smoothing", "muon_momentum"], BELOW_1),
        **dict.fromkeys(["whiten", "dirac", "lookahead", "deterministic"], SWITCH),
        "pct_start": SHARE,
        "div_factor": st.floats(1, 1e6),
        "muon_lr": st.floats(0, 1e3),
        "bias_lr_scale": st.floats(0, 1e3, exclude_min=True),
        "translate": st.integers(0, 16),
        "flip": st.sampled_from(["random", "alternating", "none"]),
        "cutout": st.integers(0, 32),
        "seed": st.integers(0, 2**31 - 1),
        "precision": st.sampled_from(["auto", "bf16", "fp32"]),
        "checkpoint_every": st.floats(0, 100),
        "compile_mode": st.sampled_from(["default", "reduce-overhead", "max-autotune-no-cudagraphs", "max-autotune"]),
    }
).filter(lambda values: not (values["stem"] == "imagenet" and values["whiten"]))
HERE = ["--data", "generated:48/48", "--device", "cpu", "--threads", "1", "--run-dir", ""]


def flags(values):
    """As on a command line."""
    arguments = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            arguments += [f"--{flag}", *map(str, value if isinstance(value, list | tuple) else [value])]
    return arguments


@settings(max_examples=400, deadline=None)
@given(ANY)
def test_any_values_are_accepted_or_refused_with_one_message(values):
    try:
        config = Config(**values)
    except ValueError as error:
        name = str(error).split()[0].removeprefix("--").replace("-", "_")
        assert name in values
        assert "it must be" in str(error)
        assert "\n" not in str(error)
        return
    assert schema.config_from(checkpoint.config_dict(config)) == config
    assert differences(config, config) == []
    assert all(8 <= config.resolution(epoch) <= 512 for epoch in range(min(config.epochs, 20)))


@pytest.mark.parametrize(
    ("name", "least", "below", "rule"),
    [
        ("epochs", 1, 0, "1 to 10000"),
        ("seed", 2**31 - 1, 2**31, "0 or more, and below 2147483648"),
        ("max_lr", 1e-9, 0.0, "above 0, and finite"),
        ("max_lr", 1e9, math.inf, "above 0, and finite"),
        ("weight_decay", 0.0, math.nan, "0 or more, and below 1"),
        ("pct_start", 0.999, 1.0, "above 0, and below 1"),
        ("resolutions", (8, 512), (8, 513), "8 to 512"),
        ("resolutions", (8,), (), "one number or more"),
        ("flip", "none", "never", "one of random, alternating, both, none"),
        ("out", "x", "", "a file name"),
        ("fold", "2/2", "3/2", "such as 2/5, the second of five"),
        ("fold", "", "1/1", "such as 2/5, the second of five"),
        ("fold", "98/99", "0/99", "such as 2/5, the second of five"),
    ],
)
def test_a_setting_is_accepted_up_to_its_bound(name, least, below, rule):
    assert getattr(Config(**{name: least}), name) == least
    with pytest.raises(ValueError, match=re.escape(f": it must be {rule}")):
        Config(**{name: below})


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ANY)
def test_any_command_line_is_accepted_or_refused_with_one_message(capsys, values):
    try:
        _, config = parse(["smoke", *flags(values)], "full")
    except SystemExit as end:
        assert end.code == 2
        err = capsys.readouterr().err
        assert any(f"--{name.replace('_', '-')}" in err for name in values)
        assert "Traceback" not in err
        return
    assert isinstance(config, Config)


@pytest.fixture
def quiet(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("run.run.model_summary", lambda *args: "")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
@given(values=RUNNABLE)
def test_ten_accepted_ones_run(quiet, capsys, values):
    sys.argv = ["train.py", "smoke", *flags(values), *HERE]
    with pytest.raises(SystemExit) as end:
        execute(train.main, "train.py")
    err = capsys.readouterr().err
    assert (end.value.code, err) == (0, "") or (end.value.code == 2 and "not finite" in err and err.count("\n") == 1)


def test_a_stem_of_7x7_is_not_whitened():
    config = replace(PRESETS["cpu"], stem="imagenet", whiten=False)
    assert parse(["cpu", "--stem", "imagenet"], "cpu")[1] == config
    assert parse(["cpu", "--stem", "strided", "--whiten"], "cpu")[1].whiten
    with pytest.raises(ValueError, match="--whiten is for stems of 3x3: leave it out"):
        parse(["cpu", "--stem", "imagenet", "--whiten"], "cpu")


def test_a_folder_of_pictures_has_a_preset_of_its_own_unless_one_is_named():
    name, config = parse(["--data", "holiday", "--epochs", "3"], "cpu")
    assert name == "pictures" and config == replace(PRESETS["pictures"], data="holiday", epochs=3, minutes=0)
    for default in ("full", "cpu"):
        assert parse(["cpu", "--data", "holiday"], default) == ("cpu", replace(PRESETS["cpu"], data="holiday"))
    assert parse([], "cpu", resumed=config) == ("the resumed run's", config)
    assert parse(["cpu"], "cpu", resumed=config) == ("cpu", replace(PRESETS["cpu"], run_dir=config.run_dir))
    assert parse(["--data", "generated"], "cpu")[0] == "cpu"


def test_presets_differ_and_keep_what_they_are_for():
    assert differences(PRESETS["full"], PRESETS["cpu"])
    full = PRESETS["full"]
    assert not differences(full, replace(full, out="x", run_dir="y", threads=3, device="cpu", checkpoint_every=1.0))
    changed = ["--width 64 -> 8", "--max-lr 0.1 -> 1.0", "--seed 0 -> 1"]
    assert differences(full, replace(full, seed=1, width=8, max_lr=1.0)) == changed
