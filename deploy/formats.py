"""The kinds of file: each made of a Classifier as bytes, opened again as a function, and compared.

onnx, onnxruntime and safetensors are imported only where they are needed: see requirements-export.txt.
"""

import copy
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np
import numpy.typing as npt
import torch

from deploy.classifier import Classifier
from engine.known import Promise
from engine.model import ResNet, resize
from engine.weights import torchvision_name
from explain.cam import class_maps
from ground.mistake import Mistake
from pipeline.split import Split, UInt8

TOLERANCE, BORDER = 1e-4, 0.01
OPSET = 20  # of ONNX: runtimes know it since 2024
ANY = ({0: torch.export.Dim("N")},)
BATCH = 250
CALIBRATED = ["Conv", "Gemm", "Add"]
MOST_BYTES = 2_100_000_000  # of weights in an ONNX file: a protobuf ends at 2**31
Floats = npt.NDArray[np.float32]
Run = Callable[[UInt8], list[Floats]]
"""uint8 images (N, S, S, 3) -> the outputs of Classifier."""


def of_torch(classifier: Callable[[torch.Tensor], tuple[torch.Tensor, ...]]) -> Run:
    """A Classifier, or one that was read back, as a Run."""

    def run(images: UInt8) -> list[Floats]:
        with torch.no_grad():
            return [output.numpy() for output in classifier(torch.tensor(images))]

    return run


def made(suffix: str, classifier: Classifier, facts: dict[str, str], threads: int) -> tuple[bytes, Run]:
    """The file of that kind (.onnx, .pt2 or .safetensors), and the same file opened again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters', about themselves
        if suffix == ".onnx":
            content = to_onnx(classifier, facts)
            return content, of_onnx(content, threads)
        if suffix == ".pt2":
            content = to_pt2(classifier, facts)
            return content, of_torch(torch.export.load(io.BytesIO(content)).module())
        content = to_safetensors(classifier, facts)
        return content, of_safetensors(content, classifier)


def example(classifier: Classifier) -> tuple[torch.Tensor]:
    """Images to trace the graph with; ANY says that there may be other numbers of them."""
    return (torch.zeros(2, classifier.side, classifier.side, 3, dtype=torch.uint8),)


def to_onnx(classifier: Classifier, facts: dict[str, str]) -> bytes:
    """The facts are its metadata."""
    if sum(parameter.nbytes for parameter in classifier.parameters()) > MOST_BYTES:
        raise Mistake("an ONNX file holds 2 GB at most, and this network has more: use --out model.pt2")
    with torch.no_grad():
        program = torch.onnx.export(
            classifier, example(classifier), dynamic_shapes=ANY, opset_version=OPSET, verbose=False,
            input_names=["images"], output_names=classifier.outputs,
        )
    assert program is not None
    return with_facts(program.model_proto.SerializeToString(), facts)


def with_facts(content: bytes, facts: dict[str, str]) -> bytes:
    """An ONNX file with these facts in place of those that it has."""
    import onnx

    model = onnx.load_from_string(content)
    onnx.helper.set_model_props(model, facts)
    return model.SerializeToString()


def of_onnx(content: bytes, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})


def quantised(content: bytes, images: UInt8) -> bytes:
    """An ONNX file with int8 weights, one scale a channel, and uint8 activations, whose ranges `images` decide."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.parts = iter(np.array_split(images, -(-len(images) // BATCH)))

        def get_next(self) -> dict[str, UInt8] | None:
            return next(({"images": part} for part in self.parts), None)

    logging.disable(logging.WARNING)  # advice to fold batch norms, which are folded
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "int8.onnx")
            quantize_static(
                onnx.load_from_string(content), path, Reader(),
                op_types_to_quantize=CALIBRATED, per_channel=True,
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            )
            return path.read_bytes()
    finally:
        logging.disable(logging.NOTSET)


def to_pt2(classifier: Classifier, facts: dict[str, str]) -> bytes:
    """The facts are its extra file facts.json."""
    buffer = io.BytesIO()
    with torch.no_grad():  # with gradients, our convolutions ask how many images there are
        program = torch.export.export(classifier, example(classifier), dynamic_shapes=ANY)
    torch.export.save(program, buffer, extra_files={"facts.json": json.dumps(facts)})
    return buffer.getvalue()


def to_safetensors(classifier: Classifier, facts: dict[str, str]) -> bytes:
    """The weights under torchvision's names; `mean` and `std` of normalising, in 0..255, are among the facts."""
    from safetensors.torch import save

    weights = classifier.net.state_dict()
    channels = {name: json.dumps(weights.pop(name).flatten().tolist()) for name in ("mean", "std")}
    named = {torchvision_name(name): tensor.contiguous() for name, tensor in weights.items()}
    return save(named, facts | channels)


def of_safetensors(content: bytes, classifier: Classifier) -> Run:
    """The weights of the file in a network of that form."""
    from safetensors.torch import load

    weights, twin = load(content), copy.deepcopy(classifier)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    channels = {name: torch.tensor(json.loads(header[name])).view(1, 3, 1, 1) for name in ("mean", "std")}
    own = twin.net.state_dict().keys() - channels.keys()
    named = {name: weights[torchvision_name(name)] for name in own}
    assert len(named) == len(weights)
    twin.net.load_state_dict(named | channels)
    return of_torch(twin)


def checked(run: Run, net: ResNet, images: UInt8, promise: Promise | None = None) -> float:
    """The `difference`, which must be no larger than TOLERANCE. By a promise the file must know the
    same images, but for BORDER of them: rounding can bring one that lies on the border over it."""
    largest = difference(run, net, images)
    if not largest <= TOLERANCE:
        raise Mistake(f"the file differs from the checkpoint by {largest:.1e}, more than {TOLERANCE}: not written")
    if promise:
        inputs = torch.tensor(images)
        with torch.no_grad():
            small = resize(inputs.permute(0, 3, 1, 2), net.resolution)
            own = promise(net.features(small).mean((2, 3)), net.predict(inputs))
        if (other := int((run(images)[-1] != own.numpy()).sum())) > BORDER * len(images):
            what = f"{other} of {len(images)} images"
            raise Mistake(f"the file knows others than the checkpoint, {what}: not written")
    return largest


def difference(run: Run, net: ResNet, images: UInt8) -> float:
    """The largest from the network's own outputs; of maps and features a share of the largest."""
    inputs, outputs = torch.tensor(images), run(images)
    largest = [np.abs(outputs[0] - net.predict(inputs).numpy()).max()]
    with torch.no_grad():
        features = net.features(resize(inputs.permute(0, 3, 1, 2), net.resolution))
        for output in outputs[1:]:  # maps (N, C, h, w), features (N, K), or known (N,)
            if output.ndim > 1:
                maps = output.ndim == 4
                own = class_maps(features, net.fc) if maps else features.mean((2, 3))
                scale = max(float(own.abs().max()), 1e-37)  # maps of zeros alone equal themselves
                largest.append(np.abs(output - own.numpy()).max() / scale)
    return float(np.max(largest))  # not a number where an output holds one that is not


def measure(run: Run, split: Split) -> dict[str, float]:
    """Its "accuracy" on all images of a split, and its "images_per_second" after a first batch."""
    parts = [np.asarray(split.images[i : i + BATCH]) for i in range(0, len(split), BATCH)]
    run(parts[0])
    start = perf_counter()
    predicted = np.concatenate([run(part)[0].argmax(1) for part in parts])
    seconds = perf_counter() - start
    return {"accuracy": float((predicted == split.labels).mean()), "images_per_second": len(split) / seconds}
