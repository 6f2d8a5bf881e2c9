"""What may stand in a checkpoint: types, ranges, lengths and shapes, checked here before anything of it is used.

Whoever made a file could make its digest fit too, so what is read is held against what this program writes. Tensors are
still `Stored`: of one that does not fit, no byte is read.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import torch

from engine.config import COLDEST, HOTTEST, Config
from engine.device import DTYPES
from engine.model import network

MOST_CLASSES = 100_000
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
METRICS: dict[str, Check] = {
    "precision": one_of(*DTYPES),
    "split": SPLIT,
    "test_correct": whole,
    "test_total": whole,
    "temperature": lambda value: number(value) and COLDEST <= value <= HOTTEST,
}

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
    expected = weights(shapes_of(config, len(content["classes"])))
    fit(content["weights"], expected, f"weights of a ResNet-{config.depth} of width {config.width}")
    return config


def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Check]:
    """The form of a model's weights."""
    counts = "num_batches_tracked"
    return {k: tensor(torch.int64 if k.endswith(counts) else torch.float32, *shape) for k, shape in shapes.items()}


def shapes_of(config: Config, classes: int) -> dict[str, tuple[int, ...]]:
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
