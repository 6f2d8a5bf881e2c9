"""Checkpoints: written whole or not at all, checked byte for byte when read.

Format: a `torch.save` archive of one dict of plain values and tensors (so that `torch.load(weights_only=True)` reads
it and nothing in it can run), with the keys

    format   "cifar10-resnet model" or "cifar10-resnet resume"
    version  2
    sha256   hexadecimal digest over the names, types, shapes and bytes of all the rest
    config   the run's Config as a dict
    model:   classes (list of names), weights (name -> tensor; the images' mean and std among them), metrics (name ->
             number or string)
    resume:  what engine/resume.py says

Version 1 is read too. It knew CIFAR-10 and generated images alone: it has no classes, and its config says `generated`
(true or false) where `data` stands today.

A file is not trusted: it is read only up to a size, its zip members must be stored as they are and fit into it, its
pickle may name nothing but tensors, and what it unpacks to may be no larger than the file.
"""

import dataclasses
import errno
import hashlib
import io
import math
import os
import pickletools
import stat
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.config import Config
from engine.model import ResNet, network
from ground.files import write_whole

VERSION = 2
# fmt: off
CLASSES_OF_VERSION_1 = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)
# fmt: on
MAX_BYTES = 8 * 2**30  # 60 times the resume state of the full preset
MAX_PICKLE_BYTES = 16 * 2**20  # 10,000 epochs' rows have 3 MB
# Values and letters outside tensors, in all and for each byte of the pickles. A pickle names what it holds already by
# two bytes or more, such as the keys of an epoch's row in the next one.
MAX_PLAIN, MAX_PLAIN_PER_BYTE = 20_000_000, 32
GLOBALS = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2"} | {
    f"torch {name}Storage" for name in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Byte", "Bool")
}
MODEL = "cifar10-resnet model"
RESUME = "cifar10-resnet resume"


@dataclass(frozen=True)
class Checkpoint:
    model: ResNet
    """In eval mode, float32, channels_last, on the CPU."""
    config: Config
    metrics: dict[str, Any]
    """What the run reported, and `precision`, the type that it evaluated in."""


def save_model(path: str | Path, model: ResNet, config: Config, metrics: dict[str, Any]) -> None:
    """Write a finished model.

    Raises:
        OSError: the file cannot be written; one that was there before is intact.
    """
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    content = {"config": config_dict(config), "classes": list(model.classes), "weights": weights, "metrics": metrics}
    write(path, MODEL, content)


def load(path: str | Path) -> Checkpoint:
    """Read a finished model.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is damaged, or no checkpoint of this program.
    """
    content = read(path, MODEL)
    classes = content.get("classes")
    if (
        content.keys() != {"config", "classes", "weights", "metrics"}
        or not isinstance(content["metrics"], dict)
        or not (isinstance(classes, list) and classes)
        or not all(isinstance(name, str) and name.isprintable() for name in classes)
    ):
        raise ValueError(f"{path} is no model checkpoint of this version of the program")
    config = config_from(content["config"], path)
    with torch.device("meta"):  # a file that only claims to be wide takes no memory
        expected = network(config, classes).state_dict()
    if _forms(content["weights"]) != _forms(expected):
        needed = f"ResNet-{config.depth} of width {config.width} with {len(classes)} classes"
        raise ValueError(f"{path}: the weights do not fit a {needed}")
    model = network(config, classes)
    model.load_state_dict(content["weights"])
    model.requires_grad_(False)
    return Checkpoint(model.to(memory_format=torch.channels_last).eval(), config, content["metrics"])


def load_model(path: str | Path, trainable: bool = False) -> ResNet:
    """The model of a checkpoint, ready to use: `load_model("model.pt").predict(images)`. Raises as `load` does.

    It is in eval mode. Its parameters are frozen unless it is to be `trainable`: trained further, or given to a library
    that reads gradients.
    """
    return load(path).model.requires_grad_(trainable)


def config_dict(config: Config) -> dict[str, Any]:
    """Plain values only."""
    values = dataclasses.asdict(config)
    return values | {"resolutions": list(config.resolutions)}


def config_from(values: dict[str, Any], path: str | Path) -> Config:
    """The inverse of `config_dict`; ValueError when the fields are not those of this version."""
    try:
        values = values | {"resolutions": tuple(values["resolutions"])}
        for name, default in dataclasses.asdict(Config()).items():
            if type(values.get(name, default)) is not type(default):
                raise TypeError(f"{name} is not of type {type(default).__name__}")
        if any(type(side) is not int for side in values["resolutions"]):
            raise TypeError("resolutions are not all of type int")
        return Config(**values)
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: its config does not fit this version of the program: {error}") from error


def write(path: str | Path, kind: str, content: dict[str, Any]) -> None:
    """Write `content` whole or not at all, and force it to the disk.

    Raises:
        OSError: the folder is missing or read-only, or the disk is full; `path` is as it was before.
        ValueError: it is larger than `read` takes.
    """
    path = Path(path)
    buffer = io.BytesIO()  # torch.save on a full disk raises an odd RuntimeError, so the writing is ours
    torch.save({"format": kind, "version": VERSION, "sha256": digest(content)} | content, buffer)
    if buffer.tell() > MAX_BYTES:
        raise ValueError(f"{path} would have {buffer.tell()} bytes, the most is {MAX_BYTES}: choose a smaller --width")
    write_whole(path, buffer.getbuffer(), durable=True)


def read(path: str | Path, kind: str) -> dict[str, Any]:
    """The content of a file that `write` made, checked.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is damaged, or no checkpoint of this kind.
    """
    foreign = f"{path} is not a {kind.split()[1]} checkpoint of this program"
    data = _bounded_bytes(Path(path))
    if not data.startswith(b"PK"):
        raise ValueError(f"{foreign}, or it is damaged")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            plain = _inspect(archive, len(data))
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        if not isinstance(content, dict) or content.pop("format", None) != kind:
            raise _RefusedError("train one with `make train`")
        version, expected = content.pop("version", None), content.pop("sha256", None)
        if version not in (1, VERSION):
            raise _RefusedError(f"it has format version {version!r:.20}, this program reads 1 and {VERSION}")
        found = digest(content, len(data), min(MAX_PLAIN_PER_BYTE * plain, MAX_PLAIN))
    except _RefusedError as error:
        raise ValueError(f"{foreign}: {error}") from error
    except Exception as error:  # zipfile, pickle and torch raise nearly anything over a damaged file
        raise ValueError(f"{path} is damaged: {' '.join(str(error).split())[:120]}") from error
    if found != expected:
        raise ValueError(f"{path} is damaged: its SHA-256 does not match its content")
    return _from_version_1(content) if version == 1 else content


def _from_version_1(content: dict[str, Any]) -> dict[str, Any]:
    config = content.get("config")
    if isinstance(config, dict):
        config["data"] = "generated" if config.pop("generated", False) else "cifar10"
    return content | ({"classes": list(CLASSES_OF_VERSION_1)} if "weights" in content else {})


class _RefusedError(Exception):
    """Why a whole file is none of ours."""


def _bounded_bytes(path: Path) -> bytes:
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe without a writer would be waited for
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, "it is a folder: name a file", str(path))
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is no regular file")
        if status.st_size > MAX_BYTES:
            raise ValueError(f"{path} has {status.st_size} bytes, a checkpoint of this program at most {MAX_BYTES}")
        return file.read(MAX_BYTES)


def _inspect(archive: zipfile.ZipFile, size: int) -> int:
    """Bytes of the pickles of an archive of `size` bytes; refuses what `torch.save` of tensors does not write."""
    members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise _RefusedError("its members are compressed")
    if sum(member.file_size for member in members) > size:
        raise _RefusedError("its members claim more bytes than it has")
    pickles = [member for member in members if member.filename.endswith(".pkl")]
    plain = sum(member.file_size for member in pickles)
    if plain > MAX_PICKLE_BYTES:
        raise _RefusedError(f"its pickle has {plain} bytes")
    for member in pickles:
        for opcode, argument, _ in pickletools.genops(archive.read(member)):
            if opcode.name == "GLOBAL" and argument not in GLOBALS:
                raise _RefusedError(f"its pickle asks for {str(argument).replace(' ', '.')!r:.80}")
    return plain


def _forms(weights: Any) -> Any:
    """Names, shapes and types of tensors, to compare; None where that is not what `weights` are."""
    if not isinstance(weights, dict) or not all(isinstance(t, torch.Tensor) for t in weights.values()):
        return None
    return {name: (tensor.shape, tensor.dtype) for name, tensor in weights.items()}


def digest(content: Any, tensor_bytes: float = math.inf, plain_cost: float = math.inf) -> str:
    """SHA-256, in hexadecimal, over the names, types, shapes and bytes of nested dicts, lists, tensors and values.

    A few bytes of a pickle can stand for endless lists or one number for a huge tensor: with more than `tensor_bytes`
    of tensors, or more than `plain_cost` other values and letters, it is refused.
    """
    sha = hashlib.sha256()

    def add(value: Any) -> None:
        nonlocal tensor_bytes, plain_cost
        plain_cost -= 1 + (len(value) if isinstance(value, str) else 0)
        if isinstance(value, torch.Tensor):
            tensor_bytes -= value.numel() * value.element_size()
        if tensor_bytes < 0 or plain_cost < 0:
            raise _RefusedError("it unpacks to more than it holds")
        if isinstance(value, torch.Tensor):
            sha.update(f"tensor {value.dtype} {tuple(value.shape)} ".encode())
            sha.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        elif isinstance(value, dict):
            sha.update(f"dict {len(value)} ".encode())
            for key, item in value.items():
                add(key)
                add(item)
        elif isinstance(value, list | tuple):
            sha.update(f"{type(value).__name__} {len(value)} ".encode())
            for item in value:
                add(item)
        elif value is None or isinstance(value, bool | int | float | str):
            sha.update(f"{type(value).__name__} {value!r} ".encode())
        else:
            raise TypeError(f"a checkpoint holds tensors and plain values only, not {type(value).__name__}")

    add(content)
    return sha.hexdigest()
