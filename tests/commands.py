"""train.py run in the tests' own process, what it leaves, and files forged."""

import sys

import pytest
import torch

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


def weights(path):
    return checkpoint.load(path).model.state_dict()


def rewritten(path, change):
    """The file at `path` with its content changed by `change` and a digest that fits, as an attacker would."""
    content = torch.load(path, weights_only=True)
    change(content)
    del content["sha256"]
    form, version = content.pop("format"), content.pop("version")
    digest = checkpoint.digest(content)
    torch.save({"format": form, "version": version, "sha256": digest} | content, path)
