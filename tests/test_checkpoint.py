"""Checkpoints: exact, whole or absent, and refused when damaged, foreign or hostile."""

import errno
import os
import pickle
import resource
import time
import zipfile
from dataclasses import replace

import pytest
import torch

from engine import checkpoint
from engine.config import PRESETS
from engine.model import ResNet
from ground.files import check_writable

CONFIG = replace(PRESETS["smoke"], resolutions=(16, 24))


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = ResNet("abcdefghij", width=8, resolution=24)
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
    assert loaded.model.classes == tuple("abcdefghij")
    images = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    assert checkpoint.load_model(path).predict(images).shape == (2, 10)


def test_the_file_has_the_users_usual_mode(saved):
    plain = saved[0].with_name("plain")
    plain.touch()
    assert saved[0].stat().st_mode == plain.stat().st_mode


def test_loads_with_weights_only_and_holds_no_compile_prefix(saved):
    content = torch.load(saved[0], weights_only=True)
    assert set(content) == {"format", "version", "sha256", "config", "classes", "weights", "metrics"}
    assert set(content["weights"]) == set(ResNet("abcdefghij", width=8).state_dict())


@pytest.mark.parametrize("trials", [60, pytest.param(500, marks=pytest.mark.slow)])
def test_every_truncation_and_bit_flip_loads_exactly_or_is_refused(saved, tmp_path, trials):
    path, model = saved
    data = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    broken = tmp_path / "broken.pt"
    refused = 0
    for trial in range(trials):
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
    print(f"{trials} damaged files: {refused} refused, {trials - refused} whole in all that counts")
    assert refused > trials * 2 / 3


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


def rewritten(path, change):
    """The file at `path` with its content changed by `change` and a digest that fits, as an attacker would."""
    content = torch.load(path, weights_only=True)
    change(content)
    del content["sha256"]
    form, version = content.pop("format"), content.pop("version")
    digest = checkpoint.digest(content)
    torch.save({"format": form, "version": version, "sha256": digest} | content, path)


def nested(depth):
    inner: list = []
    for _ in range(depth):
        inner = [inner, inner]
    return inner


BOMBS = {
    "huge tensor": torch.zeros(1).expand(10**12),
    "shared tensors": [torch.zeros(10**6)] * 1000,
    "doubled lists": nested(60),
    "long text often": ["x" * 10**5] * 10**5,
    "bytearray": bytearray(10),
    "meta tensor": torch.zeros(10**12, device="meta"),
    "type of tensor": torch.nn.Parameter(torch.zeros(1)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_that_unpacks_to_much_is_refused_at_once(tmp_path, name):
    path = tmp_path / "bomb.pt"
    torch.save({"format": checkpoint.MODEL, "version": 1, "sha256": "0" * 64, "metrics": BOMBS[name]}, path)
    assert path.stat().st_size < 10**7
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"bomb\.pt") as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value)
    assert "SHA-256" not in str(caught.value), "refused before it is unpacked"
    assert time.perf_counter() - start < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "kilobytes"


def test_lists_nested_without_end_are_refused(tmp_path):
    path = tmp_path / "deep.pt"
    data = pickle.dumps({"format": checkpoint.MODEL, "version": 1, "sha256": ""}, protocol=2)
    inner = b"]" * 10**5 + b"a" * (10**5 - 1)
    payload = data[:-1] + b"X\x01\x00\x00\x00l" + inner + b"s."
    torch.save({}, path)
    with zipfile.ZipFile(path) as source:
        members = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w") as target:
        for name, content in members.items():
            target.writestr(name, payload if name.endswith("data.pkl") else content)
    with pytest.raises(ValueError, match=r"deep\.pt is damaged"):
        checkpoint.load(path)


def test_zip_bombs_pipes_and_endless_files_are_refused_unread(saved, tmp_path):
    bomb = tmp_path / "bomb.pt"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as target:
        target.writestr("archive/data.pkl", bytes(10**8))
    overlapping = tmp_path / "overlapping.pt"
    with zipfile.ZipFile(overlapping, "w") as target:
        target.writestr("archive/data/0", bytes(10**5))
        target.filelist *= 1000
    endless = tmp_path / "endless.pt"
    with endless.open("wb") as file:
        file.write(b"PK")
        file.truncate(10**13)
    pipe = tmp_path / "pipe.pt"
    os.mkfifo(pipe)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for file, reason in ((bomb, "compressed"), (overlapping, "claim"), (endless, "bytes"), (pipe, "no regular file")):
        with pytest.raises(ValueError, match=reason) as caught:
            checkpoint.load(file)
        assert str(file) in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "kilobytes"
    with pytest.raises(IsADirectoryError):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize(("generated", "data"), [(True, "generated"), (False, "cifar10")])
def test_version_1_is_read_as_cifar10(saved, generated, data):
    path, model = saved

    def older(content):
        del content["classes"], content["config"]["data"]
        content["config"]["generated"] = generated
        content["version"] = 1

    rewritten(path, older)
    loaded = checkpoint.load(path)
    assert loaded.config == replace(CONFIG, data=data)
    assert loaded.model.classes[3] == "cat" and len(loaded.model.classes) == 10
    assert all(torch.equal(tensor, loaded.model.state_dict()[name]) for name, tensor in model.state_dict().items())


CHANGES = {
    "another version": lambda c: c.update(version=3),
    "no classes": lambda c: c.update(classes=[]),
    "a class less": lambda c: c["classes"].pop(),
    "a class that is no name": lambda c: c.update(classes=[*range(10)]),
    "a class that moves the cursor": lambda c: c.update(classes=["\x1b[2J", *"bcdefghij"]),
    "a wide claim": lambda c: c["config"].update(width=1024, depth=34),
    "a width that is no number": lambda c: c["config"].update(width="8"),
    "a fraction of a channel": lambda c: c["config"].update(width=8.0),
    "a resolution that is no number": lambda c: c["config"].update(resolutions=[16.0]),
    "an unknown precision": lambda c: c["config"].update(precision="int8"),
    "an unknown field": lambda c: c["config"].update(surprise=1),
    "no config": lambda c: c.update(config=[]),
    "no weights": lambda c: c.pop("weights"),
    "weights that are none": lambda c: c.update(weights=3),
    "numbers for tensors": lambda c: c["weights"].update(mean=1.0),
    "another type": lambda c: c["weights"].update(mean=c["weights"]["mean"].double()),
    "another shape": lambda c: c["weights"].update(mean=torch.zeros(2)),
    "one more": lambda c: c["weights"].update(more=torch.zeros(2)),
    "no metrics": lambda c: c.update(metrics=None),
    "something else": lambda c: c.update(more=1),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_file_that_is_consistent_but_wrong_is_refused(saved, name):
    path, _ = saved
    rewritten(path, lambda content: None)
    checkpoint.load(path)
    rewritten(path, CHANGES[name])
    with pytest.raises(ValueError, match=r"model\.pt") as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value)


def test_a_disk_that_fills_at_any_byte_leaves_the_old_file(saved, tmp_path):
    """A limit on the size of files stands in for the disk: the kernel stops the write at that byte."""
    path, model = saved
    old = path.read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for offset in [len(old) * part // 20 for part in range(20)]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (offset, before[1]))
        try:
            with pytest.raises(OSError) as caught:
                checkpoint.save_model(path, model, CONFIG, {"test_accuracy": 0.6})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
        assert path.read_bytes() == old
        assert os.listdir(path.parent) == [path.name]
    checkpoint.save_model(path, model, CONFIG, {"test_accuracy": 0.6})
    assert checkpoint.load(path).metrics["test_accuracy"] == 0.6


def test_weights_of_another_width_are_refused(saved, tmp_path):
    path = tmp_path / "other.pt"
    checkpoint.save_model(path, ResNet("abcdefghij", width=16), CONFIG, {})
    with pytest.raises(ValueError, match="do not fit a ResNet-18 of width 8"):
        checkpoint.load(path)


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
    check_writable(tmp_path / "model.pt")
    assert os.listdir(tmp_path) == []
    with pytest.raises(IsADirectoryError):
        check_writable(tmp_path)
    with pytest.raises(FileNotFoundError):
        check_writable(tmp_path / "missing" / "model.pt")


def test_a_trainable_model_has_gradients_and_a_plain_one_is_frozen(saved):
    assert not any(p.requires_grad for p in checkpoint.load_model(saved[0]).parameters())
    model = checkpoint.load_model(saved[0], trainable=True)
    assert not model.training
    model(torch.zeros(2, 3, 24, 24, dtype=torch.uint8)).logsumexp(1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
