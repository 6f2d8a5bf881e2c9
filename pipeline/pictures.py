"""A picture file becomes S x S pixels: the one place where files of people's own are decoded.

    pixels = decode(Path("holiday/beach.jpg"), size=64, fit="crop")

From PACKED_FROM pixels on it is first made a JPEG with some room around the square, of which training cuts random
regions (pipeline.packed).

Pillow alone reads them. Of the decoders at hand it is the one that neither crashes on a damaged file (torchvision's
does, on a PNG with a wrong checksum) nor stops a whole pipeline (DALI's does), and it tells the size before it
decodes. A large JPEG is decoded at a fraction of its size: 80 to 108 photographs of 12 megapixels a second on one
core of an AMD EPYC.
"""

import importlib.util
import io
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

from ground.data import PACKED_FROM
from ground.files import open_regular
from ground.mistake import Mistake
from pipeline.split import UInt8

Fit = Literal["crop", "squash", "pad"]

MOST_PIXELS = 64_000_000  # 192 MB as RGB
MOST_BYTES = 1 << 30  # of a file
SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .apng .webp .gif .bmp .dib .tif .tiff .ppm .pgm .pbm .pnm "
    ".avif .avifs .heic .heif .heics .hif".split()
)
HEADS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF")  # of files without such a suffix
BRANDS = dict.fromkeys((b"avif", b"avis"), "AVIF")
BRANDS |= dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"), "HEIC")
SPARE = 1.25  # shorter side of a packed picture, in those of its square; see docs/LOG.md
QUALITY = 92  # of its JPEG, whose colours are not thinned out
LONGEST = 3  # its longer side at most, in shorter ones
PNG_HEAD = b"\x89PNG\r\n\x1a\n"
NEEDED_CHUNKS = (b"tRNS", b"eXIf")  # of those of a PNG without which it can be decoded


class Decoded(NamedTuple):
    """A picture that could be read."""

    body: bytes  # what is kept of it: (size, size, 3) RGB, or a JPEG
    shape: tuple[int, int]  # height and width of that
    width: int  # in pixels, of the file; and the height
    height: int
    notes: tuple[str, ...]  # what is unusual


@cache
def formats() -> tuple[str, ...]:
    """Those that are read. Pictures alone: Pillow would start Ghostscript for an EPS."""
    known = ["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"]
    if features.check("avif"):
        known.append("AVIF")
    if importlib.util.find_spec("pillow_heif"):
        importlib.import_module("pillow_heif").register_heif_opener()
        known.append("HEIF")
    return tuple(known)


def decode(path: Path, size: int, fit: Fit) -> UInt8:
    """The picture of a file as (size, size, 3) uint8 RGB. Raises as `decode_bytes` does, or OSError."""
    return as_trained(read_bytes(path), size, fit)


def as_trained(data: bytes, size: int, fit: Fit) -> UInt8:
    """The content of a picture file as training had it: (size, size, 3) uint8 RGB. Raises as `decode_bytes`."""
    body = decode_bytes(data, size, fit).body
    return square(body, size) if size >= PACKED_FROM else np.frombuffer(body, np.uint8).reshape(size, size, 3)


def square(jpeg: bytes, side: int) -> UInt8:
    """The middle of a packed picture as (side, side, 3) uint8 RGB."""
    with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as picture:
        picture.draft("RGB", (2 * side, 2 * side))
        return fitted(picture, side, "crop")


@contextmanager
def open_bounded(path: str | Path) -> Iterator[BinaryIO]:
    """As `open_regular`, which raises OSError; Mistake where the file has more than MOST_BYTES."""
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > MOST_BYTES:
            raise Mistake(f"more than {MOST_BYTES / 1e9:.1f} GB")
        yield file


def read_bytes(path: Path) -> bytes:
    """All of a file. Raises as `open_bounded` does."""
    with open_bounded(path) as file:
        return file.read(MOST_BYTES)


def decode_bytes(data: bytes, size: int, fit: Fit) -> Decoded:
    """A picture file's first frame, turned as its Exif says, on white where it is transparent.

    Raises Mistake where its format is not read here or it has more than MOST_PIXELS, and nearly anything
    where a decoder meets a damaged file.
    """
    try:
        try:
            return _decode_bytes(data, size, fit)
        except (ValueError, SyntaxError, UnidentifiedImageError) as error:
            if isinstance(error, Mistake) or not (needed := _needed_chunks(data)):
                raise
            return _decode_bytes(needed, size, fit)
    except UnidentifiedImageError:
        raise Mistake(_unread(data)) from None


def _decode_bytes(data: bytes, size: int, fit: Fit) -> Decoded:
    notes = []
    with _opened(io.BytesIO(data)) as image:
        width, height = image.size
        image.draft("RGB", (2 * size, 2 * size))
        picture = ImageOps.exif_transpose(image)
        if picture.mode.startswith(("I", "F")):
            levels, note = eight_bits(np.asarray(picture))
            picture, notes = Image.fromarray(levels), [note] if note else []
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        picture = picture.convert("RGB")
        kept = shrunk(picture, size, fit) if size >= PACKED_FROM else Image.fromarray(fitted(picture, size, fit))
    pixels = np.asarray(kept)
    if (pixels == pixels[0, 0]).all():
        notes.append("of one colour all over")
    body = kept.tobytes()
    if size >= PACKED_FROM:
        file = io.BytesIO()
        kept.save(file, "JPEG", quality=QUALITY, subsampling=0)
        body = file.getvalue()
    return Decoded(body, (kept.height, kept.width), width, height, tuple(notes))


def dimensions(path: Path) -> tuple[int, int]:
    """Width and height in pixels, as stored, from the file's header alone."""
    with open_regular(path) as file, _opened(file) as image:
        return image.size


@contextmanager
def _opened(file: BinaryIO) -> Iterator[Image.Image]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its size is checked before anything is decoded
        with Image.open(file, formats=formats()) as image:
            width, height = image.size
            if width * height > MOST_PIXELS:
                raise Mistake(f"{width:,} x {height:,} pixels are more than {MOST_PIXELS / 1e6:.0f} million")
            yield image


def eight_bits(numbers: np.ndarray) -> tuple[UInt8, str]:
    """Pixels (H, W) of 16 or 32 bits, whole or float, as 0..255, and what was done if it is unusual.

    0..65535 is usual for whole numbers. What is neither that nor 0..1 is brought there by its range.
    """
    known = numbers[np.isfinite(numbers)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
    whole = numbers.dtype.kind in "iu" or bool((known == np.floor(known)).all() and high > 1)
    if whole and low >= 0 and high <= 255:
        return np.nan_to_num(numbers).astype(np.uint8), f"{numbers.dtype.name} numbers of 0 to 255, taken as they are"
    if whole and low >= 0 and high <= 65535:
        return (np.nan_to_num(numbers) // 257).astype(np.uint8), "" if numbers.dtype.kind in "iu" else "float numbers"
    if not whole and low >= -0.05 and high <= 1.05:  # what resampling leaves beyond 0 and 1
        low, high, note = 0.0, 1.0, "float numbers of 0 to 1, brought to 0..255"
    else:
        note = f"{numbers.dtype.name} numbers, each picture's least and largest brought to 0 and 255"
    scaled = (np.nan_to_num(numbers.astype(np.float64), nan=low) - low) / max(high - low, 1e-300)
    return np.rint(scaled.clip(0, 1) * 255).astype(np.uint8), note


def fitted(picture: Image.Image, size: int, fit: Fit) -> UInt8:
    """A picture in RGB as (size, size, 3) uint8, bilinear with antialiasing.

    "crop" keeps the middle of the longer side, "squash" all of it, out of proportion, "pad" all of it in
    proportion, on white, one pixel high or wide at least.
    """
    width, height = picture.size
    if fit == "crop":
        squared = ImageOps.fit(picture, (size, size), Image.Resampling.BILINEAR)
    elif fit == "squash":
        squared = picture.resize((size, size), Image.Resampling.BILINEAR)
    else:
        if round(min(width, height) / max(width, height) * size) == 0:
            thin = (size, 1) if width > height else (1, size)
            picture = picture.resize(thin, Image.Resampling.BILINEAR)
        squared = ImageOps.pad(picture, (size, size), Image.Resampling.BILINEAR, color="white")
    return np.asarray(squared)


def shrunk(picture: Image.Image, size: int, fit: Fit) -> Image.Image:
    """A picture in RGB whose middle will be a square of `size`, with room around it; never enlarged.

    With "crop" in proportion, but for what is beyond LONGEST; else a square, as `fitted` makes it.
    """
    side = round(SPARE * size)
    if fit != "crop":
        return Image.fromarray(fitted(picture, min(side, max(picture.size)), fit))
    shorter = min(picture.size)
    width, height = (min(length, LONGEST * shorter) for length in picture.size)
    left, top, scale = (picture.width - width) / 2, (picture.height - height) / 2, min(1.0, side / shorter)
    box = left, top, left + width, top + height
    return picture.resize((round(width * scale), round(height * scale)), Image.Resampling.BILINEAR, box)


def looks_like_a_picture(path: str) -> bool:
    """Whether a file's suffix, or else its first bytes, are those of a picture."""
    if os.path.splitext(path)[1].lower() in SUFFIXES:
        return True
    try:
        with open_regular(path) as file:
            head = file.read(16)
    except OSError:
        return False
    return (head.startswith(HEADS) and (head[:4] != b"RIFF" or head[8:12] == b"WEBP")) or _brand(head) != ""


def _brand(head: bytes) -> str:
    """"HEIC" or "AVIF" of files that begin so, else ""."""
    return BRANDS.get(head[8:12], "") if head[4:8] == b"ftyp" else ""


def _unread(data: bytes) -> str:
    """Why Pillow cannot tell what a file is."""
    kind = _brand(data[:16])
    if kind == "HEIC" and "HEIF" not in formats():
        return "HEIC is not read without the package pillow-heif: install it, or convert the pictures to JPEG"
    if kind == "AVIF" and "AVIF" not in formats():
        return "AVIF is not read by this Pillow: convert the pictures to JPEG"
    if kind:
        return f"{kind} that cannot be read: convert the pictures to JPEG"
    return "cannot identify it as a picture" if data else "empty file"


def _needed_chunks(data: bytes) -> bytes:
    """A PNG without what stands beside its pixels: Pillow refuses large texts and wrong checksums there."""
    if not data.startswith(PNG_HEAD):
        return b""
    kept, start = [PNG_HEAD], len(PNG_HEAD)
    while start + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, start)
        name, end = data[start + 4 : start + 8], start + 12 + length
        sound = zlib.crc32(data[start + 4 : end - 4]) == int.from_bytes(data[end - 4 : end])
        if name[:1].isupper() or (name in NEEDED_CHUNKS and sound):
            kept.append(data[start:end])
        start = end
    return b"".join(kept)


def files_in(folder: Path) -> Iterator[Path]:
    """The files of a folder and of those in it, in the order of their names; hidden ones apart."""
    for parent, inner, names in os.walk(folder):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        yield from (Path(parent, name) for name in sorted(names) if not name.startswith("."))


def reason(error: Exception, path: str | Path) -> str:
    """Why a file could not be used, in a line without its name; before a colon, the kind of reason."""
    if isinstance(error, Mistake):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    return f"damaged: {' '.join(str(error).split()).removesuffix(f' {str(path)!r}') or type(error).__name__}"
