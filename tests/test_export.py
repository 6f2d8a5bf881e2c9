"""export.py: each kind of file opened again without this project's code, what is refused, and the examples."""

import copy
import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors
import torch
from PIL import Image
from torch import nn

import export
import train
from deploy import formats
from deploy.classifier import Classifier
from engine import checkpoint, known
from engine.config import Config
from engine.features import pooled
from engine.machine import Machine
from engine.model import ResNet, resize
from explain.cam import class_maps, display
from ground.entry import execute
from pipeline.dataset import open_dataset
from pipeline.pictures import decode
from tests.browser import Browser, browsers
from tests.cases import CLASSES

ROOT = Path(__file__).resolve().parent.parent
DATA = "generated:512/300"


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of few epochs: pictures of 32 pixels, a network at 16; it knows half of them."""
    folder, threads = tmp_path_factory.mktemp("trained"), torch.get_num_threads()
    flags = "smoke --epochs 2 --resolutions 16 --batch-size 32 --device cpu --precision fp32 --threads 1"
    train.main([*flags.split(), "--data", DATA, "--out", f"{folder}/model.pt", "--run-dir", f"{folder}/run"])
    torch.set_num_threads(threads)
    loaded = checkpoint.load(folder / "model.pt")
    test = open_dataset(DATA).load("test")
    inputs = resize(torch.tensor(test.images).permute(0, 3, 1, 2), 16), torch.tensor(test.labels)
    found = known.fit_known(loaded.model, [inputs], [inputs], 1.0, Machine(torch.device("cpu")))
    assert found is not None and loaded.metrics["temperature"] == 1
    middle = int(known._bins(loaded.model.predict(torch.tensor(test.images)).amax(1)).median())
    answers = torch.zeros(2, known.BINS, dtype=torch.int64)
    answers[:, middle], answers[0, middle - 1] = 1000, 1000  # right from the middle on, wrong below
    found = replace(found, answers=answers, total=2000)
    kept = loaded.model, loaded.config, loaded.metrics
    checkpoint.save_model(folder / "model.pt", *kept, None, found)
    return folder / "model.pt"


@pytest.fixture(scope="module")
def net(ckpt: Path) -> ResNet:
    return checkpoint.load_model(ckpt)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return open_dataset(DATA).load("test").images


@pytest.fixture(scope="module")
def model(ckpt: Path) -> Path:
    """The checkpoint as ONNX with maps and features."""
    out = str(ckpt.with_suffix(".onnx"))
    export.export(
        export.ExportOptions(ckpt=str(ckpt), out=out, maps=True, features=True, threads=1)
    )
    return ckpt.with_suffix(".onnx")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ckpt: Path, tmp_path: Path) -> Any:
    """export.py in an empty folder: the exit code, what the last line says, and stderr."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> tuple[int, dict[str, Any], str]:
        monkeypatch.setattr(sys, "argv", ["export.py", "--ckpt", str(ckpt), "--threads", "1", *arguments])
        with pytest.raises(SystemExit) as stopped:
            execute(export.main, "export.py")
        out, err = capsys.readouterr()
        code = int(stopped.value.code or 0)
        return code, json.loads(out.splitlines()[-1]) if code == 0 else {}, err

    return command


def knows(ckpt: Path, images: np.ndarray) -> np.ndarray:
    """(N,) whether the checkpoint knows."""
    loaded, inputs = checkpoint.load(ckpt), torch.tensor(images)
    assert loaded.known is not None
    small = resize(inputs.permute(0, 3, 1, 2), loaded.model.resolution)
    features = pooled(loaded.model, small, Machine(torch.device("cpu")))
    return loaded.known.keep(0.98)(features, loaded.model.predict(inputs)).numpy()


def expected(net: ResNet, images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities, class maps and averages of layer4, by the checkpoint."""
    inputs = torch.tensor(images)
    with torch.no_grad():
        layer4 = net.features(resize(inputs.permute(0, 3, 1, 2), net.resolution))
        maps, features = class_maps(layer4, net.fc), layer4.flatten(2).mean(2)
    return net.predict(inputs).numpy(), maps.numpy(), features.numpy()


# ONNX


@pytest.mark.parametrize("count", [1, 7, 300])
def test_onnxruntime_gives_what_the_checkpoint_gives_for_any_number_of_images(model, ckpt, net, images, count):
    session = onnxruntime.InferenceSession(str(model))
    assert [one.shape for one in session.get_inputs()] == [["N", 32, 32, 3]]
    names = ["probabilities", "maps", "features", "known"]
    assert [one.name for one in session.get_outputs()] == names
    probabilities, maps, features, sure = session.run(None, {"images": images[:count]})
    assert sure.dtype == bool and np.array_equal(sure, knows(ckpt, images[:count]))
    assert count == 1 or 0.2 < sure.mean() < 0.8
    assert probabilities.shape == (count, 10) and maps.shape == (count, 10, 2, 2)
    own = expected(net, images[:count])
    assert np.abs(probabilities - own[0]).max() <= 1e-5
    assert np.abs(maps - own[1]).max() <= 1e-4
    assert features.shape == (count, 64) and np.abs(features - own[2]).max() <= 1e-4


def test_the_file_says_what_it_is(model: Path, ckpt: Path):
    session = onnxruntime.InferenceSession(str(model))
    facts = session.get_modelmeta().custom_metadata_map
    metrics = checkpoint.load(ckpt).metrics
    assert json.loads(facts["classes"]) == list(CLASSES)
    assert (facts["size"], facts["fit"], float(facts["accuracy"])) == ("32", "crop", metrics["test_accuracy"])
    assert facts["accuracy_on"] == f"300 test images of {DATA}, by the checkpoint in fp32"
    assert facts["checkpoint_sha256"] == hashlib.sha256(ckpt.read_bytes()).hexdigest()
    assert "MIT" in facts["licence"] and facts["stem"] == "small"
    promise = json.loads(facts["promise"])
    assert (promise["promise"], promise["fit_answered"], promise["fitted_on"]) == (0.98, 1000, 2000)
    content = onnx.load(model)
    assert [one.version for one in content.opset_import if one.domain == ""] == [formats.OPSET]
    assert {node.domain for node in content.graph.node} == {""}  # no operator but ONNX's own


@pytest.mark.parametrize(("side", "resolution"), [(32, 28), (32, 16), (64, 48), (24, 32), (32, 32)])
def test_resizing_by_products_is_torchs_to_the_last_bit(side: int, resolution: int):
    images = torch.randint(0, 256, (20, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model = ResNet("ab", width=1, resolution=resolution).eval()
    with torch.no_grad():
        assert torch.equal(Classifier(model, side)(images)[0], model.predict(images))


def test_int8_is_smaller_and_its_own_accuracy_stands_in_the_file(run, model: Path, images, ckpt):
    code, result, err = run("--out", "small.onnx", "--int8", "--features")
    assert (code, err) == (0, "")
    rows = result["measured"]
    labels = open_dataset(DATA).load("test").labels
    session = onnxruntime.InferenceSession("small.onnx")
    probabilities, features, _ = session.run(None, {"images": images})
    accuracy = float((probabilities.argmax(1) == labels).mean())
    assert session.get_modelmeta().custom_metadata_map["accuracy"] == str(rows["int8"]["accuracy"]) == str(accuracy)
    assert abs(accuracy - rows["float32"]["accuracy"]) <= 0.02 and rows["float32"]["accuracy"] > 0.5
    assert rows["float32"]["accuracy"] == rows["checkpoint"]["accuracy"]
    weights = onnx.load("small.onnx").graph.initializer
    kinds = {one.name: one.data_type for one in weights if len(one.dims) == 4 and len(one.name) > 9}
    assert len(kinds) == 20 and set(kinds.values()) == {onnx.TensorProto.INT8}
    assert Path("small.onnx").stat().st_size < 0.6 * model.stat().st_size
    own = expected(checkpoint.load_model(ckpt), images)[2]
    lengths = np.linalg.norm(features, axis=1) * np.linalg.norm(own, axis=1)
    assert ((features * own).sum(1) / lengths).min() > 0.98


# The other kinds


@pytest.mark.slow
def test_a_torch_export_file_gives_what_the_checkpoint_gives(run, ckpt, net, images):
    assert run("--out", "model.pt2", "--maps", "--features")[0] == 0
    extra = {"facts.json": ""}
    program = torch.export.load("model.pt2", extra_files=extra)
    assert json.loads(json.loads(extra["facts.json"])["classes"]) == list(CLASSES)
    for count in (1, 7):
        *found, sure = program.module()(torch.tensor(images[:count]))
        assert np.array_equal(sure.numpy(), knows(ckpt, images[:count]))
        for one, own in zip(found, expected(net, images[:count]), strict=True):
            assert np.abs(one.detach().numpy() - own).max() <= 1e-5


def test_torchvisions_resnet18_takes_the_weights():
    from safetensors.torch import load
    from torchvision.models import resnet18

    with torch.random.fork_rng():
        torch.manual_seed(0)
        own = ResNet(CLASSES, mean=(0.1, 0.2, 0.3)).eval()
    content = formats.to_safetensors(Classifier(own, 32), {"size": "32"})
    theirs = resnet18(num_classes=10)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    theirs.load_state_dict(load(content))  # every name, and no other
    facts = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    mean, std = (torch.tensor(json.loads(facts[name])) for name in ("mean", "std"))
    images = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = theirs.eval()(((images - mean) / std).permute(0, 3, 1, 2))
    assert float((logits.softmax(1) - own.predict(images)).abs().max()) <= 1e-6


def test_weights_alone_are_checked_too_and_nothing_wrong_is_written(run, net: ResNet, monkeypatch: pytest.MonkeyPatch):
    code, result, _ = run("--out", "model.safetensors")
    assert code == 0 and result["largest_difference"] == 0
    with safetensors.safe_open("model.safetensors", "numpy") as file:
        assert json.loads(file.metadata()["classes"]) == list(CLASSES)
        assert np.array_equal(file.get_tensor("conv1.weight"), net.get_parameter("stem.0.weight").numpy())
    before = Path("model.safetensors").read_bytes()
    real = formats.to_safetensors

    def spoilt(model: Classifier, facts: dict[str, str]) -> bytes:
        other = copy.deepcopy(model)
        other.net.get_parameter("layer4.1.conv2.weight").mul_(1.01)
        return real(other, facts)

    monkeypatch.setattr(formats, "to_safetensors", spoilt)
    code, _, err = run("--out", "model.safetensors")
    assert code == 2 and err.startswith("export.py: the file differs from the checkpoint by ") and err.count("\n") == 1
    assert Path("model.safetensors").read_bytes() == before


# Refusals


# Of the maps, whose bound is a share of their largest value; maps of zeros alone must be zeros.
@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 1e6])
@pytest.mark.parametrize("output", [0, 1, 2])
def test_a_difference_beyond_the_tolerance_is_refused(net: ResNet, images: np.ndarray, output: int, scale: float):
    net = copy.deepcopy(net)
    net.fc.weight.data.mul_(scale)
    own = expected(net, images[:20])
    unit = np.abs(own[output]).max() if output else 1

    def run_with(change: float) -> float:
        other = [one.copy() for one in own]
        other[output][3, 2] += change * (unit or 1)
        return formats.checked(lambda images: other, net, images[:20])

    assert run_with(0) == 0
    if unit:
        assert run_with(0.9e-4) == pytest.approx(0.9e-4, rel=1e-2)
    for change in (1.1e-4, float("nan")):
        with pytest.raises(ValueError, match="differs from the checkpoint"):
            run_with(change)


def test_a_file_that_knows_others_is_refused(ckpt: Path, net: ResNet, images: np.ndarray):
    kept = checkpoint.load(ckpt).known
    assert kept is not None

    def difference(wrong: int) -> float:
        sure = knows(ckpt, images[:150])
        sure[:wrong] ^= True
        outputs = [*expected(net, images[:150]), sure]
        return formats.checked(lambda images: outputs, net, images[:150], kept.keep())

    assert difference(1) == 0  # it may lie on the border
    with pytest.raises(ValueError, match="knows others than the checkpoint, 2 of 150 images"):
        difference(2)


def test_what_does_not_fit_into_one_onnx_file_is_named(net: ResNet, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(formats, "MOST_BYTES", 100_000)
    with pytest.raises(ValueError, match="use --out model"):
        formats.to_onnx(Classifier(net, 32), {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "model.tflite"], "its name must end in .onnx, .pt2, .safetensors, .npz"),
        (["--out", "model.pt2", "--int8"], "with --int8 its name must end in .onnx"),
        (["--out", "model.safetensors", "--maps"], "weights alone give no --maps"),
        (["--out", "model.safetensors", "--features"], "and no --features"),
        (["--out", "x.npz", "--features"], "x.npz: leave --maps, --features and --random out"),
        (["--out", "x.npz", "--data", "nowhere"], "nowhere: No such file"),
        (["--out", "x.npz", "--data", "bad"], "is a picture that can be read: bad/a.png"),
        (["--out", "mine.npz"], "mine.npz would be overwritten, and is not of this program"),
        (["--threads", "-1"], "it must be 0 to 1024"),
        (["--ckpt", "no.pt"], "no.pt: no such checkpoint"),
        (["--ckpt", "text.pt"], "text.pt is not a model checkpoint"),
        (["--out", "no/model.onnx"], "no/model.onnx: its folder cannot be written"),
        (["--out", "folder.onnx"], "folder.onnx: it is a folder"),
        (["--out", "mine.onnx"], "mine.onnx would be overwritten, and is not of this program: move it"),
        (["--ckpt", "ckpt.onnx", "--out", "ckpt.onnx"], "ckpt.onnx is what this command reads"),
    ],
)
def test_mistakes_get_one_message_and_exit_code_2(run, ckpt, tmp_path: Path, arguments: list[str], message: str):
    contents = {"text.pt": b"no checkpoint", "mine.onnx": b"mine", "ckpt.onnx": ckpt.read_bytes()}
    contents["mine.npz"] = b"mine"
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_text("no picture")
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder.onnx").mkdir()
    code, _, err = run(*arguments)
    assert code == 2 and message in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == contents


@pytest.mark.parametrize("suffix", [".onnx", ".safetensors", pytest.param(".pt2", marks=pytest.mark.slow)])
def test_a_link_is_followed_and_a_file_of_ours_replaced_under_any_name(run, monkeypatch, tmp_path: Path, suffix: str):
    """Also of a model whose folder of pictures, and into a file whose name, is no UTF-8."""
    monkeypatch.setenv("CIFAR10_DIR", str(tmp_path / "cache"))
    pictures = tmp_path / os.fsdecode(b"own\xff")
    for label in "ab":
        (pictures / label).mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (9, 9), (40 * i, 99, ord(label))).save(pictures / label / f"{i}.png")
    model = ResNet("ab", width=2, resolution=8).eval()
    checkpoint.save_model("own.pt", model, Config(data=str(pictures), size=8, width=2, resolutions=(8,)), {})
    out = os.fsdecode(b"link\xff") + suffix
    Path(out).symlink_to(f"real{suffix}")
    for _ in range(2):
        code, result, _ = run("--ckpt", "own.pt", "--out", out, "--data", str(pictures))
        assert (code, Path(out).is_symlink()) == (0, True)
    assert result["accuracy_on"] == r"? ? images of own\udcff, by the checkpoint in ?"
    assert Path(f"real{suffix}").stat().st_size == result["bytes"]


# The examples


@pytest.fixture(scope="module")
def pictures(images: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One of the stored size, one large and wide, high and half transparent, small and turned by its Exif."""
    folder = tmp_path_factory.mktemp("pictures")
    high = Image.fromarray(images[2]).resize((70, 133)).convert("RGBA")
    high.putalpha(Image.linear_gradient("L").resize(high.size).point(lambda level: 255 * (level > 99)))
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(images[0]).save(folder / "0.png")
    Image.fromarray(images[1]).resize((301, 200), Image.Resampling.BICUBIC).save(folder / "1.png")
    high.save(folder / "2.png")
    Image.fromarray(images[3]).resize((27, 21)).save(folder / "3.png", exif=turned)
    return sorted(folder.iterdir())


FITS = ("crop", *(pytest.param(fit, marks=pytest.mark.slow) for fit in ("pad", "squash")))


def with_fit(model: Path, fit: str) -> bytes:
    facts = onnxruntime.InferenceSession(str(model)).get_modelmeta().custom_metadata_map
    return formats.with_facts(model.read_bytes(), facts | {"fit": fit})


@pytest.mark.parametrize("fit", FITS)
def test_the_example_says_what_the_checkpoint_says_with_nothing_of_torch_or_ours(model, net, pictures, tmp_path, fit):
    (tmp_path / "model.onnx").write_bytes(with_fit(model, fit))
    script = "import runpy, sys; sys.argv.pop(0); runpy.run_path(sys.argv[0]); print(*sys.modules)"
    done = classified(tmp_path, *pictures, command=["-c", script])
    lines = done.stdout.splitlines()
    assert not {"torch", "torchvision", "engine", "deploy", "pipeline"} & set(lines.pop().split())
    for line, path in zip(lines, pictures, strict=True):
        probabilities = expected(net, decode(path, 32, fit)[None])[0][0]
        name, *answers = line.split("  ")
        assert name == str(path)
        assert [answer.split()[0] for answer in answers] == [CLASSES[i] for i in probabilities.argsort()[:-4:-1]]
        shares = [float(answer.split()[1].rstrip("%")) / 100 for answer in answers]
        assert np.abs(np.sort(probabilities)[:-4:-1] - shares).max() <= 6e-5


def classified(folder: Path, *names: str | Path, command: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """What the example says in a folder that holds model.onnx."""
    words = [sys.executable, *command, ROOT / "examples" / "classify.py", "model.onnx", *names]
    return subprocess.run(words, capture_output=True, text=True, check=True, cwd=folder, timeout=60)


def test_the_example_brings_deep_pixels_to_eight_bits(model: Path, tmp_path: Path):
    """Every file shows the same picture, so that the answers are the same."""
    shutil.copy(model, tmp_path / "model.onnx")
    grey = np.arange(1024, dtype=np.uint8).reshape(32, 32)
    grey[0, :2] = 0, 255
    files = {
        "8.png": grey,
        "16.png": grey * np.uint16(257),
        "small.tiff": grey.astype(np.int32),
        "large.tiff": grey * np.int32(70_000) - 9_000_000,
        "unit.tiff": grey.astype(np.float32) / 255,
        "float.tiff": grey.astype(np.float32) * 3 - 99,
        "hole.tiff": np.where(grey == 0, np.nan, grey.astype(np.float32) * 3 - 99).astype(np.float32),
    }
    for name, pixels in files.items():
        Image.fromarray(pixels).save(tmp_path / name)
    done = classified(tmp_path, *files, command=["-W", "error"])
    names, answers = zip(*(line.split("  ", 1) for line in done.stdout.splitlines()), strict=True)
    assert names == tuple(files) and done.stderr == ""
    assert len(set(answers[:-1])) == 1 and answers[-1].split()[::2] == answers[0].split()[::2]


def test_the_example_names_what_is_no_picture_and_goes_on(model: Path, pictures: list[Path], tmp_path: Path):
    shutil.copy(model, tmp_path / "model.onnx")
    good = pictures[0].read_bytes()
    head = good[12:16] + (9000).to_bytes(4, "big") * 2 + good[24:29]
    contents = {
        "cut.png": good[:60],
        "eps.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "large.png": good[:12] + head + zlib.crc32(head).to_bytes(4, "big") + good[33:],
        "\x1b[2J.png": b"",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    os.mkfifo(tmp_path / "pipe.png")
    done = classified(tmp_path, *contents, "pipe.png", "none.png", pictures[0])
    assert done.stdout.startswith(str(pictures[0])) and done.stdout.count("\n") == 1
    reasons = dict(line.split(" cannot be read: ") for line in done.stderr.splitlines())
    assert list(reasons) == ["cut.png", "eps.png", "large.png", r"\x1b[2J.png", "pipe.png", "none.png"]
    assert reasons["eps.png"] == "cannot identify image file 'eps.png'"
    assert reasons["large.png"] == "9000 x 9000 pixels are more than 64 million"
    assert reasons["pipe.png"] == "it is no regular file"


def built(*arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(ROOT / "examples/web/build.sh"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=folder)


@pytest.fixture(scope="module")
def site(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page as its script builds it."""
    folder = tmp_path_factory.mktemp("site")
    done = built(model, folder, folder=folder)
    for lack in ("there is no npm", "npm cannot fetch"):
        if lack in done.stderr:
            pytest.skip(f"{lack}, which gives onnxruntime-web")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsers(lambda: tmp_path_factory.mktemp("profile")) as start:
        yield start("--window-size=600,900", "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1")


@pytest.fixture(params=FITS)
def fit(request, site: Path, model: Path, window: Browser) -> Iterator[str]:
    """How pictures become squares in the page that the window shows, of a server that gives nothing else."""
    (site / "model.onnx").write_bytes(with_fit(model, request.param))
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        window.open(f"http://127.0.0.1:{server.server_address[1]}/index.html")
        window.until("return document.getElementById('state').textContent.startsWith('Drop')")
        yield request.param
        server.shutdown()


def test_the_page_says_and_paints_what_the_model_does(window, ckpt, net, pictures, fit, tmp_path):
    answered = set()
    for path in pictures:
        window.run("document.getElementById('answer').replaceChildren()")
        window.drop("#file", path)
        window.until("return document.querySelectorAll('#answer button').length > 0")
        drawn = np.array(window.run(PIXELS), np.uint8).reshape(32, 32, 4)[..., :3]
        # Pillow 13 begins with the longer axis of a high picture, and rounds in between.
        assert np.abs(drawn.astype(int) - decode(path, 32, fit)).max() <= (path.name == "2.png"), path
        probabilities, maps, _ = (output[0] for output in expected(net, drawn[None]))
        best = probabilities.argsort()[:-6:-1]
        words = window.text("#answer").split()
        assert words[::2] == [CLASSES[i] for i in best], path
        shares = [float(word.rstrip("%")) / 100 for word in words[1::2]]
        assert np.abs(probabilities[best] - shares).max() <= 6e-5, path
        answered.add(sure := bool(knows(ckpt, drawn[None])[0]))
        assert window.run("return document.getElementById('unknown').hidden") == sure, path
        for place in (0, 2):
            window.run("document.querySelectorAll('#answer button')[arguments[0]].click()", place)
            painted = np.array(window.run(ALPHA)).reshape(320, 320)
            heat = display(torch.tensor(maps[best[place]])[None], 320)[0][0].numpy()
            assert np.abs(painted - 178.5 * heat).max() <= 1, path
    others = "return performance.getEntriesByType('resource').filter((one) => !one.name.startsWith(location.origin))"
    assert window.run(others) == [] == window.complaints() and answered == {False, True}
    (tmp_path / "notes.txt").write_text("no picture")
    window.drop("#file", tmp_path / "notes.txt")
    window.until("return document.getElementById('state').textContent.startsWith('notes.txt cannot be read')")
    window.drop("#file", pictures[0])
    window.until("return document.getElementById('state').textContent.startsWith('Drop')")


PIXELS = """const picture = document.getElementById('picture');
    return [...picture.getContext('2d').getImageData(0, 0, 32, 32).data]"""
ALPHA = """const map = document.getElementById('map');
    return [...map.getContext('2d').getImageData(0, 0, 320, 320).data].filter((_, i) => i % 4 === 3)"""


def test_the_script_that_builds_the_page_names_what_it_lacks(tmp_path: Path):
    for arguments, message in (([], "it takes two names"), (["no.onnx", "site"], "no.onnx: no such model")):
        done = built(*arguments, folder=tmp_path)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
