"""Classify pictures with onnxruntime and Pillow alone: python classify.py model.onnx cat.jpg dog.png"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # Pillow would start Ghostscript for an EPS
MOST_PIXELS = 64_000_000


def opened(path: str, least: int) -> Image.Image:
    """The picture, turned as its Exif says, on white where it is transparent; its shorter side has `least` pixels."""
    if not Path(path).is_file():
        raise ValueError("there is no such file" if not Path(path).exists() else "it is no regular file")
    picture: Image.Image = Image.open(path, formats=FORMATS)
    if picture.width * picture.height > MOST_PIXELS:
        raise ValueError(f"{picture.width} x {picture.height} pixels are more than {MOST_PIXELS // 10**6} million")
    picture.draft("RGB", (2 * least, 2 * least))  # a large JPEG is decoded at a fraction of its size
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith(("I", "F")):
        picture = Image.fromarray(levels(np.asarray(picture), picture.mode))
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def levels(values: np.ndarray, mode: str) -> np.ndarray:
    """Pixels of more than 8 bits as 0..255: 16 bits by 65,535, floats of 0..1 by 1, others by the range they have.

    Whole numbers of 0..255 stay.
    """
    if mode.startswith("I;16"):
        return (values // 257).astype(np.uint8)
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= (1 if mode == "F" else 255):
        return (values * (255 if mode == "F" else 1)).astype(np.uint8)
    return ((values.astype(np.float64) - low) * (255 / max(high - low, 1e-9))).astype(np.uint8)


def squared(picture: Image.Image, side: int, fit: str) -> Image.Image:
    if fit == "crop":
        return ImageOps.fit(picture, (side, side), Image.Resampling.BILINEAR)
    if fit == "pad":
        return ImageOps.pad(picture, (side, side), Image.Resampling.BILINEAR, color="white")
    return picture.resize((side, side), Image.Resampling.BILINEAR)


def printable(text: str) -> str:
    """Without characters of a name that would move the cursor or are no Unicode."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


if len(sys.argv) < 3:
    sys.exit(__doc__)
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
facts = session.get_modelmeta().custom_metadata_map
classes, side = json.loads(facts["classes"]), int(facts["size"])
for path in sys.argv[2:]:
    name = printable(path)
    try:
        picture = squared(opened(path, side), side, facts["fit"])
    except Exception as error:  # a decoder raises nearly anything on a damaged file
        print(f"{name} cannot be read: {printable(str(error))}", file=sys.stderr)
        continue
    probabilities = session.run(["probabilities"], {"images": np.asarray(picture)[None]})[0][0]
    best = probabilities.argsort()[:-4:-1]
    print(name, *(f"{classes[i]} {probabilities[i]:.2%}" for i in best), sep="  ")
