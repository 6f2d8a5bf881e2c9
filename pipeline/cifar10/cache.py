"""CIFAR-10's cache: one verified file of 184 MB that outlives this folder (see pipeline.home)."""

import itertools
import math
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np

from ground.files import lock, write_whole
from ground.mistake import Mistake
from pipeline.cifar10 import facts, sources
from pipeline.cifar10.sources import DISK_FULL, Arrays, say
from pipeline.home import cache_folders
from pipeline.split import Split, sha256

CACHE_NAME = "cifar10.u8"
WORK_NAME = ".cifar10-preparing"
LOCK_NAME = ".cifar10-lock"


def load(part: str) -> Split:
    """The "train" or the "test" images, verified; a run on "train" never opens the test set.

    Raises:
        Mistake: an offline copy is damaged or foreign, or no source can be reached.
        OSError: the cache cannot be written.
    """
    if part not in ("train", "test"):
        raise ValueError(f'the part is "train" or "test", not {part!r}')
    for folder in cache_folders():
        if split := _open(folder / CACHE_NAME, part):
            return split
    path, _ = prepare()
    if split := _open(path, part):
        return split
    raise Mistake(f"{path}: damaged just after it was written and verified; check the disk, or set CIFAR10_DIR")


def prepare() -> tuple[Path, str]:
    """A verified cache file, built where it is missing or damaged, and the source it came from.

    Processes that prepare at the same time take turns, and all but the first find the work done.
    """
    searched = cache_folders()
    for folder in searched:
        path = folder / CACHE_NAME
        if not (fault := _read(path, facts.SHAPES)[1]):
            return path, "cache"
        if path.exists():
            say(f"{path} is damaged ({fault}): building the cache anew")
    home = searched[-1]
    path, work = home / CACHE_NAME, home / WORK_NAME
    with _alone(home):
        if not _read(path, facts.SHAPES)[1]:  # another process was first
            return path, "cache"
        shutil.rmtree(work, ignore_errors=True)  # left by a run that was killed
        work.mkdir()
        try:
            arrays, source = sources.obtain(searched, work)
            if wrong := _wrong(arrays):
                raise Mistake(f"{source} gave arrays that are not CIFAR-10's: {wrong}")
            write_whole(work / CACHE_NAME, *(arrays[name] for name in facts.SHAPES), durable=True)
            os.replace(work / CACHE_NAME, path)
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            advice = "preparing CIFAR-10 takes 0.5 GB for a moment and 0.2 GB for good; free some or set CIFAR10_DIR"
            raise OSError(error.errno, f"{os.strerror(error.errno)}: {advice}", str(home)) from None
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return path, source


def _read(path: Path, names: Iterable[str]) -> tuple[Arrays, str]:
    """The named arrays of a cache file, and what is wrong with them; nothing where all is well.

    Read, not mapped: what is verified is then what is used, whatever becomes of the file under way, and
    a file that is cut short cannot end the process.
    """
    sizes = [math.prod(shape) for shape in facts.SHAPES.values()]
    if not path.is_file() or path.stat().st_size != sum(sizes):
        return {}, "its size"
    offsets = dict(zip(facts.SHAPES, itertools.accumulate(sizes, initial=0), strict=False))
    arrays = {}
    for name in names:
        count = math.prod(facts.SHAPES[name])
        array = np.fromfile(path, np.uint8, count, offset=offsets[name])
        if len(array) != count:
            return {}, "its size"
        array.flags.writeable = False
        arrays[name] = array.reshape(facts.SHAPES[name])
    return arrays, _wrong(arrays)


def _wrong(arrays: Arrays) -> str:
    """Names of the arrays whose bytes are not CIFAR-10's."""
    return ", ".join(name for name, array in arrays.items() if sha256(array) != facts.SHA256[name])


def _open(path: Path, part: str) -> Split | None:
    """A part of a cache file, or nothing where that is missing or damaged."""
    arrays, fault = _read(path, (f"{part}_images", f"{part}_labels"))
    if fault:
        return None
    images, labels = arrays.values()
    known = facts.KNOWN | {"disputed": facts.DISPUTED_TEST_INDICES if part == "test" else ()}
    return Split(images=images, labels=labels.astype(np.int64), name=part, **known)


def _alone(folder: Path) -> IO[bytes]:
    """The folder's lock, which the system frees however the process ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        waiting = "waiting for process {}, which prepares {}"
        return os.fdopen(lock(folder / LOCK_NAME, lambda by: say(waiting.format(by, folder))), "rb")
    except OSError as error:
        advice = "the cache folder cannot be written or locked; set CIFAR10_DIR to one that can"
        raise OSError(error.errno, f"{error.strerror}: {advice}", str(folder)) from None
