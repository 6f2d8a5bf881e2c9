"""Checkpoints: written whole or not at all, checked byte for byte when read.

Format: a `torch.save` archive of one dict of plain values and tensors (so that `torch.load(weights_only=True)` reads
it and nothing in it can run), with the keys

    format   "cifar10-resnet model" or "cifar10-resnet resume"
    version  1
    sha256   hexadecimal digest over the names, types, shapes and bytes of all the rest
    config   the run's Config as a dict
    model:   weights (name -> tensor), metrics (name -> number or string)
    resume:  what engine/resume.py says
"""

import dataclasses
import errno
import hashlib
import io
import os
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.config import Config
from engine.model import ResNet

VERSION = 1
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
    content = {"config": config_dict(config), "weights": weights, "metrics": metrics}
    write(path, MODEL, content)


def load(path: str | Path) -> Checkpoint:
    """Read a finished model.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is damaged, or no checkpoint of this program.
    """
    content = read(path, MODEL)
    config = config_from(content["config"], path)
    model = ResNet(config.depth, config.width, config.resolutions[-1])
    try:
        model.load_state_dict(content["weights"])
    except RuntimeError as error:
        raise ValueError(f"{path}: the weights do not fit a ResNet-{config.depth} of width {config.width}") from error
    model.requires_grad_(False)
    return Checkpoint(model.to(memory_format=torch.channels_last).eval(), config, content["metrics"])


def load_model(path: str | Path) -> ResNet:
    """The model of a checkpoint, ready to use: `load_model("model.pt").predict(images)`. Raises as `load` does."""
    return load(path).model


def config_dict(config: Config) -> dict[str, Any]:
    """Plain values only."""
    values = dataclasses.asdict(config)
    return values | {"resolutions": list(config.resolutions)}


def config_from(values: dict[str, Any], path: str | Path) -> Config:
    """The inverse of `config_dict`; ValueError when the fields are not those of this version."""
    try:
        return Config(**values | {"resolutions": tuple(values["resolutions"])})
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: its config does not fit this version of the program: {error}") from error


def check_writable(path: str | Path) -> None:
    """Try, before hours of work, whether `path` can be written later.

    Raises:
        OSError: it cannot.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a folder: name a file", str(path))
    with tempfile.NamedTemporaryFile(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent):
        pass


def write(path: str | Path, kind: str, content: dict[str, Any]) -> None:
    """Write `content` under a temporary name in the same folder, flush it to the disk, then rename it to `path`.

    Raises:
        OSError: the folder is missing or read-only, or the disk is full; `path` is as it was before.
    """
    path = Path(path)
    buffer = io.BytesIO()  # torch.save on a full disk raises an odd RuntimeError, so the writing is ours
    torch.save({"format": kind, "version": VERSION, "sha256": digest(content)} | content, buffer)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read(path: str | Path, kind: str) -> dict[str, Any]:
    """The content of a file that `write` made, checked.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is damaged, or no checkpoint of this kind.
    """
    foreign = f"{path} is not a {kind.split()[1]} checkpoint of this program"
    data = Path(path).read_bytes()
    if not data.startswith(b"PK"):
        raise ValueError(f"{foreign}, or it is damaged")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError(f"{foreign}: its members are compressed")
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except ValueError:
        raise
    except Exception as error:  # torch.load raises nearly anything on a damaged file
        raise ValueError(f"{path} is damaged: {str(error).splitlines()[0][:120]}") from error
    if not isinstance(content, dict) or content.pop("format", None) != kind:
        raise ValueError(f"{foreign}: train one with `make train`")
    version, expected = content.pop("version", None), content.pop("sha256", None)
    if version != VERSION:
        raise ValueError(f"{path} has format version {version}, this program reads {VERSION}")
    if digest(content) != expected:
        raise ValueError(f"{path} is damaged: its SHA-256 does not match its content")
    return content


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
