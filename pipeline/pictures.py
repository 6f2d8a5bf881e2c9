"""A picture file becomes S x S pixels: the one place where files of people's own are decoded.

    pixels = decode(Path("holiday/beach.jpg"), size=64, fit="crop")

Pillow alone reads them. Of the decoders at hand it is the one that neither crashes on a damaged file (torchvision's
does, on a PNG with a wrong checksum) nor stops a whole pipeline (DALI's does), and it tells the size before it decodes.
A large JPEG is decoded at a fraction of its size: 80 to 108 photographs of 12 megapixels a second on one CPU core.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from ground.mistake import Mistake
from pipeline.split import UInt8

Fit = Literal["crop", "squash", "pad"]

# Pictures alone: Pillow would start Ghostscript for an EPS.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MOST_PIXELS = 64_000_000  # 192 MB as RGB


def decode(path: Path, size: int, fit: Fit) -> UInt8:
    """The picture as (size, size, 3) uint8 RGB. Raises as `open_picture` does."""
    return fitted(open_picture(path, size), size, fit)


def open_picture(path: Path, least: int) -> Image.Image:
    """A picture in RGB: its first frame, turned as its Exif says, on white where it is transparent.

    Args:
        least: pixels that the shorter side must keep; a JPEG may come smaller than its file says, down to twice that.

    Raises:
        ValueError: it is no regular file, or has more than MOST_PIXELS.
        OSError, and nearly anything else that a decoder raises on a damaged file: it cannot be read.
    """
    with _opened(path) as image:
        image.draft("RGB", (2 * least, 2 * least))
        turned = ImageOps.exif_transpose(image)
        if turned.mode.startswith("I"):  # 16 bits a pixel
            turned = Image.fromarray((np.asarray(turned).clip(0, 65535) // 257).astype(np.uint8))
        if turned.has_transparency_data:
            turned = turned.convert("RGBA")
            turned = Image.alpha_composite(Image.new("RGBA", turned.size, "white"), turned)
        return turned.convert("RGB")


def dimensions(path: Path) -> tuple[int, int]:
    """Width and height in pixels, as stored, from the file's header alone. Raises as `open_picture` does."""
    with _opened(path) as image:
        return image.size


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    if not path.is_file():
        path.stat()  # says so where there is none
        raise Mistake("not a regular file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its size is checked before anything is decoded
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MOST_PIXELS:
                raise Mistake(f"{width:,} x {height:,} pixels are more than {MOST_PIXELS / 1e6:.0f} million")
            yield image


def fitted(picture: Image.Image, size: int, fit: Fit) -> UInt8:
    """A picture in RGB as (size, size, 3) uint8, bilinear with antialiasing.

    Args:
        fit: "crop" keeps the middle of the longer side, "squash" all of it, out of proportion, "pad" all of it in
            proportion, on white.
    """
    if fit == "crop":
        squared = ImageOps.fit(picture, (size, size), Image.Resampling.BILINEAR)
    elif fit == "pad":
        squared = ImageOps.pad(picture, (size, size), Image.Resampling.BILINEAR, color="white")
    else:
        squared = picture.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(squared)


def files_in(folder: Path) -> Iterator[Path]:
    """The files of a folder and of those in it, in the order of their names; hidden ones apart."""
    for place, inner, names in os.walk(folder):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        yield from (Path(place, name) for name in sorted(names) if not name.startswith("."))


def reason(error: Exception, path: Path) -> str:
    """Why a file could not be read, in one line without its name."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
    return text.removesuffix(f" {str(path)!r}")
