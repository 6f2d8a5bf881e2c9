"""engine/weights.py: torchvision's and timm's networks in ours and back, what is refused, and the download."""

import copy
import functools
import hashlib
import http.server
import io
import json
import pickle
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

import export
from deploy.classifier import Classifier
from deploy.formats import to_safetensors
from engine import checkpoint, weights
from engine.config import Config
from engine.convolution import use_torch_gradients
from engine.cost import training_flops
from engine.model import ResNet
from explain.explainer import Explainer
from run.pretrained import start_from
from tests.commands import call
from tests.forged import small_weights

SIDES = [64, *(pytest.param(side, marks=pytest.mark.slow) for side in (128, 224))]
DEPTHS = [18, pytest.param(34, marks=pytest.mark.slow)]
PUBLISHED = {18: models.ResNet18_Weights.IMAGENET1K_V1, 34: models.ResNet34_Weights.IMAGENET1K_V1}
V1 = PUBLISHED[18].transforms()


@functools.cache
def theirs(depth: int) -> nn.Module:
    """torchvision's network with random weights and statistics."""
    with torch.random.fork_rng():
        torch.manual_seed(depth)
        net = {18: models.resnet18, 34: models.resnet34}[depth](num_classes=7)
        for name, tensor in net.state_dict().items():
            if tensor.ndim == 1:
                tensor.uniform_(*((0.5, 1.5) if name.endswith(("weight", "var")) else (-1, 1)))
    return net


def archive(content: Any, **how: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **how)
    return buffer.getvalue()


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def as_parameters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As torchvision published them: parameters among them, and no counters."""
    kept = {name: tensor for name, tensor in state.items() if not name.endswith("tracked")}
    return OrderedDict((n, t if "running" in n else nn.Parameter(t)) for n, t in kept.items())


FORMS: dict[str, Callable[[Any], bytes]] = {
    "state_dict.pth": archive,
    "published.pth": lambda state: archive(as_parameters(state)),
    "wrapped.pth": lambda state: archive({"epoch": 3, "state_dict": prefixed(state, "module.")}),
    "timm.safetensors": lambda state: safetensors_bytes(dict(state), {"format": "pt"}),
    "prefixed.safetensors": lambda state: safetensors_bytes(prefixed(state, "model.")),
}


def read(path: Path, content: bytes, digest: str = "") -> checkpoint.Checkpoint:
    path.write_bytes(content)
    return weights.load(path, digest)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of width 4, whose files are small."""
    monkeypatch.setattr(weights, "WIDTH", 4)


def pictures(side: int, count: int = 4) -> Tensor:
    return torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(side))


def normalised(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (V1.mean, V1.std))
    return (images.double() / 255 - mean).div(std).float()


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


# The same network


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("depth", [18, 34])
def test_every_form_of_file_gives_the_same_tensors(depth: int, name: str, tmp_path: Path, narrow):
    state = small_weights(depth)
    loaded = read(tmp_path / name, FORMS[name](OrderedDict(state)))
    own = loaded.model.state_dict()
    assert {weights.torchvision_name(key) for key in own} == {*state, "mean", "std"}
    for key, tensor in own.items():
        if key not in ("mean", "std", "stem.1.num_batches_tracked") and "tracked" not in key:
            assert torch.equal(tensor, state[weights.torchvision_name(key)]), key
    assert (loaded.config.depth, loaded.config.stem, loaded.model.depth) == (depth, "imagenet", depth)
    assert name in loaded.model.origin and loaded.metrics["origin"] == loaded.model.origin


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_computes_what_torchvision_s_computes(depth: int, side: int, dtype: torch.dtype, tmp_path: Path):
    """Logits; then of a step in train mode logits, gradients and statistics. Rounding that differs would switch some
    ReLUs: so that is in float32 with torchvision's layout and gradients, and in float64 with ours."""
    net = copy.deepcopy(theirs(depth)).to(dtype)
    own = read(tmp_path / "theirs.pth", archive(theirs(depth).state_dict())).model.requires_grad_(True).to(dtype)
    images, labels = pictures(side), torch.arange(4)
    with torch.no_grad():
        assert relative(own(images), net.eval()(normalised(images).to(dtype))) <= 1e-5
    if dtype is torch.float32:
        own = own.to(memory_format=torch.contiguous_format)
        use_torch_gradients(own)
    results = []
    for model, inputs in ((own.train(), images), (net.train(), own.normalise(images))):
        logits = model(inputs)
        F.cross_entropy(logits, labels).backward()
        grads = {weights.torchvision_name(name): p.grad for name, p in model.named_parameters()}
        stats = {weights.torchvision_name(name): tensor.clone() for name, tensor in model.named_buffers()}
        results.append({"logits": logits.detach()} | grads | {n: t for n, t in stats.items() if "running" in n})
    names = {name for name in net.state_dict() if "tracked" not in name}
    assert results[0].keys() == results[1].keys() == {"logits"} | names
    for name, tensor in results[1].items():
        assert relative(results[0][name], tensor) <= 1e-5, name


@pytest.mark.parametrize("depth", DEPTHS)
def test_exported_back_torchvision_s_network_takes_every_tensor(depth: int, tmp_path: Path, monkeypatch):
    """By export.py, of a checkpoint of ours; and --pretrained takes that file again."""
    from safetensors.torch import load

    monkeypatch.chdir(tmp_path)
    start = read(tmp_path / "theirs.pth", archive(theirs(depth).state_dict()))
    config = replace(start.config, resolutions=(64,))
    checkpoint.save_model("model.pt", start.model, config, start.metrics)
    options = export.ExportOptions(ckpt="model.pt", out="model.safetensors", random=True, threads=1)
    facts = export.export(options)
    assert facts["stem"] == "imagenet" and "They started from theirs.pth (SHA-256 " in facts["licence"]
    net = {18: models.resnet18, 34: models.resnet34}[depth](num_classes=7)
    net.load_state_dict(load(Path("model.safetensors").read_bytes()))
    images = pictures(64)
    with torch.no_grad():
        assert relative(net.eval()(normalised(images)), theirs(depth).eval()(normalised(images))) == 0
    again = weights.load("model.safetensors").model.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in start.model.state_dict().items())


def test_the_constants_are_torchvision_s():
    for depth, published in PUBLISHED.items():
        assert weights.address(depth) == published.url and weights.prefix(depth) in published.url
        assert len(weights.prefix(depth)) == 8 and int(weights.prefix(depth), 16)
        assert (list(weights.MEAN), list(weights.STD)) == (published.transforms().mean, published.transforms().std)


def test_its_flops_are_torchvision_s():
    counter = FlopCounterMode(display=False)
    with counter:
        theirs(18).eval()(torch.zeros(1, 3, 64, 64)).sum().backward()
    theirs(18).zero_grad(set_to_none=True)
    assert training_flops(ResNet("abcdefg", stem="imagenet"), 64) == counter.get_total_flops()


def test_what_a_run_takes_over(tmp_path: Path, narrow):
    """ImageNet's mean and deviation, and all weights but the last layer's; of a 3x3 stem's network not these two."""
    learnt = read(tmp_path / "some.pth", archive(small_weights()))
    model = ResNet("ab", 18, 4, mean=(0.1, 0.1, 0.1), stem="imagenet")
    head = model.fc.weight.clone()
    start_from(model, learnt)
    assert torch.allclose(model.mean.flatten() / 255, torch.tensor(V1.mean))
    assert torch.allclose(model.std.flatten() / 255, torch.tensor(V1.std))
    assert torch.equal(model.get_parameter("stem.0.weight"), small_weights()["conv1.weight"])
    assert torch.equal(model.fc.weight, head) and model.origin == learnt.model.origin


# What is refused


class Runs:
    def __reduce__(self) -> Any:
        return print, ("it ran",)


def deflated(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return buffer.getvalue()


def changed(**tensors: Any) -> dict[str, Any]:
    """A state_dict with these tensors in place of its own; None: without."""
    new = small_weights() | {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in new.items() if tensor is not None}


def hidden() -> OrderedDict[str, Tensor]:
    """An OrderedDict whose own methods are hidden by what the pickle sets."""
    state = OrderedDict(small_weights())
    state.__dict__.update(values=3, get=3, keys=3)
    return state


WRONG: dict[str, tuple[Callable[[], bytes], str]] = {
    "resnet18d": (
        lambda: archive(changed(conv1__weight=None, conv1__0__weight=torch.zeros(2))),
        "it is a ResNet-D, as timm's resnet18d",
    ),
    "resnet50": (lambda: archive(changed(layer1__0__conv3__weight=torch.zeros(2))), "take ResNet-18 or 34"),
    "wide": (lambda: archive(changed(conv1__weight=torch.zeros(8, 3, 7, 7))), "its width is 8, not 4"),
    "cifar": (
        lambda: archive(changed(conv1__weight=torch.zeros(4, 3, 3, 3))),
        "conv1.weight is [4, 3, 3, 3] of torch.float32, not [4, 3, 7, 7] of",
    ),
    "less": (lambda: archive(changed(layer2__0__downsample__0__weight=None)), "no tensor layer2.0.downsample.0.weight"),
    "more": (lambda: archive(changed(layer2__0__se__weight=torch.zeros(2))), "1 tensors that a ResNet-18 has not"),
    "number": (lambda: archive(changed(bn1__bias=1.0)), "no tensor bn1.bias"),
    "scalar": (lambda: archive(changed(conv1__weight=torch.tensor(1.0))), "no tensor conv1.weight"),
    "double": (lambda: archive(changed(bn1__bias=torch.zeros(4).double())), "bn1.bias is [4] of torch.float64, not"),
    "half": (lambda: safetensors_bytes(changed(bn1__bias=torch.zeros(4).half())), "bn1.bias is [4] of torch.float16"),
    "nan": (lambda: archive(changed(bn1__bias=torch.full((4,), torch.nan))), "a number in a tensor is not finite"),
    "nan.st": (lambda: safetensors_bytes(changed(bn1__bias=torch.full((4,), torch.inf))), "is not finite"),
    "shared": (lambda: archive(changed(bn1__bias=torch.zeros(1).expand(4))), "a tensor has another size"),
    "list": (lambda: archive([torch.zeros(2)]), "it cannot be parsed"),
    "empty": (lambda: archive({}), "no tensor conv1.weight"),
    "hidden": (lambda: archive(hidden()), "it cannot be parsed"),
    "whole": (lambda: archive(models.resnet18()), "its pickle has a key or a call that no checkpoint has"),
    "runs": (lambda: archive({"conv1.weight": Runs()}), "its pickle has a key or a call"),
    "bare": (lambda: pickle.dumps(Runs()), "neither torch's nor safetensors' file"),
    "old": (lambda: archive(small_weights(), _use_new_zipfile_serialization=False), "it is of torch before 1.6"),
    "deflated": (lambda: deflated(archive(small_weights())), "its end is missing"),
    "cut": (lambda: archive(small_weights())[:-1000], "is damaged: its end is missing"),
    "cut.st": (lambda: safetensors_bytes(small_weights())[:-1000], "it cannot be parsed"),
    "header.st": (lambda: (2**40).to_bytes(8, "little") + b"{" * 100, "neither torch's nor safetensors' file"),
    "nothing": (lambda: b"", "neither torch's nor safetensors' file"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_such_network_is_refused_in_a_line(name: str, tmp_path: Path, narrow, capsys):
    make, words = WRONG[name]
    with pytest.raises(ValueError, match="^" + str(tmp_path / name)) as caught:
        read(tmp_path / name, make())
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_a_hole_and_a_huge_file_are_refused_unread(tmp_path: Path, narrow, monkeypatch):
    header = json.dumps({"conv1.weight": {"dtype": "F32", "shape": [2**22], "data_offsets": [0, 2**24]}}).encode()
    path = tmp_path / "hole.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with path.open("r+b") as file:
        file.truncate(8 + len(header) + 2**24)
    with pytest.raises(ValueError, match="most of it is a hole"):
        weights.load(path)
    monkeypatch.setattr(weights, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="more than 1,000 bytes"):
        weights.load(path)


def test_a_checkpoint_of_ours_is_read_as_one(tmp_path: Path):
    config = Config(width=4, stem="strided")
    checkpoint.save_model(tmp_path / "model.pt", ResNet("ab", 18, 4), config, {"test_total": 3})
    assert weights.load(tmp_path / "model.pt").metrics == {"test_total": 3}


# The download


class Server(http.server.BaseHTTPRequestHandler):
    """Gives `content`; of `answers` the first, as it says."""

    running: http.server.ThreadingHTTPServer
    content = b""
    answers: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        answer = self.answers.pop(0) if self.answers else "right"
        content = {"other": archive(small_weights(34)), "none": b""}.get(answer, self.content)
        self.send_response(404 if answer == "none" else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if answer in ("cut", "stalled") else content)
        if answer == "stalled":
            self.wfile.flush()
            STALLED.wait(20)

    def log_message(self, *words: Any) -> None: ...


STALLED = threading.Event()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, narrow) -> Iterator[Path]:
    """torch's cache, where torchvision's file lies at a server of ours; the working folder is empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(weights, "STALL_SECONDS", 0.5)
    Server.content, Server.answers = archive(as_parameters(small_weights())), []
    STALLED.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    name = f"resnet18-{hashlib.sha256(Server.content).hexdigest()[:8]}.pth"
    monkeypatch.setattr(weights, "address", lambda depth: f"http://127.0.0.1:{server.server_port}/{name}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Server.running = server
    yield tmp_path / "torch" / "hub" / "checkpoints" / name
    STALLED.set()
    stop()
    thread.join()


def stop() -> None:
    Server.running.shutdown()
    Server.running.server_close()


RUN = "smoke --data generated:64/64 --epochs 2 --resolutions 32 --precision fp32 --threads 1".split()
FROM = [*RUN, "--pretrained", "imagenet"]


def test_a_run_from_imagenet_and_from_its_state(cache: Path, capsys):
    """It is fetched once, and not needed to go on: weights and origin are the same."""
    flags = ["--checkpoint-every", "0", "--out", "whole.pt", "--run-dir"]
    code, out, err = call(capsys, *FROM, *flags, "whole")
    assert code == 0 and err == f"fetching {weights.address(18)}\n"
    whole = checkpoint.load("whole.pt")
    assert " ".join(out.split()).count(f"started from {whole.model.origin}") == 1
    assert json.loads(out.splitlines()[-1])["origin"] == whole.metrics["origin"] == whole.model.origin
    assert whole.model.origin.startswith(f"torchvision's {cache.name} (ImageNet; licence stated: BSD-3-Clause")
    config = whole.config
    assert (config.stem, config.width, config.whiten, config.dirac) == ("imagenet", 4, False, False)
    assert torch.allclose(whole.model.mean.flatten() / 255, torch.tensor(V1.mean))
    assert whole.model.origin in str(Explainer.of(whole, "cpu", threads=1))
    for state in sorted(Path("whole").glob("resume-*.pt"))[1:]:
        state.unlink()
    cache.unlink()
    assert call(capsys, *FROM, "--resume", "whole", "--out", "again.pt")[0] == 0
    again = checkpoint.load("again.pt")
    assert again.model.origin == whole.model.origin
    assert all(map(torch.equal, again.model.state_dict().values(), whole.model.state_dict().values()))


def refusal(capsys) -> str:
    """The line of a run that does not start, after the one that it fetches."""
    code, _, err = call(capsys, *FROM)
    assert code == 2 and not Path("runs").exists()
    return err.replace(f"fetching {weights.address(18)}\n", "")


@pytest.mark.parametrize(
    ("answer", "words"),
    [("other", "invalid hash value"), ("cut", "invalid hash value"), ("stalled", "timed out"), ("none", "404")],
)
def test_a_download_that_fails_leaves_nothing_and_the_next_one_is_whole(answer: str, words: str, cache: Path, capsys):
    Server.answers = [answer]
    line = refusal(capsys)
    assert words in line and line.count("\n") == 1
    assert line.endswith(f"run it again, or put that file into {cache.parent}\n") and weights.address(18) in line
    assert list(cache.parent.iterdir()) == []
    assert weights.load(weights.fetched(18), weights.prefix(18)).config.depth == 18
    assert cache.read_bytes() == Server.content and len(list(cache.parent.iterdir())) == 1


def test_without_a_server_the_line_says_what_belongs_where(cache: Path, capsys):
    stop()
    line = refusal(capsys)
    assert line.startswith(f"train.py: {weights.address(18)} could not be fetched (") and line.count("\n") == 1
    assert f"put that file into {cache.parent}" in line and list(cache.parent.iterdir()) == []
    cache.write_bytes(Server.content)
    assert weights.load(weights.fetched(18), weights.prefix(18)).config.depth == 18


def test_a_forged_file_in_the_cache_is_named(cache: Path, capsys):
    cache.parent.mkdir(parents=True)
    forged = archive(changed(bn1__bias=torch.ones(4)))
    cache.write_bytes(forged)
    line = refusal(capsys)
    assert line.startswith(f"train.py: {cache} is damaged or forged: its SHA-256 begins with ")
    assert f"that of the published one with {weights.prefix(18)}: remove it" in line and line.count("\n") == 1
    assert cache.read_bytes() == forged


def test_weights_alone_of_a_small_network_are_exported_and_taken(tmp_path: Path, narrow):
    own = ResNet("abc", 34, 4, stem="imagenet", mean=V1.mean, std=V1.std)
    content = to_safetensors(Classifier(own, 64), {"stem": "imagenet"})
    loaded = read(tmp_path / "m.safetensors", content)
    assert loaded.config.depth == 34 and len(loaded.model.classes) == 3
