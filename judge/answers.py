"""What the model says of pictures, batch by batch: as many as there are, in the memory of a few batches."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.checkpoint import Checkpoint
from engine.known import Answered, Known, pooled
from engine.model import resize
from explain.cases import Bools, Floats, Ints
from explain.explainer import BATCH, Explainer
from explain.images import as_trained
from ground.mistake import Mistake
from ground.terminal import tracked
from judge.sources import Item, Labels, Pictures
from pipeline.contents import in_order
from pipeline.dali import evaluation_loader
from pipeline.pictures import looks_like_a_picture, read_bytes, reason
from pipeline.split import Split, UInt8


@dataclass(frozen=True, eq=False)
class Answers:
    """What is known of B pictures."""

    files: tuple[str, ...]
    labels: Ints  # (B,) classes, -1 where there is none that the model knows
    logits: Floats  # (B, C)
    learnt: Bools  # (B,) whether the model was trained on it
    unlike: Bools  # (B,) whether it is unlike all that the model was trained on; False where nobody knows


def of_pictures(
    explainer: Explainer, checkpoint: Checkpoint, pictures: Pictures, skip: Callable[[str], None]
) -> Iterator[Answers]:
    """The answers to pictures in files, in their order; `skip` is told of each that cannot be read, with the reason.

    Each is made a square as in training. Raises Mistake where a logit is not a finite number.
    """
    config, contents = checkpoint.config, checkpoint.trained_on.numpy()

    def read(item: Item) -> tuple[Item, UInt8 | None, int, str]:
        """An item, its pixels, the first 8 bytes of its SHA-256 where they matter, and what is wrong with it."""
        path = item[0]
        try:
            if not looks_like_a_picture(path):
                open(path, "rb").close()  # what cannot be opened says so
                raise Mistake("no picture")
            data = read_bytes(Path(path))
            content = hashlib.sha256(data).digest()[:8] if len(contents) else b""
            return item, as_trained(data, config.side, config.fit), int.from_bytes(content, signed=True), ""
        except Exception as error:  # a decoder raises nearly anything on a damaged file
            return item, None, 0, reason(error, path)

    def sound() -> Iterator[tuple[Item, UInt8, int]]:
        for item, pixels, content, fault in in_order(read, pictures.items, "pictures", pictures.total):
            if pixels is None:
                skip(f"{item[0]}: {fault}")
            else:
                yield item, pixels, content

    stream = sound()
    while some := list(islice(stream, BATCH)):
        items, pixels, content = zip(*some, strict=True)
        images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
        files, labels = zip(*items, strict=True)
        learnt = np.isin(np.array(content, np.int64), contents) & bool(len(contents))
        numbers = np.array([pictures.labels[label] if label else -1 for label in labels], np.int64)
        logits, unlike = _examined(explainer, checkpoint.known, resize(images, explainer.model.resolution))
        yield Answers(files, numbers, logits, learnt, unlike)


def of_split(explainer: Explainer, known: Known | None, split: Split, learnt: Bools) -> Iterator[Answers]:
    """The answers to a part of a data set, whose images (N,) were `learnt` or not; its classes are matched by name."""
    machine, start = explainer.machine, 0
    names = Labels(explainer.model.classes, split.classes)
    number = np.array([names[name] for name in split.classes])
    loader = evaluation_loader(split, explainer.model.resolution, machine.device, machine.threads)
    for images, labels in tracked(loader, "pictures", len(split), lambda batch: int((batch[1] >= 0).sum())):
        rows = slice(start, start + int((labels >= 0).sum()))
        start = rows.stop
        files = split.files[rows] or tuple(f"{split.name} image {i}" for i in range(rows.start, rows.stop))
        logits, unlike = _examined(explainer, known, images[: len(files)])
        yield Answers(files, number[split.labels[rows]], logits, learnt[rows], unlike)


@torch.no_grad()
def _examined(explainer: Explainer, known: Known | None, images: Tensor) -> tuple[Floats, Bools]:
    """Logits (B, C) of uint8 images (B, 3, R, R), and whether each is unlike all trained on (B,)."""
    features = pooled(explainer.model, images.to(explainer.machine.device), explainer.machine)
    logits = explainer.model.fc(features)
    if not bool(logits.isfinite().all()):
        raise Mistake("the model's logits are not finite: its weights are spoilt")
    unlike = known.unlike(features.cpu()) if known else torch.zeros(len(logits), dtype=torch.bool)
    return logits.double().cpu().numpy(), unlike.numpy()


def probabilities(logits: Floats) -> Floats:
    """(B, C) softmax."""
    return torch.from_numpy(logits).softmax(1).numpy()




def enough(probabilities: Floats, answered: Answered | None) -> Bools:
    """(B,) whether the likeliest class is likely enough; of none where no threshold keeps the promise."""
    best = probabilities.max(1)
    return answered.of(torch.from_numpy(best)).numpy() if answered else np.zeros(len(best), bool)
