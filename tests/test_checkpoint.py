"""Checkpoints: exact, whole or absent, and refused when damaged, foreign or hostile."""

import errno
import os
import pickle
import resource
import struct
import time
import zipfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine import checkpoint, schema
from engine.config import PRESETS
from engine.model import ResNet, create
from ground.files import check_writable
from pipeline.synthetic import generated
from tests.commands import rewritten

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


def nested(depth):
    inner: list = []
    for _ in range(depth):
        inner = [inner, inner]
    return inner


def with_pickle(path, opcodes):
    """An archive whose pickle is these opcodes."""
    torch.save({}, path)
    with zipfile.ZipFile(path) as source:
        members = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w") as target:
        for name, content in members.items():
            target.writestr(name, opcodes if name.endswith("data.pkl") else content)


def sparse(path, size, start=b"", end=b""):
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)
        file.seek(0, os.SEEK_END)
        file.write(end)


MB = 2**20
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
# End of a zip of 10,000 members, whose directory is said to be all of the file.
END = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 10_000, 10_000, 2**32 - 100, 0, 0)


def saved_with(content):
    return lambda path: torch.save({"format": checkpoint.MODEL, "version": 1, "sha256": "0" * 64} | content, path)


def pickled(opcodes):
    return lambda path: with_pickle(path, b"\x80\x02" + opcodes + b".")


BOMBS = {
    "huge tensor": saved_with({"metrics": torch.zeros(1).expand(10**12)}),
    "shared tensors": saved_with({"metrics": [torch.zeros(10**6)] * 1000}),
    "doubled lists": saved_with({"metrics": nested(60)}),
    "a version of doubled lists": saved_with({"version": nested(60)}),
    "long text often": saved_with({"metrics": ["x" * 10**5] * 10**5}),
    "bytearray": saved_with({"metrics": bytearray(10)}),
    "meta tensor": saved_with({"metrics": torch.zeros(10**12, device="meta")}),
    "type of tensor": saved_with({"metrics": torch.nn.Parameter(torch.zeros(1))}),
    "classes without end": saved_with({"classes": ["a"] * 10**6, "config": {}, "weights": {}, "metrics": {}}),
    "sparse": lambda path: sparse(path, 8 * 2**30),
    "sparse zip": lambda path: sparse(path, 8 * 2**30 - 100, b"PK"),
    "directory": lambda path: sparse(path, 2**32 - 100, b"PK", END),
    "dicts": pickled(b"}" * 15 * MB),
    "lists": pickled(b"]" * 3 * MB),
    "marks": pickled(b"(" * 3 * MB),
    "tuples": pickled(b"N" + b"\x85" * 3 * MB),
    "nothings": pickled(b"N" * 3 * MB),
    "numbers": pickled(b"M\xff\xff" * MB),
    "long numbers": pickled((b"\x8a\xff" + b"\x7f" * 255) * 15_000),
    "memory of a memo": pickled(b"Nr\xff\xff\xff\x7f"),
    "bytes": pickled(b"B\xff\xff\xff\x7f"),
    "tensors": pickled(TENSOR + b"(" + b"N" * 6 + b"tR" * MB),
    "an item of a type": pickled(b"ctorch\nFloatStorage\nK\x00K\x00s"),
    "another builtin": pickled(b"cbuiltins\nlist\n)R"),
}


@pytest.mark.parametrize("kind", [checkpoint.MODEL, checkpoint.RESUME])
@pytest.mark.parametrize("name", BOMBS)
def test_a_file_made_to_cost_much_is_refused_at_once(tmp_path, name, kind):
    path = tmp_path / "bomb.pt"
    BOMBS[name](path)
    began, before = time.process_time(), high_water()
    with pytest.raises(ValueError, match=r"bomb\.pt") as caught:
        checkpoint.read(path, kind, schema.model)
    assert time.process_time() - began < 2
    assert high_water() - before < 200_000, "kilobytes"
    assert "\n" not in str(caught.value)
    assert "SHA-256" not in str(caught.value), "refused before it is unpacked"


def high_water():
    """Kilobytes: the most memory that this process has had since it was asked last."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    Path("/proc/self/clear_refs").write_text("5")
    return int(line.split()[1])


def test_lists_nested_without_end_are_refused(tmp_path):
    path = tmp_path / "deep.pt"
    data = pickle.dumps({"format": checkpoint.MODEL, "version": 1, "sha256": ""}, protocol=2)
    inner = b"]" * 10**5 + b"a" * (10**5 - 1)
    payload = data[:-1] + b"X\x01\x00\x00\x00l" + inner + b"s."
    with_pickle(path, payload)
    with pytest.raises(ValueError, match=r"deep\.pt is not a model checkpoint"):
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
    "a config that is a tensor": lambda c: c.update(config=torch.zeros(2)),
    "a config of lists": lambda c: c["config"].update(resolutions=[[16]]),
    "metrics that are text": lambda c: c.update(metrics="good"),
    "metrics that are a tensor": lambda c: c.update(metrics=torch.zeros(3)),
    "metrics with a method": lambda c: c.update(metrics=OrderedDict(get=1)),
    "a metric that is text": lambda c: c["metrics"].update(test_correct="5"),
    "a metric that is nothing": lambda c: c["metrics"].update(test_total=None),
    "a metric that is a tensor": lambda c: c["metrics"].update(test_total=torch.tensor(3)),
    "a metric that is no number": lambda c: c["metrics"].update(test_loss=float("nan")),
    "a precision that is a list": lambda c: c["metrics"].update(precision=["fp32"]),
    "an unknown precision of the metrics": lambda c: c["metrics"].update(precision="int8"),
    "more right than there are": lambda c: c["metrics"].update(test_correct=6, test_total=5),
    "a temperature of 0": lambda c: c["metrics"].update(temperature=0),
    "a temperature that is text": lambda c: c["metrics"].update(temperature="1"),
    "a number for a name": lambda c: c["metrics"].update({3: 4}),
    "weights that are not finite": lambda c: c["weights"]["fc.bias"].fill_(float("nan")),
    "weights that are infinite": lambda c: c["weights"]["fc.bias"].fill_(float("inf")),
    "weights that repeat one number": lambda c: c["weights"].update({"fc.bias": torch.zeros(1).expand(10)}),
    "a part of more": lambda c: c["weights"].update({"fc.bias": torch.zeros(11)[1:]}),
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
    with pytest.raises(ValueError, match="weights of a ResNet-18 of width 8"):
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


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_comes_back_as_it_was(preset, tmp_path):
    """Also where a setting of fractions is given as a whole number, as `minutes` of one's own pictures."""
    for config in (replace(PRESETS[preset], width=4), replace(PRESETS[preset], width=4, minutes=7)):
        checkpoint.save_model(tmp_path / "m.pt", create(replace(config, whiten=False), generated(20)), config, {})
        assert checkpoint.load(tmp_path / "m.pt").config == config
