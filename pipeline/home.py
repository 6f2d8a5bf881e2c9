"""The folder of the caches, and arrays that are there because memory has no room for them.

It is `CIFAR10_DIR`, else `cifar10-resnet18` in the XDG cache folder. A `CIFAR10_DIR` that cannot be
written is read, and what is made goes to the XDG cache folder.
"""

import os
import tempfile
from pathlib import Path

import numpy as np

from ground.mistake import Mistake
from pipeline.split import UInt8

FOLDER_NAME = "cifar10-resnet18"
SHARE = 4  # of the machine's memory, one array may take one part of so many


def cache_folders() -> list[Path]:
    """Where caches and offline copies may be, in the order of search; the last is written to."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    xdg = (Path(home) if Path(home).is_absolute() else Path.home() / ".cache") / FOLDER_NAME
    named = os.environ.get("CIFAR10_DIR")
    if not named:
        return [xdg]
    folder = Path(os.path.abspath(os.path.expanduser(named)))
    if named.startswith("~") and os.path.expanduser(named) == named:
        raise Mistake(f"CIFAR10_DIR is {named}: there is no such user; write the folder out")
    if folder.exists() and not folder.is_dir():
        raise Mistake(f"CIFAR10_DIR: {folder} is not a folder; name the folder that holds the file")
    return [folder, xdg] if folder.is_dir() and not os.access(folder, os.W_OK) else [folder]


def zeros(*shape: int) -> UInt8:
    """Zeros in memory or, where they do not fit, in a file without a name, which is gone with the array."""
    count = int(np.prod(shape, dtype=np.int64))
    if count <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // SHARE:
        return np.zeros(shape, np.uint8)
    home = cache_folders()[-1]
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=home) as file:
        os.posix_fallocate(file.fileno(), 0, count)  # a full disk is an error now, no crash later
        return np.memmap(file, np.uint8, "r+", shape=shape)
