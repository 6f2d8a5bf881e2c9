"""Prepares the cache of a data set and reports what is in it.

    python -m pipeline                   # CIFAR-10
    python -m pipeline --data holiday    # a folder of pictures, or a CSV file that names some
"""

import preflight

preflight.require_environment("-m pipeline")

import argparse
import io
import math
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from ground.entry import execute
from ground.files import MARK, check_output, destination, write_whole
from ground.mistake import Mistake
from ground.terminal import printable
from pipeline import folder
from pipeline.cifar10 import cache, facts
from pipeline.dataset import DataSet, open_dataset
from pipeline.labels import PARTS
from pipeline.layout import Layout
from pipeline.listing import Listing, by_kind
from pipeline.packed import tiles
from pipeline.pictures import Fit
from pipeline.split import Images, channel_statistics

SHEET_ROWS, SHEET_COLUMNS, SHEET_TILE = 20, 8, 96
MOST_NAMED = 10_000  # files that are left out, hidden ones apart
COMPARED, SHOWN = 2000, 3  # pictures of a part with all to train on, and near copies that are named
ALIKE = 0.97  # correlation from which on two pictures are likely one
"""Measured on five public sets: of 61 validation and test pictures of two of them that reach it all but
one are copies, by eye; in the other three the highest is 0.960."""
SIDE, BLOCK = 16, 4096  # pixels that are compared, and pictures at a time


def main(arguments: Sequence[str]) -> None:
    """Prepare the cache of a data set and report on it."""
    description = "Prepare the cache of a data set and report on it. CIFAR10_DIR names the folder of the caches."
    parser = argparse.ArgumentParser(prog="python -m pipeline", description=description)
    parser.add_argument("--data", default="cifar10", help="as for train.py: cifar10, a folder, a table, generated")
    parser.add_argument("--size", type=int, default=0, help="side in pixels to which pictures are brought (0: usual)")
    parser.add_argument("--fit", choices=get_args(Fit), default="crop", help="how a picture becomes a square")
    parser.add_argument("--layout", choices=get_args(Layout), default="auto", help="what the folders in a folder are")
    parser.add_argument("--sheet", default="sheet.png", help="where to draw some pictures of each class")
    options = parser.parse_args(arguments)
    if options.size and not 8 <= options.size <= 512:
        raise Mistake(f"--size is {options.size}: it must be 0, or 8 to 512")
    data = open_dataset(options.data, options.size, options.fit, options.layout)
    if options.data == "cifar10":
        report_cifar10_files()
    if data.root:
        report_folder(data.root, options)
    else:
        report_splits(data)


def report_folder(root: Path, options: argparse.Namespace) -> None:
    """Pictures of each class and part, their sizes, every file that is left out, and a sheet."""
    check_output(options.sheet, "--sheet", [options.data])
    listing, images = folder.prepare(root, options.size, options.fit, options.layout)
    counts = Counter((picture.label, picture.part) for picture in listing.pictures)
    width = max(map(len, listing.classes))
    print(" " * width, *(f"{part:>10}" for part in PARTS))
    for label, name in enumerate(listing.classes):
        print(f"{name:<{width}}", *(f"{counts[label, part]:>10,}" for part in PARTS))
    copies = len(listing.pictures) - len({(picture.label, picture.digest) for picture in listing.pictures})
    print(f"{len(listing.pictures):,} pictures, {copies:,} of them copies of another one in their class")
    if listing.pictures:
        by_size = sorted((one.width * one.height, f"{one.width} x {one.height}") for one in listing.pictures)
        least, median, most = (by_size[i][1] for i in (0, len(by_size) // 2, -1))
        print(f"{least} to {most} pixels, the median {median}, brought to {images.shape[1]} x {images.shape[2]}")
        write_whole(destination(options.sheet), sheet(listing, images))
        print(f"the first ones of each class: {options.sheet}")
        for part in ("validation", "test"):
            report_near(listing, images, part)
    seen = [file for file in listing.left_out if file.kind != "hidden"]
    for file in seen[:MOST_NAMED]:
        print(f"left out {file}")
    if len(seen) > MOST_NAMED:
        print(f"left out {len(seen) - MOST_NAMED:,} more: {by_kind(seen[MOST_NAMED:])}")


def report_near(listing: Listing, images: Images, part: str) -> None:
    """One line where pictures of the part, of COMPARED at most, are nearly the same as some to train on.

    Saved again, a little turned, or the next frame of a film: then the accuracy is too good. Copies byte
    for byte are kept together (pipeline.folder); these are only told of.
    """
    every = np.arange(len(listing.pictures))
    train, rows = every[listing.part_slice("train")], every[listing.part_slice(part)]
    rows = rows[:: math.ceil(len(rows) / COMPARED) or 1]
    if not len(train) or not len(rows):
        return
    likeness, which = nearest(images[rows], images[train])
    order = [i for i in (-likeness).argsort() if likeness[i] >= ALIKE]
    if order:
        pairs = [(rows[i], train[which[i]]) for i in order[:SHOWN]]
        named = "; ".join(" and ".join(printable(listing.pictures[i].name) for i in pair) for pair in pairs)
        print(f"{part}: {len(order):,} of {len(rows):,} are nearly the same as a picture to train on: {named}")


def nearest(images: Images, others: Images) -> tuple[np.ndarray, np.ndarray]:
    """For each of the images (N, S, S, 3) the most alike of the others (M, S, S, 3).

    (N,) float32: correlation of the two at SIDE x SIDE pixels, -1 to 1; (N,) int64: which of the others.
    """
    rows = _standardised(images)
    likeness, which = np.full(len(images), -1, np.float32), np.zeros(len(images), np.int64)
    for start in range(0, len(others), BLOCK):
        correlations = rows @ _standardised(others[start : start + BLOCK]).T  # (N, BLOCK)
        best = correlations.argmax(1)
        highest = correlations[np.arange(len(rows)), best]
        which = np.where(highest > likeness, start + best, which)
        likeness = np.maximum(highest, likeness)
    return likeness, which


def _standardised(images: Images) -> np.ndarray:
    """(N, 3 SIDE^2) float32, each of length 1 and of mean 0 in each channel; of one colour: zeros."""
    small = [Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BOX) for image in np.asarray(images)]
    pixels = np.stack([np.asarray(image) for image in small]).astype(np.float32)
    rows = (pixels - pixels.mean((1, 2), keepdims=True)).reshape(len(images), -1)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


def sheet(listing: Listing, images: Images) -> bytes:
    """A PNG with the first pictures of each class in a row beside its name."""
    side, names = min(images.shape[1], SHEET_TILE), 160
    rows = min(SHEET_ROWS, len(listing.classes))
    drawn = Image.new("RGB", (names + SHEET_COLUMNS * side, rows * side), "white")
    pen, font = ImageDraw.Draw(drawn), ImageFont.load_default(14)
    for label in range(rows):
        every = [i for i, picture in enumerate(listing.pictures) if picture.label == label]
        first = sorted(every, key=lambda i: listing.pictures[i].name)[:SHEET_COLUMNS]
        pen.text((4, label * side + side // 2), listing.classes[label][:20], "black", font, anchor="lm")
        for column, image in enumerate(tiles(images[np.array(first)], side)):
            drawn.paste(Image.fromarray(image), (names + column * side, label * side))
    file, mark = io.BytesIO(), PngImagePlugin.PngInfo()
    mark.add_text("Software", MARK.decode())
    drawn.save(file, "PNG", pnginfo=mark)
    return file.getvalue()


def report_cifar10_files() -> None:
    """The source, and each array with its SHA-256."""
    start = time.perf_counter()
    path, source = cache.prepare()
    print(f"source     {source}")
    print(f"cache      {path}, {path.stat().st_size / 1e6:.1f} MB, ready in {time.perf_counter() - start:.1f} s")
    for name, shape in facts.SHAPES.items():
        megabytes, digest = math.prod(shape) / 1e6, facts.SHA256[name][:16]
        print(f"{name:<14} {shape!s:<20} uint8 {megabytes:7.2f} MB  SHA-256 {digest}... ok")


def report_splits(data: DataSet) -> None:
    """The statistics and the classes."""
    train, test = data.load("train"), data.load("test")
    mean, deviation = channel_statistics(train.images)
    print("mean       " + " ".join(f"{value:.8f}" for value in mean) + "  (training set, red green blue, of 1.0)")
    print("deviation  " + " ".join(f"{value:.8f}" for value in deviation))
    counts = (np.bincount(split.labels, minlength=len(split.classes)) for split in (train, test))
    classes = ", ".join(f"{name} {n}+{m}" for name, n, m in zip(train.classes, *counts, strict=True))
    print(f"classes    {classes}  (train+test)")


if __name__ == "__main__":
    execute(main, "python -m pipeline")
