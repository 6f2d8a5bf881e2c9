"""What may stand in a checkpoint: types, ranges, lengths and shapes, checked here before anything of it is used.

Whoever made a file could make its digest fit too, so what is read is held against what this program writes. Tensors are
still `Stored`: of one that does not fit, no byte is read.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple, get_type_hints

import torch

from engine.config import COLDEST, HOTTEST, Config
from engine.model import network
from engine.row import EpochRow
from engine.runtime import DTYPES

MOST_CLASSES = 100_000
COLUMNS = get_type_hints(EpochRow)
Check = Callable[[Any], bool]


class MisfitError(ValueError):
    """What does not fit, in words; no text of the file is in them."""


class Stored(NamedTuple):
    """A tensor that is still in its file."""

    dtype: torch.dtype
    key: str
    """Of the storage it is a part of."""
    length: int
    """Of that storage, in elements."""
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def lies_within(self) -> bool:
        """Whether it is all of its storage."""
        sizes, strides = self.shape, self.stride
        plain = type(sizes) is type(strides) is tuple and len(sizes) == len(strides) <= 8 and type(self.key) is str
        if not plain or not all(type(n) is int and n >= 0 for n in (self.length, self.offset, *sizes, *strides)):
            return False
        last = self.offset + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True))
        return isinstance(self.dtype, torch.dtype) and math.prod(sizes) == self.length and last < max(1, self.length)


def whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e60  # so neither NaN nor infinite


def amount(value: Any) -> bool:
    return number(value) and value >= 0


def text(most: int, empty: bool = True) -> Check:
    return lambda value: type(value) is str and (empty or value != "") and len(value) <= most


def name(value: Any) -> bool:
    return text(1000, empty=False)(value) and value.isprintable()


def one_of(*known: str) -> Check:
    return lambda value: type(value) is str and value in known


def many(check: Check, most: int) -> Check:
    return lambda value: type(value) is list and len(value) <= most and all(map(check, value))


def named(check: Check, most: int) -> Check:
    return lambda value: type(value) is dict and len(value) <= most and all(name(k) and check(value[k]) for k in value)


def each(checks: Sequence[Check]) -> Check:
    return lambda v: type(v) is list and len(v) == len(checks) and all(f(x) for f, x in zip(checks, v, strict=True))


def tensor(dtype: torch.dtype, *shape: int) -> Check:
    return lambda value: type(value) is Stored and (value.dtype, value.shape) == (dtype, shape) and value.lies_within


def fit(value: Any, form: Mapping[str, Any] | Check, where: str) -> None:
    """Raises MisfitError unless `value` has just the keys of `form`, and what stands there fits."""
    if isinstance(form, Mapping):
        if type(value) is not dict or value.keys() != form.keys():
            raise MisfitError(f"{where} has not the entries that it must have")
        for key, inner in form.items():
            fit(value[key], inner, f"{where}, {key}")
    elif not form(value):
        raise MisfitError(f"{where}: not of the form or range that it must have")


SPLIT = one_of("test", "validation")
ROW = {column: {int: whole, float: amount, str: SPLIT}[kind] for column, kind in COLUMNS.items()}
METRICS: dict[str, Check] = {
    "precision": one_of(*DTYPES),
    "split": SPLIT,
    "test_correct": whole,
    "test_total": whole,
    "temperature": lambda value: number(value) and COLDEST <= value <= HOTTEST,
}
PLAIN = (lambda v: v is None or type(v) is bool), number, many(whole, 1000), tensor(torch.float32)
GROUPS = many(named(lambda v: any(check(v) for check in PLAIN), 100), 10)
SCALER = dict.fromkeys(("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"), amount)


def model(content: Mapping[str, Any]) -> Config:
    """The config of a finished model's content: config, classes, weights, metrics. Raises MisfitError."""
    anything = dict.fromkeys(("config", "weights", "metrics"), lambda value: True)
    fit(content, anything | {"classes": many(name, MOST_CLASSES)}, "it")
    config, metrics = config_from(content["config"]), content["metrics"]
    known = METRICS if type(metrics) is dict else {}
    fit(metrics, named(lambda value: number(value) or name(value), 1000), "metrics")
    fit({k: metrics[k] for k in known & metrics.keys()}, {k: known[k] for k in known & metrics.keys()}, "metrics")
    if metrics.get("test_correct", 0) > metrics.get("test_total", math.inf):
        raise MisfitError("metrics: more correct than there are")
    expected = weights(_shapes(config, len(content["classes"])))
    fit(content["weights"], expected, f"weights of a ResNet-{config.depth} of width {config.width}")
    return config


def state(content: Mapping[str, Any]) -> Config:
    """The config of a resume state's content: see engine/resume.py. Raises MisfitError."""
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
    shapes = _shapes(config, classes)
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


def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Check]:
    """The form of a model's weights."""
    counts = "num_batches_tracked"
    return {k: tensor(torch.int64 if k.endswith(counts) else torch.float32, *shape) for k, shape in shapes.items()}


def _shapes(config: Config, classes: int) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):  # a file that only claims to be wide takes no memory
        return {key: tuple(value.shape) for key, value in network(config, [""] * classes).state_dict().items()}


def config_from(values: Any) -> Config:
    """The inverse of `checkpoint.config_dict`. Raises MisfitError where the fields are not those of this version."""
    own = asdict(Config())
    if type(values) is not dict or not values.keys() <= own.keys():
        raise MisfitError("config: has not the fields of this version")
    sides = values.get("resolutions", [32])
    if type(sides) is not list or len(sides) > 10_000 or not all(map(whole, sides)):
        raise MisfitError("config: resolutions are not all whole numbers")
    for key, value in values.items():
        if key != "resolutions" and (type(value) is not type(own[key]) or (type(value) is str and len(value) > 4096)):
            raise MisfitError(f"config: {key} is not of type {type(own[key]).__name__}")
    try:
        return Config(**values | {"resolutions": tuple(sides)})
    except ValueError as error:
        raise MisfitError(f"config: {error}") from error
