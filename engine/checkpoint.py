"""Checkpoints: written whole or not at all, checked byte for byte when read.

Format: a `torch.save` archive of one dict of plain values and tensors, which `torch.load(weights_only=True)`
reads, so that nothing in it can run. Its keys:

    format   "cifar10-resnet model" or "cifar10-resnet resume"
    version  2
    sha256   hexadecimal digest over the names, types, shapes and bytes of all the rest
    config   the run's Config as a dict
    model:   classes, weights and metrics, as engine/schema.py says
    resume:  what run/resume.py says

A file is not trusted, whatever its digest. Its directory and its pickle, both small, are looked through before
torch is given them; what torch makes of them must fit the schema before a byte of a tensor is read.
"""

import errno
import hashlib
import io
import os
import pickletools
import re
import stat
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import torch

from engine import schema
from engine.config import Config
from engine.known import Known
from engine.model import ResNet, network
from engine.schema import MisfitError
from ground.files import destination, write_whole
from ground.mistake import Mistake

FORMAT, VERSION = "cifar10-resnet ", 2
MAX_BYTES = 8 * 2**30  # 60 times the resume state of the full preset
MAX_DIRECTORY_BYTES = 512 * 1024  # ten times that of ResNet-34's state
# Of the pickle; 10,000 epochs' rows have 2.2 MB and 430,000 opcodes, 600 tensors 1,200 calls.
MAX_PICKLE_BYTES, MAX_OPCODES, OPCODES_A_CALL, MAX_WHOLE, LONGEST_KEY = 6 * 2**20, 1_000_000, 100, 2**53, 1000
# The end of torch.save's files: size and place of the directory, place of this end, length of a comment. With that
# right, zipfile and torch, which parse an archive each in its own way, find the same directory.
END = struct.Struct("<4s36xQQ 4s4xQ4x 4s16xH")
SMALL = ("byteorder", "version", ".format_version", ".storage_alignment", ".data/serialization_id")
OPCODES = set(
    "STOP MARK GLOBAL REDUCE BINPERSID NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE BINPUT "
    "LONG_BINPUT BINGET LONG_BINGET EMPTY_DICT SETITEM SETITEMS EMPTY_LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 "
    "TUPLE2 TUPLE3".split()
)
# What the pickle may call, and with what: a dict that is made by a call could be given any keys.
CALLS = {"torch._utils _rebuild_tensor_v2": "TUPLE", "collections OrderedDict": "EMPTY_TUPLE"}
STORAGES = {"torch FloatStorage", "torch DoubleStorage", "torch LongStorage"}
# What other programs' state_dicts are made by too; BUILD gives an OrderedDict its _metadata.
FOREIGN_CALLS = CALLS | {"torch._utils _rebuild_parameter": "TUPLE3", "BUILD": ""}
Calls = Mapping[str, str]
# A kind's name, and its schema, which gives the content as this version has it or raises MisfitError.
Kind = tuple[str, Callable[[Mapping[str, Any]], dict[str, Any]]]
MODEL: Kind = ("model", schema.model)


class DamagedError(Mistake):
    """A file that certainly is not as it was written."""


@dataclass(frozen=True)
class Checkpoint:
    model: ResNet
    """In eval mode, float32, channels_last, on the CPU; its logits are divided by the temperature."""
    config: Config
    metrics: dict[str, Any]
    """What the run reported; among it the `precision` it evaluated in, `temperature`, the data's `identity`."""
    trained_on: torch.Tensor
    """(n,) int64: pipeline.split.Split.contents of the pictures trained on; empty of other data."""
    known: Known | None = None
    """When it does not know; None of checkpoints without images to fit that on."""


def save_model(
    path: str | Path,
    model: ResNet,
    config: Config,
    metrics: dict[str, Any],
    trained_on: torch.Tensor | None = None,
    known: Known | None = None,
) -> None:
    """Write a finished model: its weights as they are; `load` applies its metrics' `temperature`. Raises as `write`."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    content = {"config": config_dict(config), "classes": list(model.classes), "weights": weights, "metrics": metrics}
    if trained_on is not None and len(trained_on):
        content["trained_on"] = trained_on
    if known:
        content["known"] = dict(vars(known))
    write(destination(path), MODEL, content)


def load(path: str | Path) -> Checkpoint:
    """Read a finished model. Raises as `read` does."""
    content = read(path, MODEL)
    model = network(content["config"], content["classes"])
    model.load_state_dict(content["weights"])
    model.requires_grad_(False)
    model.origin = content["metrics"].get("origin", "")
    model.cool_(content["metrics"].get("temperature", 1.0))
    trained_on = content.get("trained_on", torch.zeros(0, dtype=torch.int64))
    model = model.to(memory_format=torch.channels_last).eval()
    known = Known(**content["known"]) if "known" in content else None
    return Checkpoint(model, content["config"], content["metrics"], trained_on, known)


def load_model(path: str | Path, trainable: bool = False) -> ResNet:
    """The model of a checkpoint, in eval mode: `load_model("model.pt").predict(images)`. Raises as `read` does.

    Its parameters are frozen unless it is to be trained, or given to a library that reads gradients.
    """
    return load(path).model.requires_grad_(trainable)


def config_dict(config: Config) -> dict[str, Any]:
    """Plain values only."""
    return asdict(config) | {"resolutions": list(config.resolutions)}


def write(path: str | Path, kind: Kind, content: dict[str, Any]) -> None:
    """Write `content` whole or not at all, and force it to the disk.

    Raises OSError, with `path` as it was before; Mistake for more bytes than `read` takes; ValueError or TypeError
    for what `read` would refuse.
    """
    path, (name, check) = Path(path), kind
    check(content)
    for tensor in tensors(content):
        need_finite(tensor)
    buffer = io.BytesIO()  # on a full disk torch.save raises an odd RuntimeError
    torch.save({"format": FORMAT + name, "version": VERSION, "sha256": digest(content)} | content, buffer)
    if buffer.tell() > MAX_BYTES:
        raise Mistake(f"{path} would have {buffer.tell()} bytes, the most is {MAX_BYTES}: choose a smaller --width")
    _opened(buffer, buffer.tell(), CALLS)
    write_whole(path, buffer.getbuffer(), durable=True)


def read(path: str | Path, kind: Kind) -> dict[str, Any]:
    """The content of a file that `write` made, checked, with its config as a Config.

    Raises OSError; DamagedError where it is no whole archive of torch.save, or not what its SHA-256 is of; another
    Mistake where it is no checkpoint of this kind and version.
    """
    foreign = f"{path} is not a {kind[0]} checkpoint of this program"
    with opened(path, foreign) as (file, size):
        if file.read(2) != b"PK":
            raise DamagedError(f"{foreign}, or it is damaged")
        return _content(file, size, kind)


@contextmanager
def opened(path: str | Path, foreign: str) -> Iterator[tuple[BinaryIO, int]]:
    """A file that may be anybody's, to parse inside the `with`; and how many bytes it has.

    Raises OSError for no regular file; DamagedError as it comes; for whatever else the parsing
    raises a Mistake that begins with `foreign`, a MisfitError's words in it.
    """
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, "it is a folder: name a file", str(path))
    # A pipe without a writer would be waited for. Not buffered: require_no_hole moves to and fro.
    with open(path, "rb", 0, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise Mistake(f"{path} is no regular file")
        if status.st_size > MAX_BYTES:
            raise Mistake(f"{path} has {status.st_size} bytes, a checkpoint of this program at most {MAX_BYTES}")
        try:
            yield file, status.st_size
        except zipfile.BadZipFile as error:
            raise DamagedError(f"{path} is damaged: {error}") from error
        except (DamagedError, MemoryError):
            raise
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
        except Exception as error:  # zipfile and torch raise nearly anything over a forged file
            reason = error if isinstance(error, MisfitError) else "it cannot be parsed"
            raise Mistake(f"{foreign} in this version: {reason}") from error


def _content(file: BinaryIO, size: int, kind: Kind) -> dict[str, Any]:
    content, fill = unpack(file, size, CALLS)
    if type(content) is not dict or content.pop("format", None) != FORMAT + kind[0]:
        raise MisfitError("train one with `make train`")
    version, expected = content.pop("version", None), content.pop("sha256", None)
    if type(version) is not int or version != VERSION:
        raise MisfitError(f"it has another format version, this program reads {VERSION}")
    checked = kind[1](content)
    fill()
    if digest(content) != expected:
        raise DamagedError(f"{file.name} is damaged: its SHA-256 does not match its content")
    return checked


def unpack(file: BinaryIO, size: int, calls: Calls) -> tuple[Any, Callable[[], None]]:
    """What torch makes of an archive whose pickle makes no other `calls`, and what reads its
    tensors: to be called once their types and shapes are checked. Both raise as `opened` expects."""
    archive, parts = _opened(file, size, calls)
    here = f"/proc/self/fd/{file.fileno()}"  # the file looked through, whatever has its name by now
    content = torch.load(here, map_location="cpu", mmap=True, weights_only=True)

    def fill() -> None:
        # They are not mapped: a mapped file that is cut ends the process.
        found = sorted(tensors(content), key=torch.Tensor.data_ptr)
        require_no_hole(file, size)
        if len(found) != len(parts):
            raise MisfitError("its tensors are not one for each part of the file")
        for tensor, part in zip(found, parts, strict=True):
            if not part.file_size == tensor.untyped_storage().nbytes() == tensor.nbytes:
                raise MisfitError("a tensor has another size than its part of the file")
            data = bytearray(archive.read(part))  # its CRC-32 is checked; torch wants writable bytes
            tensor.data = torch.frombuffer(data, dtype=tensor.dtype).as_strided(tensor.shape, tensor.stride())
            need_finite(tensor)

    return content, fill


def _opened(file: BinaryIO, size: int, calls: Calls) -> tuple[zipfile.ZipFile, list[zipfile.ZipInfo]]:
    """The archive in a file, and its members of tensors in their order, once torch may be given it.
    Raises BadZipFile where it is damaged, MisfitError where it could cost much or is not torch.save's."""
    file.seek(max(0, size - END.size))
    first, length, start, second, place, third, comment = END.unpack(file.read(END.size).rjust(END.size))
    if (first, second, third, comment) != (b"PK\6\6", b"PK\6\7", b"PK\5\6", 0):
        raise zipfile.BadZipFile("its end is missing")
    if place != size - END.size or start + length != place or length > MAX_DIRECTORY_BYTES:
        raise MisfitError("its directory is not where it must be, or too large")
    archive = zipfile.ZipFile(file)
    members = archive.infolist()
    own = {member.filename.partition("/")[2]: member for member in members}
    most = dict.fromkeys(SMALL, 100) | {"data.pkl": MAX_PICKLE_BYTES}
    most |= {name: size for name in own if re.fullmatch("data/[0-9]{1,20}", name)}
    if any(member.file_size > most.get(name, -1) or member.compress_type for name, member in own.items()):
        raise MisfitError("a member of it is unknown, too large or compressed")
    if len(own) != len(members) or sum(member.file_size for member in members) > size:
        raise MisfitError("its members have the same names, or claim more bytes than it has")
    if "byteorder" in own and archive.read(own["byteorder"]) != b"little":
        raise MisfitError("its numbers are not little-endian")
    _check_pickle(archive.read(own["data.pkl"]), calls)
    parts = [member for name, member in own.items() if name.startswith("data/")]
    return archive, sorted(parts, key=lambda member: member.header_offset)


def _check_pickle(data: bytes, calls: Calls) -> None:
    """Follow a pickle without building anything. Raises MisfitError where it takes more or other than a dict of plain
    values and tensors, or has a key that is no short text or small number: others can be made to collide."""
    stack: list[Any] = []  # of each object on the unpickler's stack what made it; True where it may be a key
    marks: list[int] = []
    memo: list[Any] = []
    opcodes = 0
    for opcode, argument, _ in pickletools.genops(data.removeprefix(b"\x80\x02")):
        name, takes, number = opcode.name, opcode.stack_before, argument if type(argument) is int else 0
        opcodes += OPCODES_A_CALL if name == "REDUCE" else 1
        if (name not in OPCODES and name not in calls) or opcodes > MAX_OPCODES or abs(number) > MAX_WHOLE:
            raise MisfitError("its pickle holds what no checkpoint does, or too much")
        if name == "MARK":
            marks.append(len(stack))
            continue
        if name.endswith("PUT"):
            memo.append(stack[-1])
        place = len(stack) - len(takes) if pickletools.markobject not in takes else marks.pop() + 2 - len(takes)
        taken = stack[place:]
        if (
            (name == "GLOBAL" and argument not in {*calls, *STORAGES})
            or (name == "REDUCE" and calls.get(taken[0]) != taken[1])
            or (name == "BUILD" and taken != ["REDUCE collections OrderedDict", "EMPTY_DICT"])
            or (name.startswith("SETITEM") and any(key is not True for key in taken[1::2]))
            or (name.endswith("PUT") and number != len(memo) - 1)  # else its own numbers could collide
        ):
            raise MisfitError("its pickle has a key or a call that no checkpoint has")
        made: Any
        if name == "BINUNICODE":
            made = len(str(argument)) <= LONGEST_KEY
        elif name.startswith("BININT"):
            made = 0 <= number <= LONGEST_KEY
        elif name == "REDUCE":
            made = f"REDUCE {taken[0]}"
        elif name == "BUILD" or name.startswith("SETITEM"):
            made = taken[0]
        else:
            made = memo[number] if name.endswith("GET") else argument or name
        stack[place:] = [made] * len(opcode.stack_after)


def require_no_hole(file: BinaryIO, size: int) -> None:
    """Raises MisfitError where most of a file is in no place of the disk."""
    place = total = 0
    with suppress(OSError):  # from some place on there is only a hole
        while place < size:
            start = os.lseek(file.fileno(), place, os.SEEK_DATA)
            place = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            total += place - start
    if total < size // 2:
        raise MisfitError("most of it is a hole")


def tensors(content: Any) -> Iterator[torch.Tensor]:
    """All tensors in nested dicts and lists."""
    if isinstance(content, torch.Tensor):
        yield content
    elif isinstance(content, dict | list):
        for value in content.values() if isinstance(content, dict) else content:
            yield from tensors(value)


def need_finite(tensor: torch.Tensor) -> None:
    """Raises MisfitError for a tensor that holds what is no finite number."""
    # Sums of the metrics are in float64, and hold one infinity by design.
    if bool(tensor.isnan().any() if tensor.dtype is torch.float64 else not tensor.isfinite().all()):
        raise MisfitError("a number in a tensor is not finite")


def digest(content: Any) -> str:
    """Hexadecimal SHA-256 over names, types, shapes and bytes of nested dicts, lists, tensors and values."""
    sha = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            sha.update(f"tensor {value.dtype} {tuple(value.shape)} ".encode())
            sha.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        elif isinstance(value, dict | list | tuple):
            kind = "dict" if isinstance(value, dict) else type(value).__name__
            sha.update(f"{kind} {len(value)} ".encode())
            for item in chain.from_iterable(value.items()) if isinstance(value, dict) else value:
                add(item)
        elif value is None or isinstance(value, bool | int | float | str):
            sha.update(f"{type(value).__name__} {value!r} ".encode())
        else:
            raise TypeError(f"a checkpoint holds tensors and plain values only, not {type(value).__name__}")

    add(content)
    return sha.hexdigest()
