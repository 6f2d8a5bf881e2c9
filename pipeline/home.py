"""Where caches are kept, of CIFAR-10 and of people's own pictures.

It is the folder `CIFAR10_DIR`, else `cifar10-resnet18` in the XDG cache folder. A `CIFAR10_DIR` that cannot be written
is read, and what is made goes to the XDG cache folder.
"""

import os
from pathlib import Path

from ground.mistake import Mistake

FOLDER_NAME = "cifar10-resnet18"


def cache_folders() -> list[Path]:
    """Where a cache or an offline copy may be, in the order of search; the last one is written to.

    Raises:
        Mistake: CIFAR10_DIR names a file.
    """
    home = os.environ.get("XDG_CACHE_HOME", "")
    xdg = (Path(home) if Path(home).is_absolute() else Path.home() / ".cache") / FOLDER_NAME
    named = os.environ.get("CIFAR10_DIR")
    if not named:
        return [xdg]
    folder = Path(os.path.abspath(os.path.expanduser(named)))
    if str(named).startswith("~") and os.path.expanduser(named) == named:
        raise Mistake(f"CIFAR10_DIR is {named}: there is no such user; write the folder out")
    if folder.exists() and not folder.is_dir():
        raise Mistake(f"CIFAR10_DIR: {folder} is not a folder; name the folder that holds the file")
    if folder.is_dir() and not os.access(folder, os.W_OK):
        return [folder, xdg]
    return [folder]
