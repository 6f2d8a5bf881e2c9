"""Files that are written whole, and files that lock."""

import errno
import fcntl
import os
import secrets
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ground.mistake import Mistake


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
        if not isinstance(error, FileExistsError):  # then it is another's
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


def destination(path: str | Path) -> Path:
    """The file that a person means by `path`, there or to come: where a symbolic link leads.

    Raises:
        OSError: no file can be written there: it is a folder, a device or a pipe, a file that this user may not write,
            a link in a loop.
        Mistake: it begins with ~, which a shell would have replaced.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        mode = stat.S_IFREG | stat.S_IWUSR
    if str(path).startswith("~"):
        raise Mistake(f"{path}: ~ stands for itself here: write the home folder out")
    if stat.S_ISDIR(mode) or str(path).endswith("/"):
        raise IsADirectoryError(errno.EISDIR, "it is a folder: name a file", str(path))
    if not stat.S_ISREG(mode):
        raise FileExistsError(errno.EEXIST, "it is a device or a pipe: name a plain file", str(path))
    # No mode stops root; and another user's file may be closed to this one alone.
    if not mode & 0o222 or (os.path.exists(path) and not os.access(path, os.W_OK, effective_ids=True)):
        raise PermissionError(errno.EACCES, "it is read-only: remove it, or name another file", str(path))
    return Path(os.path.realpath(path) if os.path.islink(path) else path)


def read_bounded(path: str | Path, most: int) -> bytes:
    """All of a plain file that may be anybody's: a pipe is not waited for, and a huge file fills no memory.

    Raises:
        OSError: it cannot be read, or is no plain file.
        Mistake: it has more than `most` bytes.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is no plain file", str(path))
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(most + 1)
    finally:
        os.close(descriptor)
    if len(content) > most:
        raise Mistake(f"{path} has more than {most:,} bytes")
    return content


def check_writable(path: str | Path) -> None:
    """Try, before hours of work, whether `path` can be written later; raises as `destination`, or OSError."""
    real = destination(path)
    try:
        with tempfile.NamedTemporaryFile(prefix=f".{real.name}.", suffix=".tmp", dir=real.parent):
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
    if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
        raise FileExistsError(errno.EEXIST, "it is a link or no regular file: remove it", str(path))
    # A link that comes between the two would be emptied, a pipe waited for.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
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
