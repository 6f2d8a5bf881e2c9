"""What `--data` means, for every command."""

import re
from typing import Literal

Kind = Literal["cifar10", "generated", "pictures"]
PACKED_FROM = 96  # pixels: from this size on, pictures are kept as JPEGs and cut at random, below it as pixels
GENERATED = re.compile(r"generated(?::([1-9]\d{0,4})/([1-9]\d{0,4}))?")  # at most 99,999: 0.6 GB


def kind_of(name: str) -> Kind:
    """CIFAR-10, generated images, or else a folder or a table: ./generated is a folder."""
    if name == "cifar10":
        return "cifar10"
    return "generated" if GENERATED.fullmatch(name) else "pictures"
