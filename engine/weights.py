"""`--pretrained`: a checkpoint of ours, or weights of ImageNet in files of torchvision and timm.

    load("model.pt")                        # a checkpoint of ours
    load("resnet18.a1_in1k.safetensors")    # ResNet-18 or 34
    load(fetched(18), prefix(18))           # torchvision's own, from torch's cache or its address

Theirs becomes a checkpoint too: the network with ImageNet's stem and width 64, which normalises by
ImageNet's mean and deviation. A file is not trusted: an archive is looked through as our own are
before torch is given it, and names, shapes, types and numbers are checked before a weight is used.
"""

import hashlib
import importlib.util
import os
import socket
import sys
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from engine import checkpoint
from engine.checkpoint import FOREIGN_CALLS, Checkpoint, DamagedError, need_finite
from engine.config import Config
from engine.model import MOST_CLASSES, network
from engine.schema import MisfitError, state_of
from ground.files import MARK, MARK_BYTES
from ground.mistake import Mistake
from ground.terminal import printable

WIDTH = 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MOST_BYTES, MOST_HEADER = 2**30, 2**20  # ResNet-34: 83 MiB, and 25 KB of safetensors' header
STALL_SECONDS = 20.0  # without a byte from the server
BEFORE_ARCHIVES = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # how torch.save began until 2020
NAMES = {"stem.0.": "conv1.", "stem.1.": "bn1.", ".shortcut.": ".downsample."}  # ours: theirs


def torchvision_name(name: str) -> str:
    """What torchvision and timm call our tensor."""
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return name


def address(depth: int) -> str:
    """Where torchvision publishes its weights; the name ends with the start of their SHA-256."""
    from torchvision.models import ResNet18_Weights, ResNet34_Weights

    return str({18: ResNet18_Weights, 34: ResNet34_Weights}[depth].IMAGENET1K_V1.url)


def prefix(depth: int) -> str:
    """What the SHA-256 of torchvision's file begins with."""
    return Path(address(depth)).stem.rpartition("-")[2]


def fetched(depth: int) -> str:
    """Path of torchvision's file in torch's cache; where it is not there, it is downloaded, whole
    or not at all. Raises Mistake where that fails; OSError where the cache cannot be made."""
    url, folder = address(depth), os.path.join(torch.hub.get_dir(), "checkpoints")
    path = os.path.join(folder, os.path.basename(url))
    if os.path.exists(path):
        return path
    os.makedirs(folder, exist_ok=True)
    print(f"fetching {url}", file=sys.stderr, flush=True)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL_SECONDS)
    try:
        torch.hub.download_url_to_file(url, path, prefix(depth), progress=sys.stderr.isatty())
    except (OSError, HTTPException, RuntimeError) as error:  # the last: another digest
        advice = f"run it again, or put that file into {folder}"
        raise Mistake(f"{url} could not be fetched ({error}): {advice}") from error
    finally:
        socket.setdefaulttimeout(before)
    return path


def load(path: str | Path, digest: str = "") -> Checkpoint:
    """Read a checkpoint of ours, or weights of theirs, whose classes get numbers for names.

    `digest` is what the SHA-256 of theirs must begin with. Raises OSError; Mistake where it is
    neither, or another network; DamagedError where the SHA-256 is another.
    """
    foreign = f"{path} is not a model checkpoint of this program, nor weights to start from"
    with checkpoint.opened(path, foreign) as (file, size):
        start = file.read(MARK_BYTES)
        if not start.startswith(b"PK") or MARK not in start:
            return _theirs(file, size, digest)
    return checkpoint.load(path)


def _theirs(file: BinaryIO, size: int, digest: str) -> Checkpoint:
    if size > MOST_BYTES:
        raise MisfitError(f"it has more than {MOST_BYTES:,} bytes")
    file.seek(0)
    sha256 = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    if not sha256.startswith(digest):
        wrong = f"its SHA-256 begins with {sha256[:8]}, that of the published one with {digest}"
        raise DamagedError(f"{file.name} is damaged or forged: {wrong}: remove it, and run again")
    file.seek(0)
    start = file.read(len(BEFORE_ARCHIVES))
    if start == BEFORE_ARCHIVES:
        raise MisfitError("it is of torch before 1.6: torch.load it, and torch.save it anew")
    if start.startswith(b"PK"):
        content, fill = checkpoint.unpack(file, size, FOREIGN_CALLS)
        tensors = _ours(content)
        fill()
    elif start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= MOST_HEADER:
        if not importlib.util.find_spec("safetensors"):
            raise MisfitError("it takes the package safetensors: pip install safetensors")
        from safetensors.torch import load as parse

        checkpoint.require_no_hole(file, size)
        file.seek(0)
        tensors = _ours(parse(file.read()))
    else:
        raise MisfitError("it is neither torch's nor safetensors' file")
    for tensor in tensors.values():
        need_finite(tensor)
    config = _config(tensors)
    model = network(config, [str(i) for i in range(len(tensors["fc.bias"]))], MEAN, STD)
    plain = {name: tensor.detach() for name, tensor in tensors.items()}
    model.load_state_dict(plain, strict=False)  # mean and std are there
    model = model.requires_grad_(False).to(memory_format=torch.channels_last).eval()
    if sha256.startswith(prefix(config.depth)):
        name = os.path.basename(address(config.depth))
        model.origin = f"torchvision's {name} (ImageNet; licence stated: BSD-3-Clause, of the code)"
    else:
        name = printable(os.path.basename(file.name))[:200]
        model.origin = f"{name} (SHA-256 {sha256[:16]}; licence: as its author states)"
    return Checkpoint(model, config, {"origin": model.origin}, torch.zeros(0, dtype=torch.int64))


def _config(names: dict[str, Tensor]) -> Config:
    return Config(
        depth=34 if "layer1.2.conv1.weight" in names else 18, width=WIDTH, stem="imagenet",
        whiten=False, dirac=False, resolutions=(224,), data="imagenet1k",
    )  # fmt: skip


def _ours(content: Any) -> dict[str, Tensor]:
    """The network's tensors under our names, of a state_dict, wrapped or not; a last layer and
    counters of batches, where they are left out, are zeros. Raises MisfitError for any other."""
    for name in ("state_dict", "model"):
        inner = dict.get(content, name)
        content = inner if isinstance(inner, dict) else content
    found = dict(dict.items(content))  # its own methods could be hidden by what its pickle has set
    for name in ("module.", "model."):
        if all(type(key) is str and key.startswith(name) for key in found):
            found = {key.removeprefix(name): tensor for key, tensor in found.items()}
    if "conv1.0.weight" in found:
        raise MisfitError("it is a ResNet-D, as timm's resnet18d: another network")
    if "layer1.0.conv3.weight" in found:
        raise MisfitError("its blocks have three convolutions, as from ResNet-50 on: take 18 or 34")
    width, bias = _shape(found.get("conv1.weight"))[:1], _shape(found.get("fc.bias"))
    if width and width != (WIDTH,):
        raise MisfitError(f"its width is {width[0]}, not {WIDTH}")
    config, classes = _config(found), bias[0] if len(bias) == 1 else 1
    tensors = {}
    for name, form in state_of(config, ["?"] * min(classes, MOST_CLASSES)).items():
        theirs = torchvision_name(name)
        if name in ("mean", "std"):
            continue
        if name.startswith("fc.") or name.endswith("num_batches_tracked"):
            found.setdefault(theirs, torch.zeros(form.shape, dtype=form.dtype))
        tensor = tensors[name] = found.pop(theirs, None)
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise MisfitError(f"it has no tensor {theirs}")
        if tensor.shape != form.shape or tensor.dtype != form.dtype:
            has, must = (f"{list(one.shape)} of {one.dtype}" for one in (tensor, form))
            raise MisfitError(f"{theirs} is {has}, not {must}")
    if found:
        more = f"{len(found)} tensors that a ResNet-{config.depth} has not"
        raise MisfitError(f"it has {more}: another network")
    return tensors


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, Tensor) else ()
