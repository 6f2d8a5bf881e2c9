"""engine/weights.py: torchvision's networks in ours and back, what is refused, and the download."""

import copy
import functools
import hashlib
import http.server
import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load as of_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn
from torchvision import models

import export
from engine import checkpoint, weights
from engine.convolution import use_torch_gradients
from engine.model import ResNet
from explain.explainer import Explainer
from run.pretrained import start_from
from tests.commands import call
from tests.forged import small_weights

SIDES = [64, *(pytest.param(side, marks=pytest.mark.slow) for side in (128, 224))]
DEPTHS = [18, pytest.param(34, marks=pytest.mark.slow)]
MAKE = {18: models.resnet18, 34: models.resnet34}
V1 = models.ResNet18_Weights.IMAGENET1K_V1.transforms()


@functools.cache
def theirs(depth: int) -> nn.Module:
    """torchvision's network with random weights and statistics."""
    with torch.random.fork_rng():
        torch.manual_seed(depth)
        net = MAKE[depth](num_classes=7)
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


def as_published(state: dict[str, Tensor]) -> bytes:
    """With parameters, and without counters, as torchvision's."""
    kept = {n: t if "running" in n else nn.Parameter(t) for n, t in state.items() if t.ndim}
    return archive(OrderedDict(kept))


FORMS: dict[str, Callable[[Any], bytes]] = {
    "state_dict.pth": lambda state: archive(OrderedDict(state)),
    "published.pth": as_published,
    "wrapped.pth": lambda state: archive({"epoch": 3, "state_dict": prefixed(state, "module.")}),
    "timm.safetensors": lambda state: to_safetensors(state, {"format": "pt"}),
    "prefixed.safetensors": lambda state: to_safetensors(prefixed(state, "model.")),
}


def read(path: Path, content: bytes) -> checkpoint.Checkpoint:
    path.write_bytes(content)
    return weights.load(path)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of width 4, whose files are small."""
    monkeypatch.setattr(weights, "WIDTH", 4)


def pictures(side: int) -> Tensor:
    generator = torch.Generator().manual_seed(side)
    return torch.randint(256, (4, 3, side, side), dtype=torch.uint8, generator=generator)


def normalised(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (V1.mean, V1.std))
    return (images.double() / 255 - mean).div(std).float()


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("depth", [18, 34])
def test_every_form_of_file_gives_the_same_tensors(depth: int, name: str, tmp_path: Path, narrow):
    state = small_weights(depth)
    loaded = read(tmp_path / name, FORMS[name](state))
    own = {weights.torchvision_name(k): v for k, v in loaded.model.state_dict().items()}
    assert own.keys() == {*state, "mean", "std"}
    assert all(torch.equal(own[key], tensor) for key, tensor in state.items())
    assert (loaded.config.depth, loaded.config.stem) == (depth, "imagenet")
    assert loaded.model.origin.startswith(f"{name} (SHA-256 ")


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_computes_what_torchvision_s_computes(depth, side, dtype, tmp_path: Path):
    """Logits; of a step in train mode logits, gradients and statistics. Other rounding would switch
    ReLUs: so this is in float32 with torchvision's layout and gradients, in float64 with ours."""
    net = copy.deepcopy(theirs(depth)).to(dtype)
    own = read(tmp_path / "theirs.pth", archive(theirs(depth).state_dict())).model
    own.requires_grad_(True).to(dtype)
    images, labels = pictures(side), torch.arange(4)
    with torch.no_grad():
        assert relative(own(images), net.eval()(normalised(images).to(dtype))) <= 1e-5
    if dtype is torch.float32:
        own.to(memory_format=torch.contiguous_format)
        use_torch_gradients(own)
    results = []
    for model, inputs in ((own.train(), images), (net.train(), own.normalise(images))):
        logits = model(inputs)
        F.cross_entropy(logits, labels).backward()
        found = {name: p.grad for name, p in model.named_parameters()} | {"logits": logits.detach()}
        found |= {name: tensor for name, tensor in model.named_buffers() if "running" in name}
        results.append({weights.torchvision_name(name): tensor for name, tensor in found.items()})
    assert results[1].keys() == {"logits", *(k for k in net.state_dict() if "tracked" not in k)}
    assert results[0].keys() == results[1].keys()
    for name, tensor in results[1].items():
        assert relative(results[0][name], tensor) <= 1e-5, name


@pytest.mark.parametrize("depth", DEPTHS)
def test_exported_back_torchvision_s_network_takes_it(depth: int, tmp_path: Path, monkeypatch):
    """Every tensor, from export.py's file of a checkpoint; --pretrained takes that file again."""
    monkeypatch.chdir(tmp_path)
    start = read(Path("theirs.pth"), archive(theirs(depth).state_dict()))
    config = replace(start.config, resolutions=(64,))
    checkpoint.save_model("model.pt", start.model, config, start.metrics)
    out, net = "model.safetensors", MAKE[depth](num_classes=7).eval()
    facts = export.export(export.ExportOptions(ckpt="model.pt", out=out, random=True, threads=1))
    assert facts["stem"] == "imagenet" and start.model.origin in facts["licence"]
    net.load_state_dict(of_safetensors(Path(out).read_bytes()))
    inputs = normalised(pictures(64))
    with torch.no_grad():
        assert torch.equal(net(inputs), theirs(depth).eval()(inputs))
    again = weights.load(out).model.state_dict()
    assert all(torch.equal(t, again[name]) for name, t in start.model.state_dict().items())


def test_the_address_holds_the_digest():
    for depth in MAKE:
        url = weights.address(depth)
        assert f"/resnet{depth}-" in url and url.endswith(f"-{weights.prefix(depth)}.pth")
        assert len(weights.prefix(depth)) == 8 and int(weights.prefix(depth), 16)


def changed(**tensors: Any) -> dict[str, Any]:
    """A state_dict with these tensors in place of its own; None: without."""
    new = small_weights() | {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in new.items() if tensor is not None}


def hidden() -> OrderedDict[str, Tensor]:
    """Its own methods are hidden by what its pickle sets."""
    state = OrderedDict(small_weights())
    state.__dict__.update(values=3, get=3, keys=3)
    return state


class Runs:
    def __reduce__(self) -> Any:
        return print, ("it ran",)


ONE, FOUR = torch.zeros(1), torch.zeros(4)
WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "resnet18d": (lambda: changed(conv1__weight=None, conv1__0__weight=ONE), "it is a ResNet-D"),
    "resnet50": (lambda: changed(layer1__0__conv3__weight=ONE), "from ResNet-50 on: take 18 or 34"),
    "wide": (lambda: changed(conv1__weight=torch.zeros(8, 3, 7, 7)), "its width is 8, not 4"),
    "cifar": (lambda: changed(conv1__weight=torch.zeros(4, 3, 3, 3)), "not [4, 3, 7, 7] of torch"),
    "less": (lambda: changed(bn1__weight=None), "it has no tensor bn1.weight"),
    "more": (lambda: changed(layer2__0__se__weight=ONE), "1 tensors that a ResNet-18 has not"),
    "double": (lambda: changed(bn1__bias=FOUR.double()), "bn1.bias is [4] of torch.float64, not"),
    "half": (lambda: to_safetensors(changed(bn1__bias=FOUR.half())), "is [4] of torch.float16"),
    "nan": (lambda: changed(bn1__bias=FOUR / 0), "a number in a tensor is not finite"),
    "nan.st": (lambda: to_safetensors(changed(bn1__bias=FOUR / 0)), "in a tensor is not finite"),
    "hidden": (hidden, "it cannot be parsed"),
    "runs": (lambda: {"conv1.weight": Runs()}, "its pickle has a key or a call"),
    "old": (lambda: archive({}, _use_new_zipfile_serialization=False), "it is of torch before 1.6"),
    "cut": (lambda: archive(small_weights())[:-1000], "is damaged: its end is missing"),
    "cut.st": (lambda: to_safetensors(small_weights())[:-1000], "it cannot be parsed"),
    "header.st": (lambda: (2**40).to_bytes(8, "little") + b"{" * 100, "it is neither torch's"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_such_network_is_refused_in_a_line(name: str, tmp_path: Path, narrow, capsys):
    make, words = WRONG[name]
    content = make()
    with pytest.raises(ValueError, match="^" + str(tmp_path / name)) as caught:
        read(tmp_path / name, content if isinstance(content, bytes) else archive(content))
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


class Server(http.server.BaseHTTPRequestHandler):
    """Gives `content`, but to the first request what `first` says."""

    running: http.server.ThreadingHTTPServer
    content: ClassVar[bytes] = b""
    first: ClassVar[str] = ""
    stalled = threading.Event()

    def do_GET(self) -> None:
        answer, Server.first = Server.first, ""
        content = archive({}) if answer == "other" else self.content
        self.send_response(404 if answer == "none" else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if answer in ("cut", "stalled") else content)
        if answer == "stalled":
            self.stalled.wait(20)

    def log_message(self, *words: Any) -> None: ...


def stop() -> None:
    Server.running.shutdown()
    Server.running.server_close()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, narrow) -> Iterator[Path]:
    """The place in torch's cache of a file that a server here has."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(weights, "STALL_SECONDS", 0.5)
    monkeypatch.chdir(tmp_path)
    Server.content, Server.first = as_published(small_weights()), ""
    Server.stalled.clear()
    Server.running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    name = f"resnet18-{hashlib.sha256(Server.content).hexdigest()[:8]}.pth"
    url = f"http://127.0.0.1:{Server.running.server_port}/{name}"
    monkeypatch.setattr(weights, "address", lambda depth: url)
    threading.Thread(target=Server.running.serve_forever, args=[0.01]).start()
    yield tmp_path / "torch" / "hub" / "checkpoints" / name
    Server.stalled.set()
    stop()


FROM = "smoke --data generated:64/64 --resolutions 32 --threads 1 --pretrained imagenet".split()


def test_a_run_from_imagenet_and_from_its_state(cache: Path, capsys):
    """It is fetched once, and not needed to go on: weights and origin are the same."""
    flags = ["--checkpoint-every", "0", "--out", "whole.pt", "--run-dir", "run"]
    code, out, err = call(capsys, *FROM, *flags)
    assert code == 0 and err == f"fetching {weights.address(18)}\n"
    whole, learnt = checkpoint.load("whole.pt"), weights.load(cache)
    origin = f"torchvision's {cache.name} (ImageNet; licence stated: BSD-3-Clause, of the code)"
    assert whole.metrics["origin"] == whole.model.origin == origin
    assert f"started from {origin} {{" in " ".join(out.split())
    assert f"started from {origin}" in str(Explainer.of(whole, "cpu", threads=1))
    config = whole.config
    assert (config.stem, config.width, config.whiten, config.dirac) == ("imagenet", 4, False, False)
    start_from(started := ResNet("ab", width=4, stem="imagenet"), learnt)
    assert torch.equal(started.get_parameter("stem.0.weight"), small_weights()["conv1.weight"])
    for model in (whole.model, started):
        assert (model.mean.flatten() / 255).tolist() == pytest.approx(V1.mean)
        assert (model.std.flatten() / 255).tolist() == pytest.approx(V1.std)
    for state in sorted(Path("run").glob("resume-*.pt"))[1:]:
        state.unlink()
    cache.unlink()
    assert call(capsys, *FROM, "--resume", "run", "--out", "again.pt")[0] == 0
    again = checkpoint.load("again.pt").model
    assert again.origin == origin
    assert all(map(torch.equal, again.state_dict().values(), whole.model.state_dict().values()))


FORGED = archive(changed(bn1__bias=FOUR))
FAILURES = {
    "other": "invalid hash value", "cut": "invalid hash value", "stalled": "timed out", "none": "404",
    "no server": "Connection refused", "forged": "is damaged or forged: its SHA-256 begins with ",
}  # fmt: skip


@pytest.mark.parametrize("first", FAILURES)
def test_what_cannot_be_fetched_is_a_line_and_leaves_nothing(first: str, cache: Path, capsys):
    """The next attempt is whole, or a file that a person has put there."""
    Server.first = first
    cache.parent.mkdir(parents=True)
    if first == "forged":
        cache.write_bytes(FORGED)
    elif first == "no server":
        stop()
    code, _, err = call(capsys, *FROM)
    line = err.removeprefix(f"fetching {weights.address(18)}\n")
    assert (code, line.count("\n")) == (2, 1) and FAILURES[first] in line
    if first == "forged":
        assert line.startswith(f"train.py: {cache} is ") and cache.read_bytes() == FORGED
        return
    assert f"or put that file into {cache.parent}\n" in line and weights.address(18) in line
    assert list(cache.parent.iterdir()) == []
    if first == "no server":
        cache.write_bytes(Server.content)
    assert weights.load(weights.fetched(18), weights.prefix(18)).config.depth == 18
    assert cache.read_bytes() == Server.content and len(list(cache.parent.iterdir())) == 1
