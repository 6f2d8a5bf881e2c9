"""train.py run in the tests' own process, and what it leaves."""

import sys

import pytest

import train
from engine import checkpoint
from ground.entry import execute


def call(capsys, *arguments):
    """Exit code, stdout, stderr of one command line in this process."""
    sys.argv = ["train.py", *arguments]
    with pytest.raises(SystemExit) as end:
        execute(train.main, "train.py")
    captured = capsys.readouterr()
    return end.value.code, captured.out, captured.err


def refused(capsys, *arguments):
    """The one line that the command line ends with, and exit code 2."""
    code, _, err = call(capsys, *arguments)
    assert (code, err.count("\n")) == (2, 1), err
    return err


def weights(path):
    return checkpoint.load(path).model.state_dict()
