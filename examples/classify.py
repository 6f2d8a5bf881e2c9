"""Classify pictures with onnxruntime and Pillow alone: python classify.py model.onnx cat.jpg dog.png"""

import json
import os
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # Pillow would start Ghostscript for an EPS
MOST_PIXELS = 64_000_000


def read(path: str, side: int) -> Image.Image:
    """In RGB, turned as its Exif says, on white where it is transparent; a JPEG's sides are `side` or more."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError("it is no regular file")
    picture: Image.Image = Image.open(path, formats=FORMATS)
    if picture.width * picture.height > MOST_PIXELS:
        raise ValueError(f"{picture.width} x {picture.height} pixels are more than 64 million")
    picture.draft("RGB", (2 * side, 2 * side))  # a large JPEG is decoded at a fraction of its size
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith(("I", "F")):
        picture = Image.fromarray(to_bytes(np.asarray(picture), picture.mode))
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def to_bytes(numbers: np.ndarray, mode: str) -> np.ndarray:
    """Grey of 16 or 32 bits as 0..255."""
    if mode.startswith("I;16"):
        return (numbers // 257).astype(np.uint8)
    finite = numbers[np.isfinite(numbers)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    usual = 1 if mode == "F" else 255
    if low >= 0 and high <= usual:  # else the smallest number becomes 0 and the largest 255
        low, high = 0, usual
    levels = (np.nan_to_num(numbers.astype(np.float64), nan=low).clip(low, high) - low) / max(high - low, 1e-9)
    return (255 * levels).round().astype(np.uint8)


def square(picture: Image.Image, side: int, fit: str) -> Image.Image:
    if fit == "crop":
        return ImageOps.fit(picture, (side, side), Image.Resampling.BILINEAR)
    if fit == "pad":
        return ImageOps.pad(picture, (side, side), Image.Resampling.BILINEAR, color="white")
    return picture.resize((side, side), Image.Resampling.BILINEAR)


def printable(text: str) -> str:
    """With escapes for the characters of a name that would move the cursor, or are no Unicode."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


if len(sys.argv) < 3:
    sys.exit(__doc__)
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
facts = session.get_modelmeta().custom_metadata_map
classes, side = json.loads(facts["classes"]), int(facts["size"])
for path in sys.argv[2:]:
    try:
        picture = square(read(path, side), side, facts["fit"])
    except Exception as error:  # a decoder raises nearly anything on a damaged file
        print(f"{printable(path)} cannot be read: {printable(str(error))}", file=sys.stderr)
        continue
    probabilities = session.run(["probabilities"], {"images": np.asarray(picture)[None]})[0][0]
    best = probabilities.argsort()[:-4:-1]
    print(printable(path), *(f"{classes[i]} {probabilities[i]:.2%}" for i in best), sep="  ")
