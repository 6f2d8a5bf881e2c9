"""What may stand in a resume state: the run's half of engine/schema.py."""

from collections.abc import Mapping
from typing import Any, get_type_hints

import torch

from engine.config import Config
from engine.schema import (
    MOST_CLASSES,
    SPLIT,
    MisfitError,
    Stored,
    amount,
    config_from,
    each,
    fit,
    many,
    named,
    number,
    shapes_of,
    tensor,
    text,
    weights,
    whole,
)
from run.row import EpochRow

COLUMNS = get_type_hints(EpochRow)
ROW = {column: {int: whole, float: amount, str: SPLIT}[kind] for column, kind in COLUMNS.items()}
PLAIN = (lambda v: v is None or type(v) is bool), number, many(whole, 1000), tensor(torch.float32)
GROUPS = many(named(lambda v: any(check(v) for check in PLAIN), 100), 10)
SCALER = dict.fromkeys(("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"), amount)


def state(content: Mapping[str, Any]) -> Config:
    """The config of a resume state's content: see run/resume.py. Raises MisfitError."""
    form: dict[str, Any] = {
        "config": lambda value: True,
        "data": text(100),
        "environment": named(text(1000), 100),
        "learner": dict.fromkeys(("step", "model", "optimizer", "scaler", "lookahead", "metrics"), lambda value: True),
        "rows": lambda value: type(value) is list,
        "seconds": named(amount, 100),
    }
    fit(content, form, "it")
    config, learner, rows = config_from(content["config"]), content["learner"], content["rows"]
    if len(rows) > config.epochs:
        raise MisfitError("rows: more than epochs")
    for epoch, row in enumerate(rows, 1):
        fit(row, ROW, f"row {epoch}")
        if row["epoch"] != epoch or not row["step"] <= learner["step"]:
            raise MisfitError(f"row {epoch}: of another epoch or step")
    bias = learner["model"].get("fc.bias") if type(learner["model"]) is dict else None
    classes = bias.shape[0] if type(bias) is Stored and bias.lies_within and len(bias.shape) == 1 else 0
    if not 1 <= classes <= MOST_CLASSES:
        raise MisfitError("learner, model: no classes")
    shapes = shapes_of(config, classes)
    averaged = [check for key, check in weights(shapes).items() if not key.endswith("num_batches_tracked")]
    form["learner"] = {
        "step": whole,
        "model": weights(shapes),
        "optimizer": {
            # Empty before the first step; in what order the buffers come, the learner checks.
            "state": lambda value: type(value) is dict and (not value or _momentum(value) == _trained(shapes)),
            "param_groups": GROUPS,
        },
        "scaler": SCALER if learner["scaler"] else {},
        "lookahead": each(averaged if config.lookahead else []),
        "metrics": tensor(torch.float64, 7),
    }
    fit(learner, form["learner"], "learner")
    return config


def _trained(shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[int, ...]]:
    return sorted(shape for key, shape in shapes.items() if key.endswith(("weight", "bias")))


def _momentum(value: dict[Any, Any]) -> list[tuple[int, ...]]:
    """The sorted shapes of the optimizer's buffers; none where one does not fit."""
    found = [one.get("momentum_buffer") for one in value.values() if type(one) is dict and len(one) == 1]
    fits = len(found) == len(value) <= 1000 and all(map(whole, value))
    fits = fits and all(type(t) is Stored and t.dtype is torch.float32 and t.lies_within for t in found)
    return sorted(t.shape for t in found if t) if fits else []
