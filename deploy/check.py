"""Whether an exported file gives what the checkpoint gives, and what it is worth."""

from time import perf_counter

import numpy as np
import torch

from deploy.formats import BATCH, Run
from engine.model import ResNet, resize
from explain.cam import class_maps
from ground.mistake import Mistake
from pipeline.split import Split, UInt8

TOLERANCE = 1e-4


def checked(run: Run, net: ResNet, images: UInt8) -> float:
    """The `difference`. Raises ValueError where it is above TOLERANCE."""
    largest = difference(run, net, images)
    if not largest <= TOLERANCE:
        raise Mistake(f"the file differs from the checkpoint by {largest:.1e}, more than {TOLERANCE}: not written")
    return largest


def difference(run: Run, net: ResNet, images: UInt8) -> float:
    """The largest between a file's outputs and the network's own; of maps in units of their largest value.

    Not a number where an output holds one that is not.
    """
    inputs, outputs = torch.tensor(images), run(images)
    largest = [np.abs(outputs[0] - net.predict(inputs).numpy()).max()]
    if len(outputs) > 1:
        with torch.no_grad():
            own = class_maps(net.features(resize(inputs.permute(0, 3, 1, 2), net.resolution)), net.fc).numpy()
        scale = max(np.abs(own).max(), np.finfo(own.dtype).tiny)  # maps of zeros alone equal themselves
        largest.append(np.abs(outputs[1] - own).max() / scale)
    return float(np.max(largest))


def measure(run: Run, split: Split) -> dict[str, float]:
    """Its "accuracy" on all images of a split, and its "images_per_second" after a first batch."""
    parts = [split.images[i : i + BATCH] for i in range(0, len(split), BATCH)]
    run(parts[0])
    start = perf_counter()
    predicted = np.concatenate([run(part)[0].argmax(1) for part in parts])
    seconds = perf_counter() - start
    return {"accuracy": float((predicted == split.labels).mean()), "images_per_second": len(split) / seconds}
