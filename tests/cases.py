"""Made-up cases that the tests of explain/ share, with any number of classes and any side."""

from typing import Any

import numpy as np
import torch

from engine.machine import Machine
from engine.model import ResNet
from explain.cases import Cases, Maps
from explain.explainer import Explainer

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TOTAL = 10_000
CPU = torch.device("cpu")


def explainer(model: ResNet) -> Explainer:
    """On the CPU, in fp32, as the tests' expectations are."""
    return Explainer(model, Machine(CPU))


def made_up(count: int, classes: tuple[str, ...] = CLASSES, side: int = 32, cells: int = 4, **fields: Any) -> Cases:
    """`count` errors of a test set of TOTAL, a tenth disputed; `fields` replace what is drawn at random."""
    random = np.random.default_rng(1)
    logits = torch.from_numpy(random.normal(size=(count, len(classes))) * 2).float()
    drawn: dict[str, Any] = {
        "name": "test",
        "total": TOTAL,
        "classes": classes,
        "index": np.sort(random.permutation(TOTAL)[:count]),
        "labels": (logits.argmax(1).numpy() + random.integers(1, len(classes), count)) % len(classes),
        "logits": logits,
        "class_maps": torch.from_numpy(random.normal(size=(count, len(classes), cells, cells))).float(),
        "inputs": torch.zeros(count, 3, 24, 24, dtype=torch.uint8),
        "pictures": random.integers(0, 256, (count, side, side, 3), dtype=np.uint8),
        "disputed": random.random(count) < 0.1,
    }
    return Cases(**drawn | fields)


def layer4_maps(cases: Cases, target: str = "pred", several: bool = True) -> Maps:
    return explainer(ResNet(cases.classes, width=1)).explain(cases, "layer4", "gradcam", target, several)
