"""Forged checkpoints and states: archives by hand, and every field at and beyond its bounds.

FIELDS say what is right and what is wrong, independently of the schemas; the tests go through all of it, `make fuzz`
draws from it.
"""

import contextlib
import copy
import math
import os
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from engine import checkpoint
from engine.config import PRESETS, Config
from engine.learner import Learner
from engine.machine import Machine
from engine.model import ResNet
from engine.weights import torchvision_name
from run import resume
from run.schema import COLUMNS
from run.stopwatch import Stopwatch

# With Muon and its momentum, as all presets but smoke have it.
CONFIG = replace(PRESETS["smoke"], epochs=2, resolutions=(16,), batch_size=8, width=4, muon_lr=0.1)
STEPS = 4

NAN, INF = math.nan, math.inf
GONE = object()  # stands for no such entry


class Field(NamedTuple):
    path: str
    """Keys and places in lists, with slashes."""
    right: Sequence[Any]
    """What may stand there. A function makes it from what does."""
    wrong: Sequence[Any]
    """What may not."""


def learner(config: Config = CONFIG, classes: int = 10) -> Learner:
    torch.manual_seed(0)
    model = ResNet("abcdefghij"[:classes], width=4, resolution=16, stem=config.stem)
    return Learner(model, config, STEPS, Machine(torch.device("cpu")))


def write_model(path: Path) -> None:
    metrics = {"test_accuracy": 0.5, "test_correct": 5, "test_total": 10, "precision": "fp32", "split": "test"}
    checkpoint.save_model(path, learner().model, CONFIG, metrics)


def write_state(path: Path) -> None:
    """A resume state of the second epoch's first step."""
    own = learner()
    for _ in range(STEPS + 1):
        own.train_step(torch.randint(256, (8, 3, 16, 16), dtype=torch.uint8), torch.arange(8))
    counts = {"epoch": 1, "epochs": 2, "step": STEPS, "steps": 2 * STEPS, "split": "test"}
    row: Any = {name: kind(1) for name, kind in COLUMNS.items() if name != "split"} | counts
    keeper = resume.Keeper(path.parent, [row], own, "data", Stopwatch({}), resume.State())
    keeper.save()
    os.rename(keeper.saved, path)


def small_weights(depth: int = 18) -> dict[str, torch.Tensor]:
    """A state_dict of torchvision's network with three classes and of width 4."""
    with torch.random.fork_rng():
        torch.manual_seed(depth)
        own = ResNet("abc", depth, 4, stem="imagenet").state_dict()
    return {torchvision_name(k): own[k] for k in own if k not in ("mean", "std")}


def equal(found: dict[str, Any], forged: dict[str, Any]) -> bool:
    """Whether what was read is what was written, but for settings that were left out."""
    config = checkpoint.config_dict(Config()) | forged["config"]
    digests = {checkpoint.digest(content | {"config": 0}) for content in (found, forged)}
    return checkpoint.config_dict(found["config"]) == config and len(digests) == 1


def rewritten(path, change):
    """Change the content of a file and make its digest fit, as an attacker would."""
    content = torch.load(path, weights_only=True)
    before = content["sha256"]
    change(content)
    head = {key: content.pop(key) for key in ("format", "version", "sha256") if key in content}
    if head.get("sha256") == before:
        with contextlib.suppress(TypeError, RuntimeError):  # of what has none
            head["sha256"] = checkpoint.digest(content)
    torch.save(head | content, path)


def put(content: Any, path: str, value: Any) -> None:
    """Set what stands at a path."""
    *outer, last = path.split("/")
    for key in outer:
        content = content[_key(content, key)]
    key = _key(content, last)
    if value is GONE:
        del content[key]
    else:
        content[key] = value(content[key]) if callable(value) else copy.deepcopy(value)


def _key(content: Any, key: str) -> Any:
    return int(key) if key.isdigit() and (isinstance(content, list) or int(key) in content) else key


def archive(path: Path, members: Iterable[tuple[str, bytes | int]], method: int = 0) -> None:
    """A zip as torch.save ends it, of these members; a number is a hole of so many bytes."""
    directory, count = b"", 0
    with path.open("wb") as file:
        for name, data in members:
            size, crc = (data, 0) if isinstance(data, int) else (len(data), zlib.crc32(data))
            head = struct.pack("<5H3L2H", 20, 0, method, 0, 33, crc, size, size, len(name), 0)
            place = struct.pack("<3H2L", 0, 0, 0, 0, file.tell()) + name.encode()
            directory, count = directory + b"PK\1\2\x14\0" + head + place, count + 1
            file.write(b"PK\3\4" + head + name.encode() + (b"" if isinstance(data, int) else data))
            file.seek(size if isinstance(data, int) else 0, 1)
        start, length = file.tell(), len(directory)
        end = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, length, start)
        end += struct.pack("<4sIQI", b"PK\6\7", 0, start + length, 1)
        end += struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, length, start, 0)
        file.write(directory + end)


def members(path: Path) -> dict[str, bytes]:
    """The members of an archive, by their names."""
    with zipfile.ZipFile(path) as source:
        return {name: source.read(name) for name in source.namelist()}


def kilobytes(key: str) -> int:
    """Memory of this process, as Linux counts it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])


def high_water() -> int:
    """Kilobytes: the most memory that this process has had since it was asked last."""
    most = kilobytes("VmHWM")
    Path("/proc/self/clear_refs").write_text("5")
    return most


def fraction(path: str, low: float, high: float, *wrong: Any) -> Field:
    return Field(path, [low, high], [*wrong, NAN, INF, -1.0, 1, True, "1", None])


def earlier(config: dict[str, Any], stride: Any) -> dict[str, Any]:
    """A config as earlier versions wrote it, with the stride of the stem."""
    return {key: config[key] for key in config if key != "stem"} | {"stem_stride": stride}


def whole(path: str, low: int, high: int) -> Field:
    return Field(path, [low, high], [low - 1, high + 1, float(low), str(low), True, None, [low]])


def wrong(path: str, *values: Any) -> Field:
    return Field(path, [], values)


def tensor(path: str, *wrong: Any) -> Field:
    """One of more than one number."""
    right = [lambda t: t + 1, lambda t: torch.full_like(t, -1e15), torch.zeros_like]
    numbers = [lambda t, n=n: torch.full_like(t, n) for n in (NAN, INF, -INF)]
    forms = [torch.Tensor.double, lambda t: t[None], lambda t: torch.zeros(1).expand(t.shape)]
    return Field(path, right, [*numbers, *forms, *wrong])


def many(count: int, value: Any = 1) -> dict[str, Any]:
    return {f"{n}": value for n in range(count)}


LONG = "a" * 1000
NO_TENSOR = [None, {}, 1.0, GONE, torch.Tensor.tolist, torch.Tensor.half, torch.Tensor.long]
NO_TENSOR += [torch.Tensor.to_sparse, torch.nn.Parameter, torch.zeros(1), torch.zeros(0)]
NO_TENSOR += [lambda t: torch.cat([t, t])[len(t) :], lambda t: t.clone().requires_grad_()]
HEAD = [
    wrong("format", "cifar10-resnet", "", None, 1, ["cifar10-resnet model"], GONE),
    wrong("version", 1, 3, 2.0, "2", True, None, [2], GONE),
    wrong("sha256", "", "0" * 64, None, 3, GONE),
    wrong("more", 1, torch.zeros(2)),
    wrong("config", {"more": 1}, [], None, 3, "config", torch.zeros(2), GONE),
    wrong("config/more", 1),
    whole("config/seed", 0, 2**31 - 1),
    Field("config/batch_size", [2, 2**53], [1, 2**53 + 1, "8"]),
    Field("config/resolutions", [[8], [512], [8] * 10_000], [[8] * 10_001, [], [7], [513]]),
    wrong("config/resolutions", [8.0], [[8]], ["8"], "8", 8),
    wrong("config/depth", 34, 17, "18", 18.0),
    wrong("config/width", 5, 0, 1024, 1025, "4", 4.0),
    Field("config/stem", ["small", "strided"], ["imagenet", "large", 1, None]),
    wrong("config", lambda config: config | {"stem_stride": 2}),
    wrong("config", *(lambda c, n=n: earlier(c, n) for n in (0, 3, True, "2", 2.0, None, [1]))),
    fraction("config/max_lr", 1e-30, 1e30, 0.0),
    fraction("config/weight_decay", 0.0, 0.999, 1.0),
    fraction("config/temperature", 0.05, 20.0, 0.04, 20.1),
    fraction("config/minutes", 0.0, 1e5, 100_001.0),
    Field("config/whiten", [True, False], [0, 1, "True", None]),
    Field("config/flip", ["random", "both", "none"], ["all", 1, ["none"]]),
    Field("config/precision", ["fp16"], ["int8", "", None]),
    Field("config/data", ["", "a" * 4096, "\udcff", "\x1b[2J"], ["a" * 4097, 1, None, ["a"]]),
    Field("config/size", [0, 8, 512], [7, 513, -1]),
    Field("config/fold", ["", "2/5"], ["5/2", "1", "0/5"]),
    Field("config/out", ["x", "../x"], ["", "resume-1.pt"]),
]
MODEL = [
    *HEAD,
    whole("config/epochs", 1, 10_000),
    wrong("classes", [], [*"abcdefghi"], [*"abcdefghijk"], "abcdefghij", [LONG] * 1001, None, {}, GONE),
    Field("classes/0", [LONG, "\N{BALLOON}"], ["", LONG + "a", "\x1b", "\udcff", 3, None, ["a"]]),
    Field("metrics", [{}, many(1000)], [many(1001), OrderedDict(get=1), [], "a", None, GONE]),
    Field("metrics/other", [0, -1e60, 1e60, LONG], [1e61, -1e61, NAN, INF, LONG + "a", ""]),
    Field("metrics/more", [2**53], [2**53 + 1, True, None, [1], {}, torch.tensor(3), b"a"]),
    Field(f"metrics/{LONG}", [1], [None]),
    wrong(f"metrics/{LONG}a", 1),
    wrong("metrics/\x1b", 1),
    Field("metrics/test_correct", [0, 10], [11, -1, 5.0, "5", None, NAN]),
    Field("metrics/test_total", [5, 2**53], [4, -1, 2**53 + 1, NAN, 5.0, "5"]),
    Field("metrics/precision", ["fp32", "bf16", "fp16"], ["int8", "", 3, ["fp32"], None]),
    Field("metrics/split", ["test", "validation"], ["train", "", 1]),
    Field("metrics/temperature", [0.05, 20.0, 20, 1], [0.04, 20.1, 0, "1", NAN, True, None]),
    wrong(
        "weights",
        *({}, [], None, 3, torch.zeros(2), GONE),
        lambda tensors: tensors | {"stem.1.bias": tensors["stem.1.weight"]},
        lambda tensors: tensors | {"fc.bias": tensors["fc.weight"].view(-1)[:10]},
        lambda tensors: {key: tensors[key] for key in [*tensors][1:]},
    ),
    wrong("weights/more", torch.zeros(2), 1),
    tensor("weights/fc.bias", *NO_TENSOR, torch.zeros(9), torch.zeros(11)),
    tensor("weights/stem.1.weight", torch.zeros(3)),
    Field("weights/stem.1.num_batches_tracked", [torch.tensor(2)], [torch.tensor(2.0), 2, GONE]),
    wrong("weights/stem.1.num_batches_tracked", torch.zeros(1)),
]
STATE = [
    *HEAD,
    wrong("config/epochs", 0, 1.0, "2", 10_001),
    wrong("config/lookahead", False, 1),
    Field("data", ["", "a" * 100], ["a" * 101, 3, None, GONE]),
    Field("environment", [{}, many(100, "")], [many(101, ""), many(1), None, [], GONE]),
    Field("environment/cpu", ["", LONG, "\x1b"], [LONG + "a", 4, None, ["a"]]),
    wrong(f"environment/{LONG}a", "a"),
    Field("seconds", [{}, many(100)], [many(101), many(1, ""), None, [], GONE]),
    Field("seconds/save", [0, 0.0, 1e60], [-1.0, NAN, INF, 1e61, "1", None, True]),
    wrong("rows", [], {}, None, "rows", [None], lambda rows: rows * 2, lambda rows: rows * 3, GONE),
    wrong("rows/0", {}, None, []),
    wrong("rows/0/more", 1),
    wrong("rows/0/test_loss", 1.0),
    wrong("rows/0/epoch", 0, 2, 1.0, "1"),
    Field("rows/0/step", [0, 4, 5], [6, -1, 2.5, 4.0, 10**300]),
    Field("rows/0/loss", [0, 0.0, 1e60], [-1.0, NAN, INF, 1e61, "1", None, True, [1], GONE]),
    Field("rows/0/reported_correct", [0, 2**53], [-1, 1.5, 2**53 + 1, True, torch.zeros(1)]),
    Field("rows/0/split", ["test", "validation"], ["train", "{x}", 1, None]),
    wrong("learner", {}, None, [], GONE),
    wrong("learner/more", 1),
    Field("learner/step", [4, 8], [3, 9, -1, 5.0, "5", None, 2**53 + 1]),
    wrong("learner/model", {}, [], None, 3),
    wrong("learner/model/more", torch.zeros(2)),
    tensor("learner/model/fc.bias", *NO_TENSOR),
    wrong("learner/model/fc.bias", torch.zeros(9), torch.zeros(2, 5), torch.zeros(100_001)),
    tensor("learner/model/stem.1.weight"),
    wrong("learner/lookahead", [], {}, None, lambda averages: averages[1:], lambda averages: averages[::-1]),
    tensor("learner/lookahead/2", torch.zeros(7), torch.zeros(1), GONE, None),
    Field("learner/metrics", [lambda t: t * 2], [torch.zeros(7), torch.zeros(8).double(), None, GONE]),
    wrong("learner/metrics", lambda t: t * NAN),
    wrong("learner/optimizer", {}, None, [], GONE),
    wrong("learner/optimizer/state", [], None, 3),
    wrong("learner/optimizer/state", lambda state: dict(zip(state, [*state.values()][::-1], strict=True))),
    wrong("learner/optimizer/state/0", {}, None, [], GONE),
    wrong("learner/optimizer/state/0/more", 1),
    wrong("learner/optimizer/state/999", {}),
    tensor("learner/optimizer/state/0/momentum_buffer", *NO_TENSOR, torch.zeros(7)),
    Field("learner/optimizer/param_groups", [[]], [None, {}, "many", [{}] * 11, GONE]),
    Field("learner/optimizer/param_groups/0/lr", [0.5, None, True, [1]], ["fast", [[1]], {}, NAN, 1e61]),
    Field("learner/optimizer/param_groups/0/lr", [torch.tensor(0.5)], [torch.tensor(NAN)]),
    wrong("learner/scaler", {"scale": 1.0}, {"scale": "1"}, None, [], GONE),
]
FIELDS = {"model": MODEL, "state": STATE}
