"""Checkpoints: exact, whole or absent, and refused when damaged, foreign or hostile."""

import errno
import math
import os
import pickle
import resource
import struct
import time
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from engine import checkpoint
from engine.config import PRESETS
from engine.model import ResNet, create
from ground.entry import describe
from ground.mistake import Mistake
from pipeline.synthetic import generated
from tests.commands import call
from tests.forged import archive, high_water, kilobytes, members

CONFIG = replace(PRESETS["smoke"], resolutions=(16, 24))


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = ResNet("abcdefghij", width=8, resolution=24)
    path = tmp_path / "model.pt"
    checkpoint.save_model(path, model, CONFIG, {"test_accuracy": 0.5, "test_correct": 5, "precision": "fp32"})
    return path, model


def digest(model):
    return checkpoint.digest(dict(model.state_dict()))


def test_gives_back_weights_config_and_metrics_exactly(saved):
    path, model = saved
    loaded = checkpoint.load(path)
    assert loaded.config == CONFIG
    assert loaded.metrics == {"test_accuracy": 0.5, "test_correct": 5, "precision": "fp32"}
    assert digest(loaded.model) == digest(model)
    assert not loaded.model.training and loaded.model.resolution == 24
    assert loaded.model.classes == tuple("abcdefghij")
    content = torch.load(path, weights_only=True)
    assert set(content) == {"format", "version", "sha256", "config", "classes", "weights", "metrics"}
    assert set(content["weights"]) == set(model.state_dict())


def test_a_trainable_model_has_gradients_and_a_plain_one_is_frozen(saved):
    plain, model = (checkpoint.load_model(saved[0], trainable) for trainable in (False, True))
    assert plain.predict(torch.zeros(2, 32, 32, 3, dtype=torch.uint8)).shape == (2, 10)
    assert not model.training and not any(p.requires_grad for p in plain.parameters())
    model(torch.zeros(2, 3, 24, 24, dtype=torch.uint8)).logsumexp(1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


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
        assert digest(loaded.model) == digest(model)
    print(f"{trials} damaged files: {refused} refused, {trials - refused} whole in all that counts")
    assert refused > trials * 2 / 3


class Payload:
    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


MB, MERSENNE = 2**20, 2**61 - 1  # a whole number's hash is its rest by that


def saved_with(content):
    return lambda path: torch.save({"format": "cifar10-resnet model", "version": 2, "sha256": ""} | content, path)


def pickled(opcodes, *more, method=0):
    start = b"\x80\x02" if method == 0 else b""
    return lambda path: archive(path, [("a/data.pkl", start + opcodes + b"."), ("a/version", b"3\n"), *more], method)


def hole(name, size=2**30):
    """Where a member of that name is a hole of so many bytes."""

    def make(path):
        own = members(path) if path.exists() else {"a/data.pkl": b"\x80\x02}.", "a/version": b"3\n"}
        archive(path, {**own, name: size}.items())

    return make


def long(number):
    data = number.to_bytes(40, "little")
    return b"\x8a" + bytes([len(data)]) + data


def nested(depth):
    inner: list = []
    for _ in range(depth):
        inner = [inner, inner]
    return inner


def sparse(path, size, start=b"PK"):
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)


def claiming(path):
    """Parts that claim more bytes together than the file has."""
    archive(path, [("a/data.pkl", b"\x80\x02}."), ("a/data/0", bytes(12345)), ("a/data/1", bytes(12345))])
    path.write_bytes(path.read_bytes().replace(struct.pack("<2L", 12345, 12345), struct.pack("<2L", 20000, 20000)))


def moved(path):
    """Something before the archive, which zipfile would see through."""
    torch.save({}, path)
    path.write_bytes(b"PK" + path.read_bytes())


TENSOR, ORDERED = b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n"
COLLIDING = b"".join(long(n * MERSENNE) + b"N" for n in range(25_000))
PAIRS = b"".join(b"K\x01" + long(n * MERSENNE) + b"\x86" for n in range(50_000))
NO_END, UNKNOWN, MUCH = "damaged", "unknown, too large or compressed", "no checkpoint does, or too much"
ODD, UNPARSED, OTHER, FORM = "a key or a call that", "cannot be parsed", "train one with", "not the entries"
# How a file is made, and what is said of it.
REFUSED = {
    "a text": (lambda path: path.write_text("not a checkpoint"), NO_END),
    "nothing": (lambda path: path.write_bytes(b""), NO_END),
    "a pipe": (os.mkfifo, "no regular file"),
    "a folder": (os.mkdir, "it is a folder: name a file"),
    "a pickle": (lambda path: path.write_bytes(pickle.dumps(Payload("ran"))), NO_END),
    "a program": (saved_with({"weights": Payload("ran")}), ODD),
    "weights of others": (lambda path: torch.save(dict(ResNet("ab", width=1).state_dict()), path), OTHER),
    "a resume state": (saved_with({"format": "cifar10-resnet resume"}), OTHER),
    "version 1": (saved_with({"version": 1}), "another format version, this program reads 2"),
    "version 3": (saved_with({"version": 3}), "another format version"),
    "a version of doubled lists": (saved_with({"version": nested(60)}), "another format version"),
    "endless": (lambda path: sparse(path, 10**13), "bytes, a checkpoint of this program at most"),
    "sparse": (lambda path: sparse(path, 8 * 2**30), NO_END),
    "a long directory": (lambda path: archive(path, [(f"a/data/{n}", b"") for n in range(10**4)]), "too large"),
    "something before it": (moved, "not where it must be"),
    "compressed": (pickled(zlib.compress(bytes(10**8))[2:-4], method=8), UNKNOWN),
    "a member twice": (pickled(b"}", ("a/data/0", bytes(8)), ("a/data/0", bytes(8))), "the same names"),
    "a member of another name": (pickled(b"}", ("a/constants.pkl", b"x")), UNKNOWN),
    "no pickle": (lambda path: archive(path, [("a/version", b"3\n")]), UNPARSED),
    "big-endian": (pickled(b"}", ("a/byteorder", b"big")), "little-endian"),
    "parts larger than all": (claiming, "claim more bytes"),
    **{f"a hole as {name}": (hole(f"a/{name}"), UNKNOWN) for name in (*checkpoint.SMALL, "data.pkl")},
    "a hole as a tensor": (hole("a/data/0"), OTHER),
    "huge tensor": (saved_with({"metrics": torch.zeros(1).expand(10**12)}), FORM),
    "shared tensors": (saved_with({"metrics": [torch.zeros(10**6)] * 1000}), FORM),
    "doubled lists": (saved_with({"metrics": nested(60)}), FORM),
    "long text often": (saved_with({"metrics": ["x" * 10**5] * 10**5}), FORM),
    "bytearray": (saved_with({"metrics": bytearray(10)}), ODD),
    "meta tensor": (saved_with({"metrics": torch.zeros(10**12, device="meta")}), ODD),
    "type of tensor": (saved_with({"metrics": torch.nn.Parameter(torch.zeros(1))}), ODD),
    "classes without end": (
        saved_with({"config": {}, "classes": ["a"] * (10**5 + 1), "weights": {}, "metrics": {}}),
        "classes: not of the form",
    ),
    "dicts": (pickled(b"}" * 15 * MB), UNKNOWN),
    "lists": (pickled(b"]" * 3 * MB), MUCH),
    "deep lists": (pickled(b"]" * 10**5 + b"a" * (10**5 - 1)), OTHER),
    "deep dicts": (pickled(b"}" + b"X\1\0\0\0a}" * 10**5 + b"s" * 10**5), OTHER),
    "marks": (pickled(b"(" * 3 * MB), MUCH),
    "tuples": (pickled(b"N" + b"\x85" * 3 * MB), MUCH),
    "nothings": (pickled(b"N" * 3 * MB), MUCH),
    "numbers": (pickled(b"M\xff\xff" * MB), MUCH),
    "a long number": (pickled(long(2**53 + 1)), MUCH),
    "a place in the memo": (pickled(b"Nr\xff\xff\xff\x7f"), ODD),
    "bytes": (pickled(b"B\xff\xff\xff\x7f"), UNPARSED),
    "tensors": (pickled((TENSOR + b"(" + b"N" * 6 + b"tR") * 10**5), MUCH),
    "ordered dicts": (pickled((ORDERED + b")R") * 10**5), MUCH),
    "an item of a type": (pickled(b"ctorch\nFloatStorage\nK\0K\0s"), UNPARSED),
    "another builtin": (pickled(b"cbuiltins\nlist\n)R"), ODD),
    "a newer pickle": (pickled(b"\x80\4}"), MUCH),
    "colliding numbers as keys": (pickled(b"}(" + COLLIDING + b"u"), MUCH),
    "large numbers as keys": (pickled(b"}(J\0\0\1\0Nu"), ODD),
    "numbers below 0 as keys": (pickled(b"}(J\xff\xff\xff\xffNu"), ODD),
    "a fraction as a key": (pickled(b"}G" + bytes(8) + b"Ns"), ODD),
    "tuples as keys": (pickled(b"}(" + b"K\1\x85N" * 1000 + b"u"), ODD),
    "a tuple as the key": (pickled(b"}K\1\x85Ns"), ODD),
    "a fraction from the memo as the key": (pickled(b"}G" + bytes(8) + b"q\0h\0s"), ODD),
    "long texts as keys": (pickled(b"}(X\xe9\3\0\0" + b"a" * 1001 + b"Nu"), ODD),
    "a dict of pairs": (pickled(ORDERED + b"](" + PAIRS + b"e\x85R"), MUCH),
    "a dict of a list": (pickled(ORDERED + b"]\x85R"), ODD),
    "a tensor of nothing": (pickled(TENSOR + b")R"), ODD),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_foreign_file_or_one_made_to_cost_much_is_refused_at_once(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    make, said = REFUSED[name]
    make(Path("bomb.pt"))
    began, before = time.process_time(), high_water()
    with pytest.raises((ValueError, OSError)) as caught:
        checkpoint.load("bomb.pt")
    assert time.process_time() - began < 2
    assert high_water() - before < 200_000, "kilobytes"
    line = describe(caught.value)
    assert line.startswith("bomb.pt") and said in line and "SHA-256" not in line
    assert not Path("ran").exists()
    assert isinstance(caught.value, checkpoint.DamagedError) == (said == NO_END)


def test_what_no_right_archive_tells_its_digest_does(saved, tmp_path):
    """Right checksums of each part, other numbers in one, or another digest; and parts of other sizes."""
    own, path = members(saved[0]), tmp_path / "other.pt"
    data = bytearray(own["archive/data/2"])
    data[0] ^= 1
    digest = torch.load(saved[0], weights_only=True)["sha256"].encode()
    pickled = own["archive/data.pkl"].replace(digest, digest[::-1])
    archive(path, own.items())
    checkpoint.load(path)
    for change in ({"archive/data/2": bytes(data)}, {"archive/data.pkl": pickled}):
        archive(path, (own | change).items())
        with pytest.raises(checkpoint.DamagedError, match=r"other\.pt is damaged: its SHA-256 does not match"):
            checkpoint.load(path)
    for size in (len(data) - 4, len(data) + 4):
        archive(path, (own | {"archive/data/2": bytes(size)}).items())
        with pytest.raises(ValueError, match="another size than its part"):
            checkpoint.load(path)
    archive(path, [(name, len(data) if name == "archive/data/2" else own[name]) for name in own])
    with pytest.raises(checkpoint.DamagedError, match="Bad CRC-32"):
        checkpoint.load(path)


def test_a_file_that_is_mostly_a_hole_is_refused_unread(tmp_path):
    """Zeros that all fit: 1 GB that takes no room on the disk."""
    path, config = tmp_path / "wide.pt", replace(CONFIG, width=280)
    with torch.device("meta"):
        model = ResNet("ab", width=280)
    weights = dict(model.to_empty(device="cpu").state_dict())
    content = {"config": checkpoint.config_dict(config), "classes": ["a", "b"], "weights": weights, "metrics": {}}
    with torch.serialization.skip_data():
        torch.save({"format": "cifar10-resnet model", "version": 2, "sha256": ""} | content, path)
    assert path.stat().st_blocks * 512 < MB < 800 * MB < path.stat().st_size
    high_water()
    with pytest.raises(ValueError, match="most of it is a hole"):
        checkpoint.load(path)
    assert high_water() < kilobytes("VmRSS") + 100_000


def test_what_is_read_is_the_file_that_was_looked_at_and_stays_when_it_is_cut(saved, tmp_path, monkeypatch):
    path, model = saved
    other, load = tmp_path / "other.pt", torch.load
    torch.save({"format": "cifar10-resnet model", "weights": torch.zeros(9)}, other)

    def replaced(*arguments, **options):
        os.replace(other, path)
        return load(*arguments, **options)

    monkeypatch.setattr(torch, "load", replaced)
    found = checkpoint.read(path, checkpoint.MODEL)["weights"]
    assert all(torch.equal(tensor, found[name]) for name, tensor in model.state_dict().items())
    assert str(path) not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("where", ["_opened", "digest"])
def test_a_passing_read_error_is_no_damage(saved, monkeypatch, where):
    def failing(*arguments):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checkpoint, where, failing)
    with pytest.raises(OSError) as caught:
        checkpoint.load(saved[0])
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(saved[0]))


UNWRITABLE = {
    "a class of a long name": (lambda c: c["classes"].__setitem__(0, "a" * 1001), "classes"),
    "a setting of a long text": (lambda c: c["config"].update(data="a" * 4097), "config, data"),
    "a metric that is no number": (lambda c: c["metrics"].update(test_accuracy=math.nan), "metrics"),
    "a metric that is a path": (lambda c: c["metrics"].update(out=Path("out")), "metrics"),
    "weights that are not finite": (lambda c: c["weights"]["fc.bias"].fill_(math.nan), "not finite"),
    "weights of another width": (lambda c: c.update(weights=ResNet("abcdefghij", width=16).state_dict()), "of width 8"),
}


@pytest.mark.parametrize("name", UNWRITABLE)
def test_what_could_not_be_read_is_not_written(saved, name):
    path, _ = saved
    content = checkpoint.read(path, checkpoint.MODEL)
    content["config"] = checkpoint.config_dict(content["config"])
    checkpoint.write(path, checkpoint.MODEL, content)
    before = path.read_bytes()
    change, said = UNWRITABLE[name]
    change(content)
    with pytest.raises(ValueError, match=said) as caught:
        checkpoint.write(path, checkpoint.MODEL, content)
    assert not isinstance(caught.value, Mistake), "a defect of ours"
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


def test_the_most_and_the_longest_classes_that_can_be_are_read_back(tmp_path):
    for classes in ([f"{n:010}" for n in range(100_000)], ["\N{BALLOON}" * 1000] * 1000):
        config = replace(CONFIG, width=1)
        checkpoint.save_model(tmp_path / "m.pt", ResNet(classes, width=1), config, {})
        assert checkpoint.load(tmp_path / "m.pt").model.classes == tuple(classes)


TOLD = f"the class '{'a' * 40}'... has 1001 characters: name it with 1 to 1000 that can be printed\n"


@pytest.mark.parametrize(
    ("name", "said"),
    [("a" * 1001, TOLD), ("\N{CAT FACE}" * 1001, "... has 1001 c"), ("\udcff" * 167, "... has 1002 c")],
)
def test_a_name_that_no_checkpoint_holds_is_told_before_the_training(capsys, tmp_path, monkeypatch, name, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CIFAR10_DIR", str(tmp_path / "cache"))
    data, rows = "list.csv" if len(name) > 255 else "in", ["path,label,split"]
    for part in ("train", "test"):
        for n, label in enumerate((name, "b")):
            rows.append(f"{part}{n}.png,{label},{part}")
            place = Path(rows[-1].partition(",")[0]) if data == "list.csv" else Path("in", part, label, "a.png")
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (9, 9), (n, 0, len(part))).save(place)
    Path("list.csv").write_text("\n".join(rows), errors="surrogateescape")
    code, _, err = call(capsys, "smoke", "--data", data, "--threads", "1")
    assert code == 2 and err.splitlines()[-1].startswith("train.py: the class ") and said in err
    assert not Path("model.pt").exists() and not Path("runs").exists()


def test_so_many_names_as_no_checkpoint_holds_are_refused():
    for classes, characters in ([["a" * 1000] * 1001, "1001000"], [["a"] * 100_001, "100001"]):
        with pytest.raises(Mistake, match=f"there are {len(classes)} classes, with {characters} characters in their"):
            ResNet(classes, width=1)
    with pytest.raises(Mistake, match="the class ''"):
        ResNet(["a", ""], width=1)


def test_a_disk_that_fills_at_any_byte_leaves_the_old_file(saved, tmp_path):
    """A limit on the size of files stands in for the disk: the kernel stops the write there."""
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
    others.append({"n": 1, "a": torch.arange(6.0)})
    assert len({checkpoint.digest(value) for value in [base, *others]}) == 8
    assert checkpoint.digest({"a": torch.arange(12.0)[::2] / 2, "n": 1}) == checkpoint.digest(base)
    with pytest.raises(TypeError, match="not PosixPath"):
        checkpoint.digest({"path": Path("a")})


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_comes_back_as_it_was(preset, tmp_path):
    """Also where a setting of fractions is given as a whole number, as `minutes`."""
    for config in (replace(PRESETS[preset], width=4), replace(PRESETS[preset], width=4, minutes=7)):
        checkpoint.save_model(tmp_path / "m.pt", create(replace(config, whiten=False), generated(20)), config, {})
        assert checkpoint.load(tmp_path / "m.pt").config == config
