"""Files written whole, and locks."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from ground.files import lock, write_whole

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_replaced_whole_and_readable_by_others(tmp_path, durable):
    path = tmp_path / "x"
    write_whole(path, b"a much longer old one", durable=durable)
    write_whole(path, b"n", memoryview(b"ew"), durable=durable)
    assert path.read_bytes() == b"new"
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_names_it(tmp_path, monkeypatch, moment):
    path = tmp_path / "x"
    path.write_bytes(b"old")

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if moment == "write":
        resource.setrlimit(resource.RLIMIT_FSIZE, (2, before[1]))
    else:
        monkeypatch.setattr(os, moment, full)
    try:
        with pytest.raises(OSError) as caught:
            write_whole(path, b"new", durable=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing/x"):
        write_whole(tmp_path / "missing" / "x", b"")


def test_a_lock_has_one_holder_who_is_named_and_frees_it_however_he_ends(tmp_path):
    path = tmp_path / "x.lock"
    holding = "import sys, time; from ground.files import lock; lock(sys.argv[1], print); print('held', flush=True)"
    command = [sys.executable, "-c", f"{holding}; time.sleep(60)", str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        told = []

        def taken(holder):
            told.append(holder)
            if len(told) == 1:
                raise ValueError("not now")
            other.kill()

        with pytest.raises(ValueError, match="not now"):
            lock(path, taken)
        os.close(lock(path, taken))  # waits until the other is gone
    assert told[0] == told[1]
    assert told[0].startswith(f"{other.pid} on ")
