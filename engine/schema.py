"""What may stand in a checkpoint: types, ranges, lengths and shapes.

Whoever made a file could make its digest fit too. So what is read is held against this before it is used, and
what is to be written before it is written.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from engine.config import COLDEST, HOTTEST, Config
from engine.device import DTYPES
from engine.known import BINS, MOST_IMAGES
from engine.model import MOST_CLASSES, network

Check = Callable[[Any], bool]


class MisfitError(ValueError):
    """What does not fit, in words; no text of the file is in them."""


def within(low: float, high: float, *kinds: type) -> Check:
    return lambda value: type(value) in kinds and low <= value <= high  # so neither NaN nor infinite


def text(most: int) -> Check:
    return lambda value: type(value) is str and len(value) <= most


def name(value: Any) -> bool:
    return type(value) is str and 0 < len(value) <= 1000 and value.isprintable()


def many(check: Check, most: int) -> Check:
    return lambda value: type(value) is list and len(value) <= most and all(map(check, value))


def named(check: Check, most: int) -> Check:
    return lambda value: type(value) is dict and len(value) <= most and all(name(k) and check(value[k]) for k in value)


def like(tensor: torch.Tensor, any_shape: bool = False) -> Check:
    """A tensor of this one's type and shape."""
    shape, form = tensor.shape, (tensor.dtype, False)
    return lambda v: (
        type(v) is torch.Tensor and (v.dtype, v.requires_grad) == form and (any_shape or v.shape == shape)
    )


def anything(value: Any) -> bool:
    """What is looked at later."""
    return True


def require(value: Any, form: Mapping[Any, Any] | Check, where: str) -> None:
    """Raises MisfitError unless `value` has just the keys of `form`, and what stands there fits."""
    if isinstance(form, Mapping):
        if type(value) is not dict or value.keys() != form.keys():
            raise MisfitError(f"{where} has not the entries that it must have")
        for key, inner in form.items():
            require(value[key], inner, f"{where}, {key}")
    elif not form(value):
        raise MisfitError(f"{where}: not of the form or range that it must have")


WHOLE, AMOUNT, NUMBER = within(0, 2**53, int), within(0, 1e60, int, float), within(-1e60, 1e60, int, float)
SPLIT = ("test", "validation").__contains__
METRICS: dict[str, Check] = {
    "precision": tuple(DTYPES).__contains__,
    "split": SPLIT,
    "test_correct": WHOLE,
    "test_total": WHOLE,
    "temperature": within(COLDEST, HOTTEST, int, float),
    "origin": name,
}
CONTENTS = like(torch.zeros(0, dtype=torch.int64), any_shape=True)
OPTIONAL = {"trained_on": CONTENTS, "known": anything}
MODEL = {
    "config": anything,
    "classes": many(name, MOST_CLASSES),
    "weights": anything,
    "metrics": named(lambda value: NUMBER(value) or name(value), 1000),
}
# Of the settings by their type; their bounds are Config's own.
SETTINGS: dict[type, Check] = {list: many(WHOLE, 10_000), str: text(4096)}
STEM_OF_STRIDE = {1: "small", 2: "strided"}  # by an earlier version's setting stem_stride


def model(content: Mapping[str, Any]) -> dict[str, Any]:
    """A finished model's content, its config as a Config. Raises MisfitError."""
    require(content, MODEL | {key: OPTIONAL[key] for key in OPTIONAL.keys() & content.keys()}, "it")
    config, classes, metrics = config_from(content["config"]), content["classes"], content["metrics"]
    require(metrics, {key: METRICS.get(key, anything) for key in metrics}, "metrics")
    if metrics.get("test_correct", 0) > metrics.get("test_total", 2**53):
        raise MisfitError("metrics: more correct than there are")
    form = {key: like(tensor) for key, tensor in state_of(config, classes).items()}
    if "known" in content:
        require(content["known"], known_of(config, len(classes)), "known")
    require(content["weights"], form, f"weights of a ResNet-{config.depth} of width {config.width}")
    return {**content, "config": config}


def known_of(config: Config, classes: int) -> dict[str, Check]:
    """The form of engine.known.Known's fields."""
    channels = 8 * config.width
    matrix = like(torch.zeros(0), any_shape=True)
    return {
        "centres": lambda v: matrix(v) and v.ndim == 2 and 0 < len(v) <= classes and v.shape[1] == channels,
        "whitener": like(torch.empty(channels, channels, device="meta")),
        "distance": within(0, 1e60, float),
        "answers": like(torch.zeros(2, BINS, dtype=torch.int64)),
        "total": within(1, MOST_IMAGES, int),
    }


def state_of(config: Config, classes: Sequence[str]) -> dict[str, torch.Tensor]:
    """The network's state, without memory: a file may only claim to be wide. Raises MisfitError."""
    try:
        with torch.device("meta"):
            return dict(network(config, classes).state_dict())
    except ValueError as error:
        raise MisfitError(str(error)) from error


def config_from(values: Any) -> Config:
    """The inverse of `checkpoint.config_dict`, an earlier version's too. Raises MisfitError."""
    stride = values.get("stem_stride") if type(values) is dict and "stem" not in values else None
    if type(stride) is int and stride in STEM_OF_STRIDE:
        values = {**values, "stem": STEM_OF_STRIDE[stride]}
        del values["stem_stride"]
    own = asdict(Config()) | {"resolutions": [32]}
    kinds = {key: type(own[key]) for key in own if type(values) is not dict or key in values}
    form = {key: SETTINGS.get(kind, within(-math.inf, math.inf, kind)) for key, kind in kinds.items()}
    require(values, form, "config")
    try:
        return Config(**values | {"resolutions": tuple(values.get("resolutions", own["resolutions"]))})
    except ValueError as error:
        raise MisfitError(f"config: {error}") from error
