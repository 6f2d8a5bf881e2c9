"""train.py run in the tests' own process, what it leaves, and files forged."""

import struct
import sys
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

import train
from engine import checkpoint
from ground.entry import execute


def call(capsys, *arguments):
    """Exit code, stdout, stderr of one command line in this process."""
    sys.argv = ["train.py", *arguments]
    with pytest.raises(SystemExit) as end:
        execute(train.main, "train.py")
    captured = capsys.readouterr()
    return end.value.code, captured.out, captured.err


def weights(path):
    return checkpoint.load(path).model.state_dict()


def rewritten(path, change):
    """The file at `path` with its content changed by `change` and a digest that fits, as an attacker would."""
    content = torch.load(path, weights_only=True)
    change(content)
    head = {key: content.pop(key) for key in ("format", "version", "sha256")}
    torch.save(head | {"sha256": checkpoint.digest(content)} | content, path)


def archive(path: Path, members: Iterable[tuple[str, bytes | int]], method: int = 0) -> None:
    """A zip as torch.save ends it, of these members in this order; one given as a number is a hole of so many bytes."""
    directory, count = b"", 0
    with path.open("wb") as file:
        for name, data in members:
            size, crc = (data, 0) if isinstance(data, int) else (len(data), zlib.crc32(data))
            head = struct.pack("<5H3L2H", 20, 0, method, 0, 33, crc, size, size, len(name), 0)
            place = struct.pack("<3H2L", 0, 0, 0, 0, file.tell()) + name.encode()
            directory, count = directory + b"PK\1\2\x14\0" + head + place, count + 1
            file.write(b"PK\3\4" + head + name.encode() + (b"" if isinstance(data, int) else data))
            file.seek(data if isinstance(data, int) else 0, 1)
        start, length = file.tell(), len(directory)
        end = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, length, start)
        end += struct.pack("<4sIQI", b"PK\6\7", 0, start + length, 1)
        file.write(directory + end + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, length, start, 0))


def members(path: Path) -> dict[str, bytes]:
    """Of an archive, by their names."""
    with zipfile.ZipFile(path) as source:
        return {name: source.read(name) for name in source.namelist()}
