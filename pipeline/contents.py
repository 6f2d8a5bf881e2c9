"""SHA-256 of many files, each of which is read once and not again while nothing says that it changed.

What says so is the system's: device, inode, length, and the times of the last change of the file and of
its content. A name says nothing. An index in the folder of the caches holds the digests.
"""

import hashlib
import os
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TypeVar

from ground.files import write_whole
from ground.mistake import Mistake
from ground.terminal import tracked
from pipeline.pictures import open_bounded, reason

T = TypeVar("T")
R = TypeVar("R")

BLOCK = 32  # files that are looked at one after the other: 0.4 s for photographs of 12 megapixels
AHEAD = 2  # blocks a core that wait for their turn
SETTLED = 3.0  # seconds: a file that changed later could change again without another time
STATUS, ENTRY = "<QQqqq", "40s32s"  # a status's bytes; of the index, one and the SHA-256


def status_bytes(status: os.stat_result) -> bytes:
    """What is another if a file has changed."""
    times = status.st_ctime_ns, status.st_mtime_ns
    return struct.pack(STATUS, status.st_dev, status.st_ino, *times, status.st_size)


def digests(base: Path, names: Sequence[str], index: Path) -> tuple[list[str], list[str]]:
    """For each file the SHA-256 of its bytes, or "" and why it cannot be read."""
    known, now = read_index(index), time.time_ns()
    paths, count = [os.path.join(base, name) for name in names], len(names)
    hashes, statuses, reasons = [b""] * count, [b""] * count, [""] * count

    def look(i: int) -> None:
        status = os.stat(paths[i])
        state = status_bytes(status)
        hashes[i] = known.get(state, b"")
        statuses[i] = state if status.st_ctime_ns <= now - SETTLED * 1e9 else b""

    def read(i: int) -> None:
        with open_bounded(paths[i]) as file:
            hashes[i] = hashlib.file_digest(file, "sha256").digest()  # type: ignore[arg-type]
            if status_bytes(os.fstat(file.fileno())) != statuses[i]:
                statuses[i] = b""

    def guarded(work: Callable[[int], None], i: int) -> None:
        try:
            work(i)
        except (OSError, ValueError) as error:
            reasons[i] = reason(error, paths[i])

    deque(in_order(lambda i: guarded(look, i), range(count)), maxlen=0)
    if new := [i for i in range(count) if not hashes[i] and not reasons[i]]:
        deque(in_order(lambda i: guarded(read, i), new, "reading", len(new)), maxlen=0)
        entries = zip(statuses, hashes, strict=True)
        data = b"".join(status + digest for status, digest in entries if status and digest)
        with suppress(OSError):  # then they are read again the next time
            write_whole(index, hashlib.sha256(data).digest(), data)
    return [digest.hex() for digest in hashes], reasons


def in_order(work: Callable[[T], R], items: Iterable[T], title: str = "", total: int = 0) -> Iterator[R]:
    """The results of `work` on each item, in their order, done on all cores.

    Under a title it shows how far it is, of `total` items (0: nobody knows). Items are taken as they are needed: AHEAD
    blocks a core at most wait for their turn.
    """
    cores, source = len(os.sched_getaffinity(0)), iter(items)
    pool = ThreadPoolExecutor(cores)

    def results() -> Iterator[R]:
        waiting: deque[Future[list[R]]] = deque()
        while (block := list(islice(source, BLOCK))) or waiting:
            if block:
                waiting.append(pool.submit(lambda some: list(map(work, some)), block))
            if not block or len(waiting) > AHEAD * cores:
                yield from waiting.popleft().result()

    try:
        yield from tracked(results(), title, total) if title else results()
    finally:
        pool.shutdown(cancel_futures=True)


def read_index(index: Path) -> dict[bytes, bytes]:
    """{status: digest} as `digests` wrote them; empty where the index is missing or damaged."""
    with suppress(OSError, Mistake, struct.error), open_bounded(index) as file:
        stated, data = file.read(32), file.read()
        if hashlib.sha256(data).digest() == stated:
            return dict(struct.iter_unpack(ENTRY, data))
    return {}
