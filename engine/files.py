"""Small files written whole: a reader, or a crash, meets the old one or the new one."""

import os
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write under a temporary name in the same folder, then rename.

    Unlike a checkpoint, the bytes are not forced to the disk: a power cut may cost the newest ones.

    Raises:
        OSError: the folder cannot be written or the disk is full; a file that was there before is intact.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
