"""Prepares the cache of a data set and reports what is in it.

    python -m pipeline                   # CIFAR-10
    python -m pipeline --data holiday    # a folder of pictures
"""

import preflight

preflight.require_environment("-m pipeline")

import argparse
import math
import sys
import time
from collections import Counter
from pathlib import Path
from typing import get_args

import numpy as np

from pipeline import folder
from pipeline.cifar10 import cache, facts
from pipeline.pictures import Fit
from pipeline.split import channel_statistics


def main() -> int:
    """Prepare the cache of a data set, report on it, and return the exit code."""
    description = "Prepare the cache of a data set and report on it. CIFAR10_DIR names the folder of the caches."
    parser = argparse.ArgumentParser(prog="python -m pipeline", description=description)
    parser.add_argument("--data", default="cifar10", help="cifar10, or a folder of pictures, one sub-folder a class")
    parser.add_argument("--size", type=int, default=64, help="side in pixels to which pictures of a folder are brought")
    parser.add_argument("--fit", choices=get_args(Fit), default="crop", help="how a picture becomes a square")
    options = parser.parse_args()
    try:
        return report_cifar10() if options.data == "cifar10" else report_folder(options)
    except (ValueError, OSError) as error:
        print(f"pipeline: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("pipeline: interrupted", file=sys.stderr)
        return 130


def report_folder(options: argparse.Namespace) -> int:
    """Pictures of each class and part, and every file that is left out, with the reason."""
    root = Path(options.data).expanduser()
    if not root.is_dir():
        raise ValueError(f"--data is {options.data}: there is no such folder")
    listing, _ = folder.prepare(root, options.size, options.fit)
    counts = Counter((one.label, one.part) for one in listing.pictures)
    width = max(map(len, listing.classes))
    print(" " * width, *(f"{part:>10}" for part in folder.PART_NAMES))
    for label, name in enumerate(listing.classes):
        print(f"{name:<{width}}", *(f"{counts[label, part]:>10,}" for part in folder.PART_NAMES))
    print(f"{len(listing.pictures):,} pictures, {listing.copies:,} of them copies of another one in their class")
    for line in listing.left_out:
        print(f"left out {line}")
    return 0


def report_cifar10() -> int:
    """The source, each array with its SHA-256, the statistics and the classes."""
    start = time.perf_counter()
    path, source = cache.prepare()
    seconds = time.perf_counter() - start
    train, test = cache.load("train"), cache.load("test")
    print(f"source     {source}")
    print(f"cache      {path}, {path.stat().st_size / 1e6:.1f} MB, ready in {seconds:.1f} s")
    for name, shape in facts.SHAPES.items():
        megabytes, digest = math.prod(shape) / 1e6, facts.SHA256[name][:16]
        print(f"{name:<14} {shape!s:<20} uint8 {megabytes:7.2f} MB  SHA-256 {digest}... ok")
    mean, deviation = channel_statistics(train.images)
    print("mean       " + " ".join(f"{value:.8f}" for value in mean) + "  (training set, red green blue, of 1.0)")
    print("deviation  " + " ".join(f"{value:.8f}" for value in deviation))
    counts = (np.bincount(split.labels, minlength=len(split.classes)) for split in (train, test))
    classes = ", ".join(f"{name} {n}+{m}" for name, n, m in zip(train.classes, *counts, strict=True))
    print(f"classes    {classes}  (train+test)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
