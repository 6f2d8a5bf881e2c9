"""`--pretrained`: a checkpoint of ours, or weights of ImageNet in torchvision's and timm's files of ResNet-18 and 34.

    load("model.pt")                    # a checkpoint of ours
    load("resnet18.a1_in1k.safetensors")
    load(fetched(18), prefix(18))       # torchvision's own, from torch's cache or from its address

Theirs becomes a checkpoint too: the network of the stem "imagenet" and of width 64, which normalises by ImageNet's mean
and deviation. A file is not trusted: before torch is given an archive it is looked through as our own are, and names,
shapes, types and numbers are checked before a weight is used. Nothing in it can run.
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
from engine.checkpoint import FOREIGN_CALLS, Checkpoint, DamagedError, need_finite, opened, require_no_hole, unpack
from engine.config import Config
from engine.model import MOST_CLASSES, network
from engine.schema import MisfitError, state_of
from ground.files import MARK, MARK_BYTES
from ground.mistake import Mistake
from ground.terminal import printable

IMAGENET = "imagenet"
WIDTH = 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MOST_BYTES, MOST_HEADER = 2**30, 2**20  # ResNet-34's have 83 MiB, the header of its safetensors 25 KB
STALL_SECONDS = 20.0  # without a byte from the server
BEFORE_ARCHIVES = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # how torch.save began until 2020
NAMES = {"stem.0.": "conv1.", "stem.1.": "bn1.", ".shortcut.": ".downsample."}  # ours: torchvision's
WRAPPINGS, PREFIXES = ("state_dict", "model"), ("module.", "model.")


def torchvision_name(name: str) -> str:
    """What torchvision and timm call our tensor."""
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return name


def address(depth: int) -> str:
    """Where torchvision publishes its weights of that depth; the name holds the start of the file's SHA-256."""
    from torchvision.models import ResNet18_Weights, ResNet34_Weights

    return str({18: ResNet18_Weights, 34: ResNet34_Weights}[depth].IMAGENET1K_V1.url)


def prefix(depth: int) -> str:
    """What the SHA-256 of torchvision's file begins with."""
    return Path(address(depth)).stem.rpartition("-")[2]


def fetched(depth: int) -> str:
    """Path of torchvision's file in torch's cache, where it is downloaded to unless it is there: whole or not at all.

    Raises Mistake where it cannot be fetched, with what to do; OSError where the cache cannot be made.
    """
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
        raise Mistake(f"{url} could not be fetched ({error}): run it again, or put that file into {folder}") from error
    finally:
        socket.setdefaulttimeout(before)
    return path


def load(path: str | Path, digest: str = "") -> Checkpoint:
    """Read a checkpoint of ours, or weights of theirs, with their 1000 classes under numbers.

    Args:
        digest: what the file's SHA-256 must begin with.

    Raises OSError; Mistake where it is neither, or another network; DamagedError where the SHA-256 is another.
    """
    foreign = f"{path} is not a model checkpoint of this program, nor weights of ResNet-18 or 34 that it can start from"
    with opened(path, foreign) as (file, size):
        start = file.read(MARK_BYTES)
        ours = start.startswith(b"PK") and MARK in start
        if not ours:
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
    start, fill = file.read(len(BEFORE_ARCHIVES)), None
    content: Any
    if start.startswith(b"PK"):
        content, fill = unpack(file, size, FOREIGN_CALLS)
    elif start == BEFORE_ARCHIVES:
        raise MisfitError("it is of torch before 1.6: read it with torch.load and write it anew with torch.save")
    elif start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= MOST_HEADER:
        content = _safetensors(file, size)
    else:
        raise MisfitError("it is neither torch's nor safetensors' file")
    tensors = _ours(content)
    if fill:
        fill()
    for tensor in tensors.values():
        need_finite(tensor)
    depth, classes = _depth(tensors), [str(i) for i in range(len(tensors["fc.bias"]))]
    model = network(_config(depth), classes, MEAN, STD)
    model.load_state_dict({name: tensor.detach() for name, tensor in tensors.items()}, strict=False)
    model = model.requires_grad_(False).to(memory_format=torch.channels_last).eval()
    model.origin = _origin(str(file.name), depth, sha256)
    return Checkpoint(model, _config(depth), {"origin": model.origin}, torch.zeros(0, dtype=torch.int64))


def _safetensors(file: BinaryIO, size: int) -> dict[str, Tensor]:
    if not importlib.util.find_spec("safetensors"):
        raise MisfitError("it takes the package safetensors: pip install -r requirements.txt")
    from safetensors.torch import load as parse

    require_no_hole(file, size)
    file.seek(0)
    return parse(file.read())


def _config(depth: int) -> Config:
    form = {"depth": depth, "width": WIDTH, "stem": IMAGENET, "whiten": False, "dirac": False}
    return Config(resolutions=(224,), data="imagenet1k", **form)  # type: ignore[arg-type]


def _depth(names: Any) -> int:
    return 34 if "layer1.2.conv1.weight" in names else 18


def _ours(content: Any) -> dict[str, Tensor]:
    """The tensors of a state_dict, wrapped or not, under our names: those of the network, and no other. Raises
    MisfitError in which no text of the file is. What a file may leave out is made: the last layer, and the counters."""
    for name in WRAPPINGS:
        content = dict.get(content, name) if isinstance(dict.get(content, name), dict) else content
    found = dict(dict.items(content))  # its own methods could be hidden by what its pickle has set
    for name in PREFIXES:
        if all(type(key) is str and key.startswith(name) for key in found):
            found = {key.removeprefix(name): tensor for key, tensor in found.items()}
    if "conv1.0.weight" in found:
        raise MisfitError("it is a ResNet-D, as timm's resnet18d, whose stem has three convolutions: another network")
    if "layer1.0.conv3.weight" in found:
        raise MisfitError("its blocks have three convolutions, as from ResNet-50 on: take ResNet-18 or 34")
    width, bias = len(_tensor(found, "conv1.weight")), found.get("fc.bias")
    if width != WIDTH:
        raise MisfitError(f"its width is {width}, not {WIDTH}")
    depth, one = _depth(found), isinstance(bias, Tensor) and bias.ndim == 1 and 0 < len(bias) <= MOST_CLASSES
    own = state_of(_config(depth), ["?"] * (len(bias) if one else 1))  # type: ignore[arg-type]
    tensors = {}
    for name, form in own.items():
        theirs = torchvision_name(name)
        if name in ("mean", "std"):
            continue
        if name.startswith("fc.") or name.endswith("num_batches_tracked"):
            found.setdefault(theirs, torch.zeros(form.shape, dtype=form.dtype))
        tensor = tensors[name] = _tensor(found, theirs)
        if tensor.shape != form.shape or tensor.dtype != form.dtype:
            is_now, must = (f"{list(one.shape)} of {one.dtype}" for one in (tensor, form))
            raise MisfitError(f"{theirs} is {is_now}, not {must}")
        del found[theirs]
    if found:
        raise MisfitError(f"it has {len(found)} tensors that a ResNet-{depth} has not: another network")
    return tensors


def _tensor(found: dict[Any, Any], name: str) -> Tensor:
    tensor = found.get(name)
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or (name == "conv1.weight" and not tensor.ndim):
        raise MisfitError(f"it has no tensor {name}")
    return tensor


def _origin(path: str, depth: int, sha256: str) -> str:
    """What it is, and the licence that is stated for it."""
    if sha256.startswith(prefix(depth)):
        return f"torchvision's {os.path.basename(address(depth))} (ImageNet; licence stated: BSD-3-Clause, of the code)"
    return f"{printable(os.path.basename(path))[:200]} (SHA-256 {sha256[:16]}; licence: as its author states)"
