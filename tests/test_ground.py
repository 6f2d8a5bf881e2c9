"""Files written whole, and locks."""

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import Mock

import pytest

from ground.entry import execute
from ground.files import MARK, MARK_BYTES, check_output, check_writable, destination, lock, read_bounded, write_whole
from ground.interrupt import Stopped
from ground.mistake import Mistake
from ground.terminal import printable

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_replaced_whole_and_readable_by_others(tmp_path, durable):
    path = tmp_path / "x"
    write_whole(path, b"a much longer old one", durable=durable)
    write_whole(path, b"n", memoryview(b"ew"), durable=durable)
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["x"]
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    with pytest.raises(FileNotFoundError, match="missing/x"):
        write_whole(tmp_path / "missing" / "x", b"", durable=durable)


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


def test_the_folder_too_is_forced_to_the_disk_after_the_renaming(tmp_path, monkeypatch):
    calls = []
    rename, synchronise = os.replace, os.fsync

    def renamed(*names):
        calls.append("rename")
        rename(*names)

    def synchronised(file):
        calls.append(os.readlink(f"/proc/self/fd/{file}"))
        synchronise(file)

    monkeypatch.setattr(os, "replace", renamed)
    monkeypatch.setattr(os, "fsync", synchronised)
    write_whole(tmp_path / "x", b"new", durable=True)
    assert calls[1:] == ["rename", str(tmp_path)] and Path(calls[0]).parent == tmp_path


def test_temporary_files_have_names_of_their_own_and_follow_no_link(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", renamed := Mock(wraps=os.replace))
    for _ in range(2):
        write_whole(tmp_path / "x", b"new")
    names = [Path(renaming.args[0]).name for renaming in renamed.mock_calls]
    assert len(set(names)) == 2 and all(name.startswith(".x.") for name in names)
    (tmp_path / "mine").write_text("text")
    monkeypatch.setattr("secrets.token_hex", lambda count: "known")
    known = tmp_path / ".x.known.tmp"
    known.symlink_to("mine")
    with pytest.raises(FileExistsError):
        write_whole(tmp_path / "x", b"newer")
    assert (tmp_path / "mine").read_text() == "text" and (tmp_path / "x").read_bytes() == b"new"
    assert known.is_symlink()


def test_what_is_read_is_a_plain_file_of_bounded_size(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    (tmp_path / "link").symlink_to("x")
    assert read_bounded(path, 5) == read_bounded(str(tmp_path / "link"), 5) == b"12345"
    with pytest.raises(Mistake, match="x has more than 4 bytes"):
        read_bounded(path, 4)
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(OSError, match="no plain file") as caught:
            read_bounded(place, 5)
        assert caught.value.filename == str(place)
    with pytest.raises(FileNotFoundError):
        read_bounded(tmp_path / "absent", 5)


def test_a_link_is_followed_where_a_person_named_it(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to("far/x")
    for _ in range(2):  # to what is not there yet, and to what is
        check_writable(tmp_path / "link")
        write_whole(destination(tmp_path / "link"), b"new")
        assert (tmp_path / "far" / "x").read_bytes() == b"new" and (tmp_path / "link").is_symlink()


def test_an_output_takes_no_input_and_nothing_that_is_there_without_the_mark(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    filler = bytes(MARK_BYTES)
    contents = {"ours": b"a " + MARK, "end": filler + MARK + filler[:-40], "empty": b"", "foreign": b"PNG, cifar10"}
    contents |= {"middle": filler + MARK + filler, "holiday/a.png": MARK}
    os.mkdir("holiday")
    for name, content in contents.items():
        Path(name).write_bytes(content)
    os.symlink("foreign", "link")
    os.symlink("holiday", "shortcut")
    for name in ("ours", "end", "empty", "new", "holiday.html"):
        check_output(name, inputs=["", "other", "holiday"])
    check_output("foreign", mark=b"PNG")
    for name, inputs, reason in (
        ("foreign", [], "would be overwritten, and is not of this program: move it, or name another --out"),
        ("middle", [], "is not of this program"),
        ("link", [], "link would be overwritten, and is not of this program"),
        ("ours", ["new", "ours"], "ours is what this command reads, and would be overwritten: name another --out"),
        ("link", [Path("foreign")], "is what this command reads"),
        ("holiday/new.png", ["holiday"], "holiday/new.png lies in holiday, among what this command reads"),
        ("shortcut/new.png", ["./holiday/"], "lies in ./holiday/, among"),
    ):
        with pytest.raises(Mistake, match=reason):
            check_output(name, inputs=inputs)
    with pytest.raises(OSError, match="its folder cannot be written"):
        check_output("missing/x")
    assert {name: Path(name).read_bytes() for name in contents} == contents


def test_what_is_no_plain_file_is_refused_and_left(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    os.symlink("loop", "loop")
    os.symlink("pipe", "link")
    os.mkdir("folder")
    Path("closed").write_bytes(b"old")
    os.chmod("closed", 0o444)
    before = sorted(os.listdir())
    for name, reason in {
        "pipe": "a device or a pipe",
        "link": "a device or a pipe",
        "/dev/null": "a device or a pipe",
        "loop": "Too many levels",
        "folder": "it is a folder",
        "new/": "it is a folder",
        "closed": "it is read-only",
        "closed/x": "Not a directory",
        "~/x": "write the home folder out",
        "missing/x": "its folder cannot be written",
    }.items():
        with pytest.raises((OSError, ValueError), match=reason) as caught:
            check_writable(name)
        assert name in str(caught.value)
    assert sorted(os.listdir()) == before
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode) and Path("closed").read_bytes() == b"old"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_users_file_is_refused_before_the_work():
    """In a folder such as /tmp, where all may write, but none may replace what is another's."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o1777)
        path = Path(folder) / "model.pt"
        path.write_bytes(b"old")
        os.seteuid(65534)
        try:
            with pytest.raises(PermissionError, match="it is read-only: remove it, or name another file"):
                check_writable(path)
            check_writable(path.with_name("own.pt"))
        finally:
            os.seteuid(0)
        assert path.read_bytes() == b"old"


@pytest.mark.parametrize("kind", ["link", "pipe", "device", "folder"])
def test_a_lock_that_is_no_file_is_refused_and_nothing_is_emptied(tmp_path, kind):
    path, mine = tmp_path / "run.lock", tmp_path / "mine"
    mine.write_text("text")
    make = {"link": lambda: path.symlink_to("mine"), "pipe": lambda: os.mkfifo(path), "folder": path.mkdir}
    make.get(kind, lambda: path.symlink_to("/dev/null"))()
    with pytest.raises(FileExistsError, match="remove it") as caught:
        lock(path, print)
    assert caught.value.filename == str(path) and mine.read_text() == "text"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (Mistake("--x is 1:\n  it must be\x1b[2J 2"), "train.py: --x is 1: it must be\\x1b[2J 2"),
        (OSError(errno.ENOSPC, "No space left on device", "a\nb.pt"), "train.py: a b.pt: No space left on device"),
        (OSError(errno.EPIPE, "Broken pipe"), "train.py: stdout: Broken pipe"),
        (MemoryError(), "train.py: out of memory: a narrower network or smaller batches need less; or "),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "train.py: out of memory: a narrower network or "),
        (Stopped(15, "stopped and saved"), "train.py: stopped and saved"),
        (KeyboardInterrupt(), "train.py: interrupted"),
    ],
)
def test_what_a_person_can_mend_is_one_printable_line_and_no_traceback(capsys, monkeypatch, error, line):
    monkeypatch.setattr(os, "dup2", lambda *files: None)
    code = {Stopped: 143, KeyboardInterrupt: 130}.get(type(error), 2)
    with pytest.raises(SystemExit) as end:
        execute(lambda words: exec("raise error", {"error": error}), "train.py")
    said = capsys.readouterr().err
    assert end.value.code == code and said.startswith(line) and said.count("\n") == 1
    assert printable("a\x1b[2J\udcff\u202eb é") == "a\\x1b[2J\\udcff\\u202eb é"


@pytest.mark.parametrize(
    "error", [ValueError("zip() argument 2 is shorter"), OSError(errno.EINVAL, "Invalid argument"), RuntimeError("x")]
)
def test_a_defect_of_ours_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        execute(lambda words: exec("raise error", {"error": error}), "train.py")


@pytest.mark.parametrize("command", ["train.py", "-m bench"])
def test_a_full_stdout_is_told_in_one_line(command):
    """Also by an entry that has only its help to print."""
    with open("/dev/full", "w") as full:
        command = [sys.executable, *command.split(), "--help"]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert "Traceback" not in done.stderr and done.returncode != 0, done.stderr


def test_ctrl_c_during_the_imports_ends_without_a_traceback():
    for moment in range(1, 5):
        command = [sys.executable, "train.py", "smoke"]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as one:
            time.sleep(0.15 * moment)
            one.send_signal(signal.SIGINT)
            said = one.communicate(timeout=60)[1]
        assert "Traceback" not in said and one.returncode == -signal.SIGINT


def test_two_signals_at_once_are_one_wish_and_a_later_one_ends_the_process():
    code = """
import os, signal, sys, time
from ground.interrupt import StopSignals
with StopSignals() as signals:
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGHUP)
    print(signals.received, flush=True)
    if len(sys.argv) > 1:
        time.sleep(1.2)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
time.sleep(1.2)
"""
    for words, ended in (([], 0), (["later"], -signal.SIGTERM)):
        done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (ended, "2\n", 2)


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
