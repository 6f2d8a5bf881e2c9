"""A trained model that classifies images and says what it looked at: `python gradcam.py`.

The pass over the images itself yields layer4's maps of all classes; other layers need one more forward and backward
pass, over the cases alone.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from engine.checkpoint import Checkpoint
from engine.device import autocast, pick_device
from engine.machine import Machine
from engine.model import ResNet
from explain.cam import class_maps, evaluating, heatmaps
from explain.cases import Cases, Maps
from ground.mistake import Mistake
from ground.terminal import tracked

BATCH = 250
SEVERAL = 10  # classes of each image whose maps a page holds: of more the likeliest


@dataclass(frozen=True, eq=False)
class Explainer:
    model: ResNet  # on the machine's device; used in eval mode and left as it was
    machine: Machine

    @classmethod
    def of(cls, checkpoint: Checkpoint, device: str = "auto", precision: str = "checkpoint", threads: int = 0) -> Self:
        """The checkpoint's model on a device; sets torch's threads (0: one a core)."""
        place = pick_device(device)
        if precision == "checkpoint":
            precision = checkpoint.metrics.get("precision", "auto")
            if precision == "fp16" and place.type == "cpu":
                precision = "fp32"  # fp16 is for GPUs alone
        return cls(checkpoint.model.to(place), Machine.on(place, precision, threads))

    def __str__(self) -> str:
        net = self.model
        start = f",\nstarted from {net.origin}" if net.origin else ""
        form = f"ResNet-{net.depth} of width {net.width} at {net.resolution} px"
        return f"{form} in {self.machine.precision}{start}"

    def autocast(self) -> AbstractContextManager[None]:
        return autocast(self.machine.device, self.machine.precision)

    def examine(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One pass over images (B, 3, R, R) uint8 and labels (B,) int64, -1 of padding, or None without labels.

        Returns, of N images, C classes and E cases, on the CPU: logits (N, C) float32; (N,) bool: True of cases, which
        are the misclassified images, or all without labels; class_maps (E, C, h, w) float32, raw maps of the last
        stage; inputs (E, 3, R, R) uint8. Raises Mistake where a logit is not a finite number.
        """
        parts: list[tuple[Tensor, ...]] = []
        with evaluating(self.model), torch.no_grad(), self.autocast():
            for images, labels in batches:
                features = self.model.features(images)
                logits = self.model.head(features)
                maps = class_maps(features, self.model.fc)
                cases = counted = torch.ones(len(images), dtype=torch.bool, device=images.device)
                if labels is not None:
                    counted = labels >= 0
                    cases = counted & (logits.argmax(1) != labels)
                kept = (logits[counted], cases[counted], maps[cases], images[cases])
                parts.append(tuple(t.cpu() for t in kept))
        logits, cases, maps, inputs = (torch.cat(column) for column in zip(*parts, strict=True))
        if bad := int((~logits.isfinite()).any(1).sum()):
            of = f"{bad} of {len(logits)} images"
            raise Mistake(f"the model's logits are not finite for {of}: its weights are spoilt")
        return logits, cases, maps, inputs

    def explain(self, cases: Cases, layer: str, method: str, target: str, several: bool = False) -> Maps:
        """Heatmaps of all cases for predicted class, rival and target, or for SEVERAL classes."""
        named = [] if target in ("pred", "true", "margin") else [cases.every(target)]
        classes = np.stack([cases.predicted, cases.rival, *named], 1)
        if several:
            classes = cases.likeliest(SEVERAL, classes)
        if layer == "layer4":  # the pass over the images has made them
            values = cases.class_maps[np.arange(len(cases))[:, None], classes]
        else:
            wanted = torch.from_numpy(classes).split(BATCH)
            pairs = zip(cases.inputs.split(BATCH), wanted, strict=True)
            batches = tracked(pairs, "heatmaps", len(cases), lambda pair: len(pair[0]))
            with self.autocast():
                parts = [heatmaps(self.model, *pair, layer, method, BATCH).cpu() for pair in batches]
            values = torch.cat(parts)
        return Maps(cases, layer, method, target, classes, values)
