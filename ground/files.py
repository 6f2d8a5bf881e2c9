"""Files that are written whole, what may be written over, and files that lock."""

import errno
import fcntl
import os
import secrets
import socket
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from ground.mistake import Mistake

MARK = b"cifar10-resnet"  # in a checkpoint's format; who writes another kind of file for a person puts it there
MARK_BYTES = 65_536


def open_regular(path: str | Path, otherwise: str = "not a regular file") -> BinaryIO:
    """A regular file to read; OSError for others: a pipe would be waited for, a device may have no end."""
    if stat.S_ISREG(os.stat(path).st_mode):
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # it is still
            return file
        file.close()
    raise OSError(errno.EINVAL, otherwise, str(path))


def write_whole(path: Path, *parts: Any, durable: bool = False) -> None:
    """Write the parts under a temporary name in the same folder, then rename it to `path`.

    A reader, or a crash, meets the old file or the new one. An OSError names `path`, which is as it was.

    Args:
        parts: bytes, or anything else that gives its bytes as a buffer; or an iterator of such.
        durable: force the bytes to the disk before the renaming, so that a power cut leaves one of the two.
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
    """The file that a person means by `path`, there or to come: where a symbolic link leads. Raises OSError for what
    cannot be written, as a folder, a device, another's file, a link in a loop; Mistake for ~."""
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
    """All of a regular file that may be anybody's. Raises OSError, and Mistake beyond `most` bytes."""
    with open_regular(path, "it is no plain file") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise Mistake(f"{path} has more than {most:,} bytes")
    return content


def check_writable(path: str | Path) -> None:
    """Try, before hours of work, whether `path` can be written later; raises as `destination`."""
    real = destination(path)
    try:
        with tempfile.NamedTemporaryFile(prefix=f".{real.name}.", suffix=".tmp", dir=real.parent):
            pass
    except OSError as error:
        raise OSError(error.errno, f"its folder cannot be written: {error.strerror}", str(path)) from None


def check_output(path: str | Path, flag: str = "--out", inputs: Iterable[str | Path] = (), mark: bytes = MARK) -> None:
    """`check_writable`, and that a result there takes nothing of a person's.

    Args:
        flag: by which a person can name another one.
        inputs: files and folders that the command reads; empty names are left out.
        mark: bytes that each such file of ours has among its first or its last MARK_BYTES. One that is there
            without them is a person's own, unless it is empty.

    Raises OSError as `check_writable`; Mistake as `check_apart`, and where a person's own file is there.
    """
    check_apart(path, flag, inputs)
    check_writable(path)
    real = destination(path)
    if not real.exists():
        return
    with open(real, "rb") as file:
        start = file.read(MARK_BYTES)
        file.seek(-len(start), os.SEEK_END)
        end = file.read()
    if start and mark not in start and mark not in end:
        raise Mistake(f"{path} would be overwritten, and is not of this program: move it, or name another {flag}")


def check_apart(path: str | Path, flag: str, inputs: Iterable[str | Path]) -> None:
    """Raises Mistake where the file or folder `path` is one of the inputs, or lies in one."""
    real = Path(os.path.realpath(path))
    for source in filter(None, map(str, inputs)):
        place = os.path.realpath(os.path.expanduser(source))
        if real == Path(place):
            raise Mistake(f"{path} is what this command reads, and would be overwritten: name another {flag}")
        if real.is_relative_to(place):
            raise Mistake(f"{path} lies in {source}, among what this command reads: name another {flag}")


def lock(path: Path, taken: Callable[[str], None]) -> int:
    """Take a lock file, made if it is missing; returns its descriptor. Closing it frees the lock, as the process's end
    does. Raises OSError where the file cannot be written, or its file system has no locks.

    Args:
        taken: called with "PROCESS on HOST" where another process holds it; where it returns, the lock is waited for.
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
