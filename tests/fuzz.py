"""Gives forged and damaged files to all that reads files, and counts what comes of it.

    make fuzz
    make fuzz ARGS="--inputs 5000 --seed 1 --only model,state"

The number of an input and the seed make it: damage at random, or a right digest of a changed content, at times of
one field at its bounds or beyond. In a forked process it is read, used, and compared with what was written. There
every write, program and connection outside of the process's own folder is a defect, and so is whatever is no
ValueError or OSError, takes too long or too much memory, takes what is wrong or refuses what is right. Files that
were defects are kept and named. A table for each kind tells how many reached which check. The last line is JSON.
"""

import argparse
import contextlib
import copy
import hashlib
import io
import json
import math
import os
import random
import re
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ[f"{library}_NUM_THREADS"] = "1"  # so that no thread is there to be lost in a fork
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import safetensors.torch
import torch
import torch._dynamo
from PIL import Image

from bench.core import record
from bench.speed import compare
from engine import checkpoint, weights
from engine.learner import NonFiniteLoss
from explain import images as own_images
from explain.explainer import Explainer
from ground.data import PACKED_FROM
from ground.entry import describe
from pipeline import folder, pictures, store
from pipeline.dataset import open_dataset
from pipeline.labels import PARTS
from pipeline.listing import Inventory, LeftOut, Listing, Source
from run import resume
from run.folder import RunFolder
from run.stopwatch import Stopwatch
from tests import forged as forgery

CHUNK = 25  # inputs that one process reads
MOST_TOLD = 60  # lines of a table
WRITING = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
STARTING = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "socket.connect", "os.fork"}
RARE: list[Callable[[], Any]] = [
    lambda: float("nan"), lambda: float("inf"), lambda: -1, lambda: 0, lambda: 2**31, lambda: 2**70, lambda: 1e300,
    lambda: -0.0, lambda: 2.5, lambda: "", lambda: "x" * 5000, lambda: "{x}%s", lambda: "\x1b[2J\r\n", lambda: "=cmd()",
    lambda: "\udcff", lambda: "[/x]<script>", lambda: "../../etc/passwd", lambda: None, lambda: True, list,
    dict, lambda: [[1]], lambda: {"a": {}}, lambda: ["a"] * 1000, lambda: "fp32", lambda: "cuda",
]  # fmt: skip
TENSORS: list[Callable[[], Any]] = [
    lambda: torch.zeros(2), lambda: torch.tensor(3), lambda: torch.full((4,), math.nan), lambda: torch.zeros(0),
    lambda: torch.zeros(1).expand(10**6), lambda: torch.zeros(3, dtype=torch.bool), lambda: (1, 2),
    lambda: torch.zeros(2, 3).half(), lambda: torch.zeros(10)[2:4], lambda: torch.nn.Parameter(torch.zeros(1)),
]  # fmt: skip


def damaged(data: bytes, rng: random.Random) -> bytes:
    """With some bytes changed, cut off, repeated, moved or set in."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at, other = rng.randrange(len(out) + 1), rng.randrange(len(out) + 1)
        # The ends hold most of what is parsed.
        at = at if rng.random() < 0.5 else max(0, min(len(out), rng.choice((at % 300, len(out) - at % 2000))))
        what = rng.randrange(6)
        if what == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif what == 1:
            del out[at:]
        elif what == 2:
            out[at:at] = out[other : other + rng.randrange(1, 200)]
        elif what == 3:
            out[at : at + 4] = struct.pack("<I", rng.choice((0, 1, 2**16, 2**31, 2**32 - 1)))
        elif what == 4:
            del out[at : at + rng.randrange(1, 100)]
        else:
            out[at : at + 8] = bytes(rng.randrange(256) for _ in range(8))
        if not out:
            break
    return bytes(out)


def forged(content: Any, rng: random.Random, rare: list[Callable[[], Any]]) -> Any:
    """A copy with one to three of its values, somewhere inside, replaced, taken out, doubled or renamed."""
    content = copy.deepcopy(content)
    for _ in range(rng.choice((1, 1, 2, 3))):
        inside = content
        while True:
            keys = list(inside) if isinstance(inside, dict) else list(range(len(inside)))
            if not keys:
                break
            key = rng.choice(keys)
            value = inside[key]
            if isinstance(value, dict | list) and value and rng.random() < 0.85:
                inside = value
                continue
            what = rng.randrange(8)
            if what == 0:
                del inside[key]
            elif what == 1 and isinstance(inside, dict):
                inside[rng.choice((3, "more", None, "\x1b", key * 2 if isinstance(key, str) else -1))] = value
            elif what == 1:
                inside.append(value)
            elif what == 2:
                inside[key] = inside[rng.choice(keys)]
            elif what == 3 and isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel():
                value.detach().reshape(-1)[rng.randrange(value.numel())] = rng.choice((math.nan, math.inf, -1e38, 0.0))
            elif what == 4 and isinstance(value, torch.Tensor):
                inside[key] = rng.choice(
                    (value.double, value.long, value.flatten, value.t if value.ndim == 2 else value.half)
                )()
            elif what == 5 and isinstance(value, int | float):
                inside[key] = type(value)(rng.choice((value * 2, value + 1, -value, value * 10**6)))
            else:
                inside[key] = rng.choice(rare)()
            break
    return content


class Model:
    """model.pt, as gradcam.py takes it."""

    suffix, seconds, megabytes = ".pt", 2.0, 200.0
    kind, fields, write = checkpoint.MODEL, forgery.MODEL, staticmethod(forgery.write_model)

    def __init__(self, place: Path) -> None:
        path = place / "original.pt"
        self.write(path)
        self.data, self.content = path.read_bytes(), torch.load(path, weights_only=True)
        self.head = {key: self.content.pop(key) for key in ("format", "version", "sha256")}
        self.members = forgery.members(path)

    def make(self, rng: random.Random, path: Path) -> Any:
        """Write an input; returns what must come of it ("right", "refused" or "": either), and its content."""
        what = rng.randrange(10)
        if what < 3:
            path.write_bytes(damaged(self.data, rng))
        elif what < 5:
            self.packed(rng, path)
        elif what < 7:
            return "", self.saved(path, forged(self.content, rng, RARE + TENSORS))
        else:
            field = rng.choice(self.fields)
            right = bool(field.right) and rng.random() < 0.5
            content = copy.deepcopy(self.head | self.content)
            forgery.put(content, field.path, rng.choice(field.right if right else field.wrong))
            head = {key: content.pop(key) for key in self.head if key in content}
            return ("right" if right else "refused"), self.saved(path, content, head)
        return "", self.content

    def saved(self, path: Path, content: Any, head: Any = None) -> Any:
        """Writes it, with a digest that fits unless the head has another."""
        head = dict(self.head if head is None else head)
        if head.get("sha256") == self.head["sha256"]:
            with contextlib.suppress(Exception):  # of what has no digest
                head["sha256"] = checkpoint.digest(content)
        torch.save(head | content, path)
        return content

    def packed(self, rng: random.Random, path: Path) -> None:
        """The archive with a damaged pickle, or members renamed, doubled, emptied, cut or left out."""
        parts: list[tuple[str, bytes | int]] = []
        for name, data in self.members.items():
            if rng.random() < 0.003:
                other = (name.upper(), data), (f"../../{name}", data), (name, b""), (name, data * 2), (name, data[4:])
                name, data = rng.choice(other)
            if name.endswith("data.pkl") and rng.random() < 0.8:
                data = rng.choice((damaged(data, rng), damaged(data, rng), opcodes(rng), colliding(rng)))
            parts += [(name, data)] * rng.choice((1,) * 500 + (0, 2))
        if rng.random() < 0.3:  # a hole
            name = rng.choice(["archive/" + name for name in (*checkpoint.SMALL, "data.pkl", "data/0")])
            parts = [(name, 2**30), *(part for part in parts if part[0] != name)]
        forgery.archive(path, parts, rng.choice((0, 0, 0, 0, 8)))

    def use(self, path: Path, content: Any) -> None:
        loaded = checkpoint.load(path)
        explainer = Explainer.of(loaded, "cpu", threads=1)
        f"{explainer}: {loaded.metrics.get('test_total', 0) - loaded.metrics.get('test_correct', 0)}"
        probabilities = explainer.model.predict(torch.zeros(1, 16, 16, 3, dtype=torch.uint8))
        assert probabilities.shape == (1, len(explainer.model.classes))
        self.compare(path, content)

    def compare(self, path: Path, content: Any) -> None:
        assert forgery.equal(checkpoint.read(path, self.kind), content), "other than what was written"


def opcodes(rng: random.Random) -> bytes:
    """A pickle of nothing but opcodes, a few of them very often."""
    some = [bytes([rng.randrange(256)]) for _ in range(3)]
    some += [b"}", b"]", b"(", b"N", b"0", b"2", b"\x85", b"q\x00", b"h\x00", b"u", b"e", b"K\x01", b"R", b"Q"]
    return b"\x80\x02" + b"".join(rng.choice(some) * rng.choice((1, 2, 100, 10**5)) for _ in range(40)) + b"."


def colliding(rng: random.Random) -> bytes:
    """A pickle of a dict with many keys that have one hash, or one after the first bits."""
    count = rng.choice((300, 10_000))

    def key(n: int) -> bytes:
        number = n * (2**61 - 1)
        return {
            "large": b"\x8a\x0a" + number.to_bytes(10, "little"),
            "shifted": b"\x8a\x07" + (n << 32).to_bytes(7, "little"),
            "whole": b"J" + struct.pack("<i", n << 16),
            "float": b"G" + struct.pack(">d", 2.0 ** (61 * (n % 16)) * (n // 16 + 1)),
            "tuple": b"\x8a\x0a" + number.to_bytes(10, "little") + b"\x85",
            "text": b"X" + struct.pack("<I", 2000) + f"{n:2000}".encode(),
            "nested": b"}" + b"K\x01" * 2 + b"s",
        }[kind]

    kind = rng.choice(("large", "shifted", "whole", "float", "tuple", "text", "nested"))
    return b"\x80\x02}(" + b"".join(key(n) + b"N" for n in range(count)) + b"u."


class State(Model):
    """A resume state, as train.py --resume goes on with it, up to the first step."""

    kind, fields, write = resume.RESUME, forgery.STATE, staticmethod(forgery.write_state)

    def use(self, path: Path, content: Any) -> None:
        state = resume.find(str(path), "")
        config = state.config
        assert (config.out, config.device, config.threads) == ("model.pt", "auto", 0)
        assert config.run_dir == str(path.parent)
        assert config.width == forgery.CONFIG.width
        own = forgery.learner(config)
        resume.restore(own, state, config, state.data)
        try:
            own.check_finite()
        except NonFiniteLoss as error:  # as Run does: finite weights, whose sum of squares is not
            raise ValueError(str(error)) from None
        self.compare(path, content)
        with RunFolder(path.parent, state, own.lr_at) as run:
            run.write_config(checkpoint.config_dict(config))
            keeper = resume.Keeper(run.path, run.rows, own, "data", Stopwatch(state.seconds), state)
            json.dumps([keeper.notes, keeper.position, own.lr_at(own.step)])


class Weights(Model):
    """Weights of other programs, as --pretrained takes them: torch's archives and safetensors."""

    suffix = ".pth"

    def __init__(self, place: Path) -> None:
        path = place / "original.pth"
        self.states = [OrderedDict(forgery.small_weights(depth)) for depth in (18, 34)]
        torch.save(self.states[0], path)
        self.data, self.members = path.read_bytes(), forgery.members(path)

    def make(self, rng: random.Random, path: Path) -> Any:
        state, what = rng.choice(self.states), rng.randrange(10)
        if what < 2:
            path.write_bytes(damaged(self.data, rng))
            return "", self.states[0]
        if what < 4:
            self.packed(rng, path)
            return "", None
        if what < 6:
            content = forged({"state_dict": dict(state), "epoch": 1}, rng, RARE + TENSORS)
            torch.save(content, path)
            return "", content
        data = safetensors.torch.save(state, {"format": "pt"})
        length = int.from_bytes(data[:8], "little")
        if what == 6:
            path.write_bytes(damaged(data, rng))
            return "", None
        if what == 7:  # a header of any content, of a length that fits, or nearly
            head = json.dumps(forged(json.loads(data[8 : 8 + length]), rng, RARE)).encode()
            length = len(head) + rng.choice((0,) * 8 + (1, -1, 2**20, 2**60))
            path.write_bytes(length.to_bytes(8, "little") + head + data[8 + len(head) :])
            return "", None
        prefix = rng.choice(("", "module.", "model.", "module.model."))
        content = OrderedDict((prefix + name, tensor) for name, tensor in state.items())
        if what == 8:
            path.write_bytes(safetensors.torch.save(content))
        else:
            torch.save(rng.choice((content, {"model": content}, {"state_dict": content})), path)
        return "right", content

    def use(self, path: Path, content: Any) -> None:
        weights.WIDTH = 4
        loaded = weights.load(path)
        probabilities = loaded.model.predict(torch.zeros(1, 16, 16, 3, dtype=torch.uint8))
        assert probabilities.shape == (1, len(loaded.model.classes))
        written = (content or {}).get("state_dict", content or {})
        written = {re.sub(r"^(module\.)?(model\.)?", "", name): t for name, t in written.items()}
        for name, tensor in loaded.model.state_dict().items():
            theirs = written.get(weights.torchvision_name(name), tensor)
            assert torch.equal(tensor, theirs), "other than what was written"


def endless(rng: random.Random, path: Path, data: bytes) -> bool:
    """Now and then: the beginning of a file, then zeros or letters without a line's end, 3 GB of them as a hole."""
    if rng.random() > 0.01:
        return False
    path.write_bytes(data[: rng.randrange(1, len(data))] + rng.choice((b"", b"[", b"x")) * 3 * 10**6)
    os.truncate(path, 3 * 10**9)
    return True


class Cache:
    """The pictures of a folder, as pixels or packed. Damage may only mean that they are decoded again."""

    suffix, seconds, megabytes = ".pictures", 2.0, 200.0

    def __init__(self, place: Path) -> None:
        parts = ("train", "train", "train", "validation", "test", "test")
        self.digests = [str(i) * 64 for i in range(6)]
        files = tuple(Source(f"a/{i}.png", i % 2, part) for i, part in enumerate(parts))
        self.inventory = Inventory(("a", "b"), files, (LeftOut("a/x.txt", "no picture, .txt"),))
        self.stores = {}
        for size in (8, PACKED_FROM):
            entries = []
            for digest, levels in zip(self.digests, np.random.default_rng(0).bytes(6), strict=True):
                buffer = io.BytesIO()
                Image.linear_gradient("L").rotate(levels).resize((size + 9, size)).save(buffer, "PNG")
                body, shape, *_ = pictures.decode_bytes(buffer.getvalue(), size, "crop")
                entries.append((store.Record(digest, "", 9, 9, ("of one colour",), len(body), shape), body))
            store.write(place / f"original-{size}", entries)
            found = store.read(place / f"original-{size}", size, lambda records: range(6))
            assert found
            self.stores[size] = (place / f"original-{size}").read_bytes(), np.asarray(found[1])

    def make(self, rng: random.Random, path: Path) -> Any:
        size = rng.choice(list(self.stores))
        data, images = self.stores[size]
        if endless(rng, path, data):
            return "refused", (size, None)
        if rng.random() < 0.3:
            path.write_bytes(damaged(data, rng))
            return "", (size, images)
        form, length, _ = data[-store.LAST_LINE :].strip().rsplit(b" ", 2)
        bodies, known = data[: -store.LAST_LINE - int(length)], data[-store.LAST_LINE - int(length) : -store.LAST_LINE]
        altered = json.dumps(forged(json.loads(known), rng, RARE)).encode()
        line = b"\n%s %d %s" % (form, len(altered), hashlib.sha256(altered).hexdigest().encode())
        path.write_bytes(bodies + altered + line.rjust(store.LAST_LINE))
        return "", (size, None)

    def use(self, path: Path, original: Any) -> None:
        made: list[Listing] = []
        size, images = original

        def arrange(records: Sequence[store.Record]) -> Sequence[int]:
            listing, rows = folder.make_listing(self.inventory, self.digests, [""] * 6, records)
            made.append(listing)
            return rows

        found = store.read(path, size, arrange)
        if found is None:
            raise ValueError("damaged")
        if images is not None:
            rows = [self.digests.index(picture.digest) for picture in made[0].pictures]
            assert np.array_equal(np.asarray(found[1]), images[rows]), "other than what was written"
        assert all(line.isprintable() for line in made[0].summary())
        for part in PARTS:
            split = folder.part_of(path.parent, made[0], found[1], part)
            assert len(split.images) == len(split.labels) == len(split.files)
            assert split.labels.max() < len(split.classes)


class Picture:
    """A picture of a person's own, as training and gradcam.py --images read it."""

    suffix, seconds, megabytes = ".png", 10.0, 1500.0  # what 64 million pixels take

    def __init__(self, place: Path) -> None:
        rgb = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        self.files = []
        for form in pictures.formats():
            buffer = io.BytesIO()
            Image.fromarray(rgb).save(buffer, form)
            self.files.append(buffer.getvalue())
        for mode in ("P", "LA", "I;16", "1"):
            buffer = io.BytesIO()
            Image.fromarray(rgb[..., 0]).convert(mode).save(buffer, "PNG")
            self.files.append(buffer.getvalue())

    def make(self, rng: random.Random, path: Path) -> None:
        if rng.random() < 0.8:
            path.write_bytes(damaged(rng.choice(self.files), rng))
            return
        # A PNG whose header claims any size, type and depth, with right checksums.
        size = [rng.choice((0, 1, 40, 7999, 8001, 2**31 - 1)) for _ in range(2)]
        form = rng.choice((1, 2, 8, 16)), rng.choice((0, 2, 3, 4, 6)), 0, 0, rng.choice((0, 1))
        head = struct.pack(">IIBBBBB", *size, *form)
        pixels = zlib.compress(bytes(rng.choice((0, 1000, 10**7))))
        chunks = [(b"IHDR", head), (b"PLTE", bytes(6)), (b"tRNS", bytes(rng.randrange(4))), (b"IDAT", pixels)]
        chunks += [(b"tEXt", b"a\0" + bytes(10)), (b"zTXt", b"a\0\0" + zlib.compress(bytes(10**7))), (b"IEND", b"")]
        body = b"".join(
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
            for name, data in chunks
        )
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)

    def use(self, path: Path, content: Any) -> None:
        found = own_images.read([str(path)], 16, "pad")
        assert found.inputs.shape == (1, 3, 16, 16)


class Table:
    """A CSV file that names pictures, with the pictures."""

    suffix, seconds, megabytes = ".csv", 2.0, 200.0

    def __init__(self, place: Path) -> None:
        for i in range(6):
            Image.new("RGB", (9, 9), (i, i, i)).save(place / f"{i}.png")
        named = [[f"../../{i}.png", "ab"[i % 2], ("train", "test")[i // 3]] for i in range(6)]
        self.rows = [["path", "label", "split"], *named]

    def make(self, rng: random.Random, path: Path) -> Any:
        if endless(rng, path, b"path,label\na.png,b\n"):
            return "refused", None
        rows = forged(self.rows, rng, RARE)
        comma = rng.choice((",",) * 9 + (";",))
        text = "\n".join(comma.join(map(str, row)) if isinstance(row, list) else str(row) for row in rows)
        data = text.encode("utf-8", "surrogateescape")
        path.write_bytes(damaged(data, rng) if data and rng.random() < 0.4 else data)
        return None

    def use(self, path: Path, content: Any) -> None:
        with contextlib.redirect_stderr(io.StringIO()):
            train, test = open_dataset(str(path), 8).splits(False)
        assert len(train) and len(test)


class Measured:
    """A result of the bench, as compare takes it."""

    suffix, seconds, megabytes = ".json", 2.0, 200.0

    def __init__(self, place: Path) -> None:
        self.path = place / "original.json"
        rows = [record.Row("data", "DALI", "images/s", 10.0, 9.0, 11.0), record.Row("data", "wait", "s", note="none")]
        result = record.Result("bench", {"cpu": "x", "command": "c", "date": "d", "commit": "e"}, {"epochs": 1}, rows)
        self.content = {"format": record.FORMAT, "version": record.VERSION} | asdict(result)
        self.path.write_text(json.dumps(self.content))

    def make(self, rng: random.Random, path: Path) -> Any:
        if endless(rng, path, json.dumps(self.content).encode()):
            return "refused", None
        text = json.dumps(forged(self.content, rng, RARE) if rng.random() < 0.7 else self.content)
        path.write_bytes(damaged(text.encode(), rng) if rng.random() < 0.4 else text.encode())
        return None

    def use(self, path: Path, content: Any) -> None:
        with contextlib.redirect_stdout(io.StringIO()) as said:
            compare.main([str(self.path), str(path)])
        json.loads(said.getvalue().splitlines()[-1])


KINDS: dict[str, Any] = {
    "model": Model, "state": State, "weights": Weights, "cache": Cache, "picture": Picture,
    "table": Table, "measured": Measured,
}  # fmt: skip


def verdict(kind: Any, path: Path, made: Any) -> str:
    """What comes of reading a file: "right", "refused: what it was told", or the defect."""
    wanted, content = made or ("", None)
    began, before = time.process_time(), forgery.high_water()
    said = "right"
    try:
        kind.use(path, content)
    except (ValueError, OSError) as error:
        line = describe(error)
        said = f"refused: {line.replace(str(path), '')}" if line and line.isprintable() else f"no line: {line!r}"
    except BaseException as error:
        return f"{type(error).__name__}: {error} {' '.join(traceback.format_exc().split()[-40:])}"
    seconds, megabytes = time.process_time() - began, (forgery.high_water() - before) / 1e3
    if seconds > kind.seconds or megabytes > kind.megabytes:
        return f"dear: {seconds:.1f} s, {megabytes:.0f} MB"
    return said if said.startswith((wanted, "no line")) else f"it is {wanted}, but: {said}"


def guard(place: Path) -> None:
    """From now on, any write elsewhere, program or connection of this process is an error."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        paths: tuple[Any, ...] = ()
        if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            paths = arguments[:1]
        elif event in WRITING:
            paths = arguments[:2]
        named = [os.fsdecode(p) for p in paths if isinstance(p, str | bytes | os.PathLike)]
        inside = f"{place.resolve()}/"
        harmless = ("/dev/null", "/proc/self/clear_refs")
        if event in STARTING or any(p not in harmless and not os.path.realpath(p).startswith(inside) for p in named):
            raise SystemExit(f"{event} of {arguments[:2]!r:.200}")

    sys.addaudithook(hook)


def read_some(kind: Any, numbers: range, seed: str, place: Path) -> dict[int, str]:
    """The verdicts of these inputs; the process that reads them may end early, by the last one's fault."""
    found: dict[int, str] = {}
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        os.environ["CIFAR10_DIR"] = str(place)
        guard(place)
        for number in numbers:
            own = place / "own" / str(number)
            own.mkdir(parents=True)
            path = own / f"resume-00000005{kind.suffix}"
            made = kind.make(random.Random(f"{seed} {number}"), path)
            signal.alarm(60)
            os.write(writing, f"{number}\t{verdict(kind, path, made)!r}\n".encode(errors="replace"))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, errors="replace") as lines:
        for line in lines:
            at, _, said = line.partition("\t")
            found[int(at)] = said.strip().strip("'\"")
    shutil.rmtree(place / "own", ignore_errors=True)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        found[numbers[len(found)]] = f"the process ended with {code}"
    return found


def fuzz(name: str, inputs: int, seed: int, place: Path, kept: Path) -> dict[str, Any]:
    """Reads all inputs of a kind; counts of the verdicts and of the checks that refused."""
    place.mkdir()
    kind, began = KINDS[name](place), time.perf_counter()
    counts: Counter[str] = Counter()
    told: Counter[str] = Counter()
    number = 0
    while number < inputs:
        found = read_some(kind, range(number, min(number + CHUNK, inputs)), f"{name} {seed}", place)
        number += len(found)
        for one, said in found.items():
            outcome, _, words = said.partition(": ")
            if outcome in ("right", "refused"):
                counts[outcome] += 1
                words = re.sub(r"\d+", "N", words.rpartition("this version: ")[2])[:100].strip()
                told[words] += outcome == "refused"
                continue
            counts["defects"] += 1
            kept.mkdir(exist_ok=True)
            path = kept / f"{name}-{seed}-{one}{kind.suffix}"
            kind.make(random.Random(f"{name} {seed} {one}"), path)
            print(f"{path}: {said[:600]}", flush=True)
    result: dict[str, Any] = {"inputs": inputs, "right": 0, "refused": 0, "defects": 0} | counts
    result["seconds"] = round(time.perf_counter() - began, 1)
    print(f"{name}: {result}", flush=True)
    told = +told
    for words, count in told.most_common(MOST_TOLD):
        print(f"  {count:5} {words}", flush=True)
    print(f"  and {max(0, len(told) - MOST_TOLD)} more", flush=True)
    return result | {"checks": len(told)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Read forged and damaged files.")
    parser.add_argument("--inputs", type=int, default=1000, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(KINDS), help="kinds, with commas between")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "Duplicate name")
    root = Path(tempfile.mkdtemp(prefix="fuzz-"))
    kept = Path("fuzz-defects")
    results = {name: fuzz(name, options.inputs, options.seed, root / name, kept) for name in options.only.split(",")}
    shutil.rmtree(root)
    print(json.dumps(results))
    sys.exit(any(result["defects"] for result in results.values()))


if __name__ == "__main__":
    main()
