"""Checkpoints: written whole or not at all, checked byte for byte when read.

Format: a `torch.save` archive of one dict of plain values and tensors (so that `torch.load(weights_only=True)` reads
it and nothing in it can run), with the keys

    format   "cifar10-resnet model" or "cifar10-resnet resume"
    version  2
    sha256   hexadecimal digest over the names, types, shapes and bytes of all the rest
    config   the run's Config as a dict
    model:   classes (list of names), weights (name -> tensor; the images' mean and std among them), metrics (name ->
             number or string)
    resume:  what run/resume.py says

Version 1 is read too. It knew CIFAR-10 and generated images alone: it has no classes, and its config says `generated`
(true or false) where `data` stands today.

A file is not trusted, whatever its digest. Its directory and its pickle are read first, of which both are small; the
pickle may use the few opcodes that such a dict takes, and name nothing but tensors. What it says must fit
engine/schema.py before a byte of a tensor is read.
"""

import dataclasses
import errno
import hashlib
import io
import os
import pickle
import pickletools
import stat
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine import schema
from engine.config import Config
from engine.model import ResNet, network
from engine.schema import Stored
from ground.files import destination, write_whole
from ground.mistake import Mistake

VERSION = 2
# fmt: off
CLASSES_OF_VERSION_1 = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)
# fmt: on
MAX_BYTES = 8 * 2**30  # 60 times the resume state of the full preset
MAX_DIRECTORY_BYTES = 512 * 1024  # ten times that of ResNet-34's state
# Of the pickle; 10,000 epochs' rows have 2.2 MB, 430,000 opcodes and 20,000 dicts and marks.
MAX_PICKLE_BYTES, MAX_OPCODES, MAX_CONTAINERS = 4 * 2**20, 1_000_000, 60_000
CONTAINERS = set("EMPTY_DICT EMPTY_LIST MARK TUPLE TUPLE1 TUPLE2 TUPLE3 REDUCE BINPERSID".split())
OPCODES = CONTAINERS | set(
    "PROTO STOP GLOBAL NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE EMPTY_TUPLE "
    "SETITEM SETITEMS APPEND APPENDS BINPUT LONG_BINPUT BINGET LONG_BINGET".split()
)
DTYPES = {"Float": torch.float32, "Double": torch.float64, "Long": torch.int64}  # all that schema.py knows
KNOWN = {f"torch {name}Storage": dtype for name, dtype in DTYPES.items()} | {"collections OrderedDict": lambda: None}
MODEL = "cifar10-resnet model"
RESUME = "cifar10-resnet resume"


@dataclass(frozen=True)
class Checkpoint:
    model: ResNet
    """In eval mode, float32, channels_last, on the CPU. Its logits are divided by the checkpoint's temperature."""
    config: Config
    metrics: dict[str, Any]
    """What the run reported; `precision`, the type that it evaluated in; `temperature`, that of the model."""


def save_model(path: str | Path, model: ResNet, config: Config, metrics: dict[str, Any]) -> None:
    """Write a finished model: its weights as they are, and in its metrics the `temperature` that `load` applies.

    Raises:
        OSError: the file cannot be written; one that was there before is intact.
    """
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    content = {"config": config_dict(config), "classes": list(model.classes), "weights": weights, "metrics": metrics}
    write(destination(path), MODEL, content)


def load(path: str | Path) -> Checkpoint:
    """Read a finished model.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is damaged, or no checkpoint of this program.
    """
    content = read(path, MODEL, schema.model)
    model = network(content["config"], content["classes"])
    model.load_state_dict(content["weights"])
    model.requires_grad_(False)
    model.cool_(content["metrics"].get("temperature", 1.0))
    return Checkpoint(model.to(memory_format=torch.channels_last).eval(), content["config"], content["metrics"])


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
        raise Mistake(f"{path} would have {buffer.tell()} bytes, the most is {MAX_BYTES}: choose a smaller --width")
    write_whole(path, buffer.getbuffer(), durable=True)


def read(path: str | Path, kind: str, check: Callable[[Mapping[str, Any]], Config]) -> dict[str, Any]:
    """The content of a file that `write` made, checked, with its config as a Config.

    Args:
        check: gives the config of what stands in such a file, or raises schema.MisfitError.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is damaged, or no checkpoint of this kind.
    """
    foreign = f"{path} is not a {kind.split()[1]} checkpoint of this program"
    with _File(os.open(path, os.O_RDONLY | os.O_NONBLOCK)) as file:  # a pipe without a writer would be waited for
        status = os.fstat(file.fileno())
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, "it is a folder: name a file", str(path))
        if not stat.S_ISREG(status.st_mode):
            raise Mistake(f"{path} is no regular file")
        if status.st_size > MAX_BYTES:
            raise Mistake(f"{path} has {status.st_size} bytes, a checkpoint of this program at most {MAX_BYTES}")
        if file.read(2) != b"PK":
            raise Mistake(f"{foreign}, or it is damaged")
        try:
            with zipfile.ZipFile(file) as archive:
                file.most = MAX_BYTES
                return _content(archive, status.st_size, kind, check)
        except _RefusedError as error:
            raise Mistake(f"{foreign}: {error}") from error
        except schema.MisfitError as error:
            raise Mistake(f"{foreign} in this version, or it is damaged: {error}") from error
        except Exception as error:  # zipfile and pickle raise nearly anything over a damaged file
            raise Mistake(f"{path} is damaged: {' '.join(str(error).split())[:120]}") from error


class _RefusedError(Exception):
    """Why a whole file is none of ours."""


class _File(io.FileIO):
    """A file of which at most `most` bytes are read at once: zipfile reads as much as the file tells it to."""

    most = MAX_DIRECTORY_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        if size and size > self.most:
            raise _RefusedError("its directory is too large")
        return super().read(self.most if size is None or size < 0 else size) or b""


def _content(
    archive: zipfile.ZipFile, size: int, kind: str, check: Callable[[Mapping[str, Any]], Config]
) -> dict[str, Any]:
    members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise _RefusedError("its members are compressed")
    if sum(member.file_size for member in members) > size:
        raise _RefusedError("its members claim more bytes than it has")
    pickles = [member for member in members if member.filename.endswith("data.pkl")]
    if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE_BYTES:
        raise _RefusedError("it has no pickle, or a large one, or several")
    place = pickles[0].filename.removesuffix("data.pkl")
    order = [archive.read(member) for member in members if member.filename == f"{place}byteorder"]
    if order not in ([], [b"little"]):
        raise _RefusedError("its numbers are not little-endian")

    content = _unpickled(archive.read(pickles[0]))
    if type(content) is not dict or content.pop("format", None) != kind:
        raise _RefusedError("train one with `make train`")
    version, expected = content.pop("version", None), content.pop("sha256", None)
    if type(version) is not int or version not in (1, VERSION):
        raise _RefusedError(f"it has another format version, this program reads 1 and {VERSION}")
    translate = _from_version_1 if version == 1 else dict
    config = check(translate(content))

    storages: dict[tuple[str, torch.dtype], torch.Tensor] = {}

    def filled(value: Any) -> Any:
        if type(value) is dict:
            return {key: filled(item) for key, item in value.items()}
        if type(value) is list:
            return [filled(item) for item in value]
        if type(value) is not Stored:
            return value
        key = value.key, value.dtype
        if key not in storages:
            storages[key] = _storage(archive, f"{place}data/{value.key}", value)
        return storages[key].as_strided(value.shape, value.stride, value.offset)

    content = filled(content)
    if digest(content) != expected:
        raise Mistake("its SHA-256 does not match its content")
    return translate(content) | {"config": config}


def _unpickled(data: bytes) -> Any:
    containers = 0
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        containers += opcode.name in CONTAINERS
        if opcode.name not in OPCODES or count > MAX_OPCODES or containers > MAX_CONTAINERS:
            raise _RefusedError("its pickle holds what no checkpoint does, or too much")
        if opcode.name == "LONG_BINPUT" and int(argument or 0) > MAX_OPCODES:  # makes room for as many
            raise _RefusedError("its pickle counts too far")
    return _Unpickler(io.BytesIO(data)).load()


class _Unpickler(pickle.Unpickler):
    """Knows tensors alone, and leaves them in the file."""

    def find_class(self, module: str, name: str, /) -> Any:
        known = {**KNOWN, "torch._utils _rebuild_tensor_v2": _stored}
        if f"{module} {name}" not in known:
            raise _RefusedError(f"its pickle asks for {module}.{name}"[:80])
        return known[f"{module} {name}"]

    def persistent_load(self, pid: Any, /) -> Any:
        _, dtype, key, _, length = pid
        return dtype, key, length


def _stored(storage: Any, offset: Any, shape: Any, stride: Any, gradient: Any, hooks: Any) -> Stored:
    dtype, key, length = storage
    return Stored(dtype, key, length, offset, shape, stride)


def _storage(archive: zipfile.ZipFile, name: str, stored: Stored) -> torch.Tensor:
    size = archive.getinfo(name).file_size
    if size != stored.length * stored.dtype.itemsize:
        raise Mistake("a tensor has another size than its file")
    data = bytearray(archive.read(name))  # checks its CRC-32; torch wants bytes that may be written
    storage = torch.frombuffer(data, dtype=stored.dtype) if size else torch.empty(0, dtype=stored.dtype)
    # Sums of the metrics are in float64, and hold one infinity by design.
    if bool(storage.isnan().any() if stored.dtype is torch.float64 else not storage.isfinite().all()):
        raise schema.MisfitError("a number in a tensor is not finite")
    return storage


def _from_version_1(content: dict[str, Any]) -> dict[str, Any]:
    content = dict(content)
    if isinstance(content.get("config"), dict):
        config = content["config"] = dict(content["config"])
        config["data"] = "generated" if config.pop("generated", False) is True else "cifar10"
    return content | ({"classes": list(CLASSES_OF_VERSION_1)} if "weights" in content else {})


def digest(content: Any) -> str:
    """SHA-256, in hexadecimal, over the names, types, shapes and bytes of nested dicts, lists, tensors and values."""
    sha = hashlib.sha256()

    def add(value: Any) -> None:
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
