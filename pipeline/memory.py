"""Arrays of pixels that may be larger than what memory has room for."""

import os
import tempfile

import numpy as np

from pipeline.home import cache_folders
from pipeline.split import UInt8

SHARE = 4  # of the machine's memory, one array may take one part of so many


def fits(count: int) -> bool:
    """Whether an array of so many bytes is to be kept in memory."""
    return count <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // SHARE


def zeros(*shape: int) -> UInt8:
    """Zeros, uint8: in memory or, where they do not fit, in a file without a name in the folder of the caches.

    The system then keeps in memory what it has room for. The file is gone with the array.

    Raises:
        OSError: the disk has no room for it.
    """
    count = int(np.prod(shape, dtype=np.int64))
    if fits(count):
        return np.zeros(shape, np.uint8)
    home = cache_folders()[-1]
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=home) as file:
        os.posix_fallocate(file.fileno(), 0, count)  # a full disk is an error here, and not a crash later
        return np.memmap(file, np.uint8, "r+", shape=shape)
