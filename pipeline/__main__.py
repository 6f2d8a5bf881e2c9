"""Prepares the cache of a data set and reports what is in it.

    python -m pipeline                   # CIFAR-10
    python -m pipeline --data holiday    # a folder of pictures, or a CSV file that names some
"""

import preflight

preflight.require_environment("-m pipeline")

import argparse
import io
import math
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import get_args

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ground.files import check_writable, write_whole
from ground.mistake import Mistake
from ground.terminal import printable
from pipeline import folder, near
from pipeline.cifar10 import cache, facts
from pipeline.pictures import Fit
from pipeline.split import UInt8, channel_statistics

SHEET_ROWS, SHEET_COLUMNS = 20, 8
COMPARED = 2000  # pictures of a part with all to train on


def main() -> int:
    """Prepare the cache of a data set, report on it, and return the exit code."""
    description = "Prepare the cache of a data set and report on it. CIFAR10_DIR names the folder of the caches."
    parser = argparse.ArgumentParser(prog="python -m pipeline", description=description)
    parser.add_argument(
        "--data", default="cifar10", help="cifar10; a folder of pictures, one sub-folder a class; or a CSV file"
    )
    parser.add_argument("--size", type=int, default=0, help="side in pixels to which pictures are brought (0: usual)")
    parser.add_argument("--fit", choices=get_args(Fit), default="crop", help="how a picture becomes a square")
    parser.add_argument("--sheet", default="sheet.png", help="where to draw some pictures of each class")
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
    """Pictures of each class and part, their sizes, every file that is left out, with the reason, and a sheet."""
    check_writable(options.sheet)
    if options.size and not 8 <= options.size <= 256:
        raise Mistake(f"--size is {options.size}: it must be 0, or 8 to 256")
    root = Path(os.path.expanduser(options.data))
    if not options.data or not root.exists():
        raise Mistake(f"--data is {options.data}: there is no such folder")
    listing, images = folder.prepare(root, options.size, options.fit)
    counts = Counter((one.label, one.part) for one in listing.pictures)
    width = max(map(len, listing.classes))
    print(" " * width, *(f"{part:>10}" for part in folder.PART_NAMES))
    for label, name in enumerate(listing.classes):
        print(f"{name:<{width}}", *(f"{counts[label, part]:>10,}" for part in folder.PART_NAMES))
    print(f"{len(listing.pictures):,} pictures, {listing.copies:,} of them copies of another one in their class")
    if listing.pictures:
        by_size = sorted((one.width * one.height, f"{one.width} x {one.height}") for one in listing.pictures)
        least, median, most = (by_size[place][1] for place in (0, len(by_size) // 2, -1))
        print(f"{least} to {most} pixels, the median {median}, brought to {images.shape[1]} x {images.shape[2]}")
        write_whole(Path(options.sheet), sheet(listing, images))
        print(f"the first ones of each class: {options.sheet}")
        for part in ("validation", "test"):
            report_near(listing, images, part)
    for line in listing.left_out:
        print(f"left out {line}")
    return 0


def report_near(listing: folder.Listing, images: UInt8, part: str) -> None:
    """One line where pictures of the part, COMPARED of them at most, are nearly the same as some to train on."""
    every = range(len(listing.pictures))
    train, own = every[listing.places("train")], every[listing.places(part)]
    some = own[:: math.ceil(len(own) / COMPARED) or 1]
    if not train or not some:
        return
    likeness, which = near.nearest(images[some], images[train.start : train.stop])
    order = [i for i in (-likeness).argsort() if likeness[i] >= near.ALIKE]
    if order:
        pairs = [(some[i], train[which[i]]) for i in order[: folder.SHOWN]]
        named = "; ".join(" and ".join(printable(listing.pictures[i].path) for i in pair) for pair in pairs)
        print(f"{part}: {len(order):,} of {len(some):,} are nearly the same as a picture to train on: {named}")


def sheet(listing: folder.Listing, images: UInt8) -> bytes:
    """A PNG with the first pictures of each class in a row beside its name."""
    side, names = images.shape[1], 160
    rows = min(SHEET_ROWS, len(listing.classes))
    drawn = Image.new("RGB", (names + SHEET_COLUMNS * side, rows * side), "white")
    pen, font = ImageDraw.Draw(drawn), ImageFont.load_default(14)
    for label in range(rows):
        own = [i for i, one in enumerate(listing.pictures) if one.label == label][:SHEET_COLUMNS]
        pen.text((4, label * side + side // 2), listing.classes[label][:20], "black", font, anchor="lm")
        for column, i in enumerate(own):
            drawn.paste(Image.fromarray(images[i]), (names + column * side, label * side))
    file = io.BytesIO()
    drawn.save(file, "PNG")
    return file.getvalue()


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
