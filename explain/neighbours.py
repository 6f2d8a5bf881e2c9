"""The training images that the model finds most like each error: `python gradcam.py --neighbours`.

Alike is what has a large cosine between layer4's features, averaged over the image.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from engine.features import features
from explain.cases import Cases, Floats, Ints
from explain.explainer import BATCH, Explainer
from explain.gallery import smaller
from ground.terminal import tracked
from pipeline.dali import evaluation_loader
from pipeline.packed import tiles
from pipeline.split import Split, UInt8

COMPARED = 20_000  # training images, evenly chosen
SHOWN = 2_000  # errors, the largest loss first
NEAREST, SIDE = 5, 64  # of each, and their pixels a side at most


@dataclass(frozen=True, eq=False)
class Neighbours:
    """T training images, and which of them each of E errors is most like."""

    nearest: Ints  # (E, k) the most alike first; -1 of errors that were not compared
    likeness: Floats  # (E, k) cosine
    pictures: UInt8  # (T, S, S, 3)
    labels: Ints  # (T,)
    names: tuple[str, ...]  # (T,)


def find(explainer: Explainer, cases: Cases, train: Split) -> Neighbours:
    """By one pass over COMPARED of the training images. Needs one case or more."""
    rows = np.linspace(0, len(train) - 1, min(len(train), COMPARED)).astype(np.int64)
    model, machine, some = explainer.model, explainer.machine, train.take(rows, train.name)
    loader = evaluation_loader(some, model.resolution, machine.device, machine.threads)
    theirs, _ = features(model, tracked(loader, "neighbours", len(loader)), machine)
    order = cases.select()[:SHOWN]
    parts = cases.inputs[torch.from_numpy(order)].to(machine.device).split(BATCH)
    own, _ = features(model, ((part, part.new_zeros(len(part))) for part in parts), machine)
    alike = F.normalize(theirs).T
    found = [(F.normalize(part) @ alike).topk(min(NEAREST, len(rows))) for part in own.split(BATCH)]
    cosines, places = (torch.cat(column).cpu().numpy() for column in zip(*found, strict=True))
    once, which = np.unique(rows[places], return_inverse=True)
    likeness = np.zeros((len(cases), places.shape[1]))
    nearest = np.full(likeness.shape, -1)
    nearest[order], likeness[order] = which.reshape(places.shape), cosines
    files = train.files or [f"{train.name} image {i}" for i in range(len(train))]
    names = tuple(files[i] for i in once)
    pictures = smaller(tiles(train.images[once], SIDE), SIDE)
    return Neighbours(nearest, likeness.round(3), pictures, train.labels[once], names)
