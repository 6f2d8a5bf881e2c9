"""The row of an epoch, and what may stand in a resume state: the run's half of engine/schema.py."""

from collections.abc import Mapping
from typing import Any, TypedDict, get_type_hints

import torch

from engine import schema
from engine.model import MOST_CLASSES
from engine.schema import AMOUNT, WHOLE, MisfitError, like, many, named, require


class EpochRow(TypedDict):
    """What log.jsonl, TensorBoard, the curves, the screen and the resume states say of a finished epoch."""

    epoch: int  # counted from 1
    epochs: int  # of the whole run
    step: int  # steps done
    steps: int  # of the whole run
    resolution: int  # side in pixels of the images, those trained on and those evaluated on
    lr: float  # of the next step, of all but norm biases and Muon's filters
    train_seconds: float
    wait_seconds: float  # those of train_seconds in which data was waited for
    eval_seconds: float
    it_per_s: float  # training steps
    images_per_s: float  # training images, of all ranks together
    split: str  # the images that the reported_ values are of: "test" or "validation"
    loss: float  # mean over the epoch's augmented training images, as train_accuracy
    train_accuracy: float  # 0 to 1, as all accuracies
    last_loss: float  # mean over the last batch, as last_accuracy
    last_accuracy: float
    reported_loss: float
    reported_correct: int
    reported_total: int
    reported_accuracy: float
    reported_class_accuracy: float  # mean of the classes' own accuracies


COLUMNS = get_type_hints(EpochRow)
ROW = {column: {int: WHOLE, float: AMOUNT, str: schema.SPLIT}[kind] for column, kind in COLUMNS.items()}
FLOATS = like(torch.zeros(()), any_shape=True)
PLAIN = (lambda value: value is None or type(value) is bool), schema.NUMBER, many(WHOLE, 1000), FLOATS
STATE = {
    "config": schema.anything,
    "data": schema.text(100),
    "environment": named(schema.text(1000), 100),
    "learner": {
        "step": WHOLE,
        "model": lambda value: type(value) is dict,
        "optimizer": {
            "state": lambda value: type(value) is dict,
            "param_groups": many(named(lambda value: any(check(value) for check in PLAIN), 100), 10),
        },
        "scaler": named(AMOUNT, 100),
        "lookahead": many(FLOATS, 10_000),
        "metrics": like(torch.zeros(7, dtype=torch.float64)),
    },
    "rows": many(named(schema.anything, len(ROW)), 10_000),
    "seconds": named(AMOUNT, 100),
}


def state(content: Mapping[str, Any]) -> dict[str, Any]:
    """A resume state's content (see run/resume.py), its config as a Config. Raises MisfitError."""
    require(content, STATE | ({"origin": schema.name} if "origin" in content else {}), "it")
    config, learner = schema.config_from(content["config"]), content["learner"]
    rows = content["rows"]
    if rows and "reported_loss" not in rows[0]:  # an earlier version's: what is reported was test_
        rows = [{key.replace("test_", "reported_", 1): row[key] for key in row} for row in rows]
    if len(rows) > config.epochs:
        raise MisfitError("rows: more than epochs")
    for epoch, row in enumerate(rows, 1):
        require(row, ROW, f"row {epoch}")
        if row["epoch"] != epoch or row["step"] > learner["step"]:
            raise MisfitError(f"row {epoch}: of another epoch or step")
    bias = learner["model"].get("fc.bias")
    if not FLOATS(bias) or bias.ndim != 1 or len(bias) > MOST_CLASSES:
        raise MisfitError("learner, model: no classes")
    own = schema.state_of(config, ["?"] * len(bias))
    require(learner["model"], {key: like(tensor) for key, tensor in own.items()}, "learner, model")
    averaged = [tensor for tensor in own.values() if tensor.is_floating_point()] if config.lookahead else []
    require(dict(enumerate(learner["lookahead"])), dict(enumerate(map(like, averaged))), "learner, lookahead")
    if momentum := learner["optimizer"]["state"]:  # empty before the first step
        shapes = sorted(tuple(tensor.shape) for key, tensor in own.items() if key.endswith(("weight", "bias")))
        require(momentum, {key: {"momentum_buffer": FLOATS} for key in range(len(shapes))}, "learner, optimizer")
        # In what order they come, the learner checks.
        if sorted(tuple(one["momentum_buffer"].shape) for one in momentum.values()) != shapes:
            raise MisfitError("learner, optimizer: momentum of another form than the weights")
    return {**content, "config": config, "rows": rows}
