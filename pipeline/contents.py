"""SHA-256 of many files, each of which is read once and not again while nothing says that it has changed.

What says so is the system's: device, inode, the times of the last change of the file and of its content, and the
length. A name says nothing. An index in the folder of the caches holds the digests.
"""

import contextlib
import hashlib
import os
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ground.files import open_regular, write_whole
from ground.mistake import Mistake
from ground.terminal import tracked
from pipeline.pictures import MOST_BYTES, reason

BLOCK = 32  # files that are looked at one after the other: 0.4 s for photographs of 12 megapixels
SETTLED = 3.0  # seconds: a file that changed later could change again without another time
STATUS, DIGEST = struct.Struct("<QQqqq"), 32  # bytes


def status_bytes(status: os.stat_result) -> bytes:
    """What is another if a file has changed."""
    return STATUS.pack(status.st_dev, status.st_ino, status.st_ctime_ns, status.st_mtime_ns, status.st_size)


def digests(base: Path, names: Sequence[str], index: Path) -> tuple[list[str], list[str]]:
    """For each file the SHA-256 of its bytes, or "" and why it cannot be read."""
    known, paths = read_index(index), [os.path.join(base, name) for name in names]
    hashes, reasons = [b""] * len(names), [""] * len(names)
    statuses = [b""] * len(names)
    now = time.time_ns()

    def look(i: int) -> None:
        status = os.stat(paths[i])
        statuses[i] = status_bytes(status)
        hashes[i] = known.get(statuses[i], b"")
        if status.st_ctime_ns > now - SETTLED * 1e9:
            statuses[i] = b""

    def read(i: int) -> None:
        with open_regular(paths[i]) as file:
            before = os.fstat(file.fileno())
            if before.st_size > MOST_BYTES:
                raise Mistake(f"more than {MOST_BYTES / 1e9:.1f} GB")
            hashes[i] = hashlib.file_digest(file, "sha256").digest()  # type: ignore[arg-type]
            if statuses[i] and status_bytes(os.fstat(file.fileno())) != statuses[i]:
                statuses[i] = b""

    def each(work: Callable[[int], None]) -> Callable[[Sequence[int]], int]:
        def block(rows: Sequence[int]) -> int:
            for i in rows:
                try:
                    work(i)
                except (OSError, ValueError) as error:
                    reasons[i] = reason(error, paths[i])
            return len(rows)

        return block

    every = range(len(names))
    for _ in in_threads(each(look), every):
        pass
    new = [i for i in every if not hashes[i] and not reasons[i]]
    for _ in tracked(in_threads(each(read), new), "reading", len(new), count=int):
        pass
    if new:
        entries = [status + digest for status, digest in zip(statuses, hashes, strict=True) if status and digest]
        with contextlib.suppress(OSError):  # then they are read again the next time
            write_index(index, entries)
    return [digest.hex() for digest in hashes], reasons


def in_threads(work: Callable[[Sequence[int]], int], rows: Sequence[int]) -> Iterator[int]:
    """What `work` gives of blocks of the rows, on all cores. After Ctrl-C no further block is begun."""
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    try:
        yield from pool.map(work, [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)])
    finally:
        pool.shutdown(cancel_futures=True)


def write_index(index: Path, entries: Sequence[bytes]) -> None:
    """The SHA-256 of the rest, then the entries, each a status and a digest."""
    data = b"".join(entries)
    write_whole(index, hashlib.sha256(data).digest(), data)


def read_index(index: Path) -> dict[bytes, bytes]:
    """What `write_index` wrote; empty where it is missing or damaged."""
    with contextlib.suppress(OSError), open_regular(index) as file:
        if os.fstat(file.fileno()).st_size <= MOST_BYTES:
            stated, data = file.read(DIGEST), file.read(MOST_BYTES)
            if hashlib.sha256(data).digest() == stated:
                whole = range(0, len(data), STATUS.size + DIGEST)
                middle = STATUS.size
                return {data[i : i + middle]: data[i + middle : i + middle + DIGEST] for i in whole}
    return {}
