"""What is exported: the network with all that is done to a picture before it and to its logits after it."""

import hashlib
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.checkpoint import Checkpoint
from engine.known import Promise
from engine.model import ResNet
from explain.cam import class_maps
from ground.terminal import json_line, printable

MARK = b"checkpoint_sha256"  # one of the facts, in every file of ours
LICENCE = "The code that trained it: MIT. The weights: as who trained them decides, within the licence of the images."


class Classifier(nn.Module):
    """uint8 images (N, S, S, 3) -> probabilities (N, C) float32, as `ResNet.predict` gives them.

    With `maps` also the class maps of layer4, (N, C, h, w) float32, raw and signed; with `features`
    its activations averaged over the image, (N, K) float32; with a `promise` at last `known`, (N,)
    bool: whether the answer is one that it lets pass.

    Resizing to the network's R pixels is two products with constants. They give torch's own result to the last level;
    onnxruntime's antialiased Resize differs by one in 0.5% of the values (CIFAR-10's test images, 32 to 28 pixels).
    """

    rows: Tensor

    def __init__(
        self, net: ResNet, side: int, maps: bool = False, promise: Promise | None = None,
        features: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.net, self.side, self.promise = net, side, promise
        self.outputs = ["probabilities", *["maps"] * maps, *["features"] * features]
        self.outputs += ["known"] * (promise is not None)
        wanted = (net.resolution, side)
        rows = F.interpolate(torch.eye(side)[None, None], wanted, mode="bilinear", antialias=True)[0, 0]
        self.register_buffer("rows", rows)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        pixels = images.permute(0, 3, 1, 2).to(self.rows.dtype)
        if self.side != self.net.resolution:
            pixels = torch.matmul(self.rows, torch.matmul(pixels, self.rows.T)).round()
        features = self.net.features(pixels)
        probabilities, pooled = self.net.head(features).softmax(1), features.mean((2, 3))
        outputs = [probabilities]
        outputs += [class_maps(features, self.net.fc)] if "maps" in self.outputs else []
        outputs += [pooled] if "features" in self.outputs else []
        outputs += [self.promise(pooled, probabilities)] if self.promise else []
        return tuple(outputs)


def facts(checkpoint: Checkpoint, path: Path, model: Classifier) -> dict[str, str]:
    """What a file must carry to be used and believed: text under names, in `classes` and `promise`
    JSON."""
    net, config, metrics = checkpoint.model, checkpoint.config, checkpoint.metrics
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "classes": json.dumps(net.classes),
        "size": str(model.side),
        "fit": config.fit,
        "network": f"ResNet-{net.depth} of width {net.width} at {net.resolution} px",
        "stem": config.stem,
        "temperature": str(metrics.get("temperature", 1.0)),
        "accuracy": str(metrics.get("test_accuracy", "unknown")),
        "accuracy_on": accuracy_on(checkpoint, f"the checkpoint in {metrics.get('precision', '?')}"),
        "promise": json_line(model.promise.facts() if model.promise else {}),
        "checkpoint_sha256": digest,
        "licence": LICENCE + (f" They started from {net.origin}." if net.origin else ""),
    }


def accuracy_on(checkpoint: Checkpoint, by: str) -> str:
    """On which images an accuracy was measured, and by what."""
    config, metrics = checkpoint.config, checkpoint.metrics
    data = printable(Path(config.data).name) if config.own_pictures else config.data  # a folder's may be no UTF-8
    return f"{metrics.get('test_total', '?')} {metrics.get('split', '?')} images of {data}, by {by}"
