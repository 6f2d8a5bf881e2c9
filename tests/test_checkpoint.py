"""Checkpoints: exact, whole or absent, and refused when damaged, foreign or hostile."""

import errno
import os
import pickle
import zipfile
from dataclasses import replace

import pytest
import torch

from engine import checkpoint
from engine.config import PRESETS
from engine.model import ResNet

CONFIG = replace(PRESETS["smoke"], resolutions=(16, 24))


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = ResNet(width=8, resolution=24)
    path = tmp_path / "model.pt"
    checkpoint.save_model(path, model, CONFIG, {"test_accuracy": 0.5, "test_correct": 5, "precision": "fp32"})
    return path, model


def test_gives_back_weights_config_and_metrics_exactly(saved):
    path, model = saved
    loaded = checkpoint.load(path)
    assert loaded.config == CONFIG
    assert loaded.metrics == {"test_accuracy": 0.5, "test_correct": 5, "precision": "fp32"}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.model.state_dict()[name])
    assert not loaded.model.training
    assert loaded.model.resolution == 24
    images = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    assert checkpoint.load_model(path).predict(images).shape == (2, 10)


def test_loads_with_weights_only_and_holds_no_compile_prefix(saved):
    content = torch.load(saved[0], weights_only=True)
    assert set(content) == {"format", "version", "sha256", "config", "weights", "metrics"}
    assert set(content["weights"]) == set(ResNet(width=8).state_dict())


def test_every_truncation_and_bit_flip_loads_exactly_or_is_refused(saved, tmp_path):
    path, model = saved
    data = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    broken = tmp_path / "broken.pt"
    refused = 0
    for trial in range(60):
        place = int(torch.randint(len(data), (1,), generator=generator))
        bit = 1 << int(torch.randint(8, (1,), generator=generator))
        flipped = data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :]
        broken.write_bytes(data[:place] if trial % 4 == 0 else flipped)
        try:
            loaded = checkpoint.load(broken)
        except ValueError as error:
            assert str(broken) in str(error)
            assert "\n" not in str(error)
            refused += 1
            continue
        assert loaded.config == CONFIG
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, loaded.model.state_dict()[name])
    assert refused > 40


class Payload:
    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


def test_foreign_and_hostile_files_are_refused(saved, tmp_path):
    path, model = saved
    weights = tmp_path / "weights.pt"
    torch.save(model.state_dict(), weights)
    hostile = tmp_path / "hostile.pt"
    torch.save({"format": checkpoint.MODEL, "weights": Payload(tmp_path / "ran")}, hostile)
    plain_pickle = tmp_path / "pickle.pt"
    plain_pickle.write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    packed = tmp_path / "packed.pt"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.namelist():
            target.writestr(member, source.read(member))
    text = tmp_path / "text.pt"
    text.write_text("not a checkpoint")
    resume = tmp_path / "resume.pt"
    checkpoint.write(resume, checkpoint.RESUME, {"config": {}})
    for file in (weights, hostile, plain_pickle, packed, text, resume):
        with pytest.raises(ValueError, match=file.name):
            checkpoint.load(file)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(FileNotFoundError):
        checkpoint.load(tmp_path / "missing.pt")


def test_weights_of_another_width_are_refused(saved, tmp_path):
    path = tmp_path / "other.pt"
    checkpoint.save_model(path, ResNet(width=16), CONFIG, {})
    with pytest.raises(ValueError, match="do not fit a ResNet-18 of width 8"):
        checkpoint.load(path)


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_a_failed_save_leaves_the_old_file_and_no_rubbish(saved, monkeypatch, moment):
    path, model = saved
    old = path.read_bytes()

    def full(*args, **named):
        raise OSError(errno.ENOSPC, "No space left on device")

    if moment == "write":
        monkeypatch.setattr(checkpoint.tempfile, "mkstemp", full)
    else:
        monkeypatch.setattr(checkpoint.os, moment, full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save_model(path, model, CONFIG, {})
    assert path.read_bytes() == old
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
def test_a_full_disk_is_an_oserror(saved, monkeypatch):
    path, model = saved
    old = path.read_bytes()
    real = checkpoint.tempfile.mkstemp

    def on_full_disk(**names):
        handle, name = real(**names)
        os.dup2(os.open("/dev/full", os.O_WRONLY), handle)
        return handle, name

    monkeypatch.setattr(checkpoint.tempfile, "mkstemp", on_full_disk)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save_model(path, model, CONFIG, {})
    assert path.read_bytes() == old
    assert os.listdir(path.parent) == [path.name]


def test_only_plain_values_and_tensors_are_written(tmp_path):
    with pytest.raises(TypeError, match="not PosixPath"):
        checkpoint.write(tmp_path / "a.pt", checkpoint.RESUME, {"path": tmp_path})


def test_the_digest_sees_names_types_shapes_and_bytes():
    base = {"a": torch.arange(6.0), "n": 1}
    others = [
        {"b": torch.arange(6.0), "n": 1},
        {"a": torch.arange(6.0).double(), "n": 1},
        {"a": torch.arange(6.0).view(2, 3), "n": 1},
        {"a": torch.arange(6.0) + 1e-6, "n": 1},
        {"a": torch.arange(6.0), "n": 1.0},
        {"a": torch.arange(6.0), "n": True},
    ]
    digests = {checkpoint.digest(value) for value in [base, *others]}
    assert len(digests) == 7
    assert checkpoint.digest({"n": 1, "a": torch.arange(12.0)[::2] / 2} | {"n": 1}) != checkpoint.digest(base)
    assert checkpoint.digest({"a": torch.arange(12.0)[::2] / 2, "n": 1}) == checkpoint.digest(base)


def test_writability_is_tried_before_the_work(tmp_path):
    checkpoint.check_writable(tmp_path / "model.pt")
    assert os.listdir(tmp_path) == []
    with pytest.raises(IsADirectoryError):
        checkpoint.check_writable(tmp_path)
    with pytest.raises(FileNotFoundError):
        checkpoint.check_writable(tmp_path / "missing" / "model.pt")
