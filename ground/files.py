"""Files that are written whole, and files that lock."""

import errno
import fcntl
import os
import secrets
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any


def write_whole(path: Path, *parts: Any, durable: bool = False) -> None:
    """Write the parts one after the other under a temporary name in the same folder, then rename it to `path`.

    So a reader, or a crash, meets the old file or the new one.

    Args:
        parts: bytes, or anything else that gives its bytes as a buffer; or an iterator of such.
        durable: force the bytes to the disk before the renaming, so that a power cut too leaves one of the two.

    Raises:
        OSError: the folder cannot be written or the disk is full; names `path`, which is as it was before.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            for part in parts:
                file.writelines(part if isinstance(part, Iterator) else [part])
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if durable:
            _synchronise(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _synchronise(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(path: str | Path) -> None:
    """Try, before hours of work, whether `path` can be written later.

    Raises:
        OSError: it cannot.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a folder: name a file", str(path))
    try:
        with tempfile.NamedTemporaryFile(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent):
            pass
    except OSError as error:
        raise OSError(error.errno, f"its folder cannot be written: {error.strerror}", str(path)) from None


def lock(path: Path, taken: Callable[[str], None]) -> int:
    """Take a lock file, made if it is missing; returns its descriptor.

    Closing the descriptor frees the lock. So does the end of this process, however it ends.

    Args:
        taken: called with "PROCESS on HOST" where another process holds it. Where this returns, the lock is waited for.

    Raises:
        OSError: the file cannot be written, or its file system has no locks.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            taken(os.pread(descriptor, 200, 0).decode(errors="replace"))
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} on {socket.gethostname()}".encode(), 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
