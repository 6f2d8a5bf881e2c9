"""What a checkpoint's model says of pictures, batch by batch: of any number, in the memory of a few batches."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.checkpoint import Checkpoint
from engine.known import pooled
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

PROMISE = 0.98
LESSER = (0.99, 0.98, 0.97, 0.95, 0.9, 0.8, 0.7, 0.6)  # promises that are tried where one cannot be kept


@dataclass(frozen=True, eq=False)
class Answers:
    """What is known of B pictures."""

    files: Sequence[str]
    labels: Ints  # (B,) classes, -1 where there is none that the model knows
    logits: Floats  # (B, C)
    probabilities: Floats  # (B, C)
    learnt: Bools  # (B,) whether the model was trained on it
    known: Bools | None  # (B,) whether the model knows; None: nobody can tell


class Judge:
    """A checkpoint's model, and from which probability on it keeps a promise (0: the usual one).

    Raises Mistake where a promise is asked for and the checkpoint can keep none.
    """

    def __init__(self, explainer: Explainer, checkpoint: Checkpoint, promise: float) -> None:
        self.explainer, self.checkpoint = explainer, checkpoint
        self.known, self.promise = checkpoint.known, promise or PROMISE
        if promise and not self.known:
            why = "the checkpoint has no pictures to keep a promise by"
            raise Mistake(f"--promise is {promise}: {why}: train with --validate, or on a folder of 1,000 or more")
        self.answered = self.known.keep(self.promise) if self.known else None

    def facts(self) -> dict[str, Any]:
        """The promise, and how it does on the pictures that it was fitted on; empty where there is none."""
        if not self.known:
            return {}
        facts: dict[str, Any] = {"promise": self.promise, "fitted_on": self.known.total}
        if not (found := self.answered):
            possible = (promise for promise in LESSER if self.known.keep(promise))
            return facts | {"least_probability": None, "possible_promise": next(possible, None)}
        facts |= {"least_probability": found.probability, "fit_answered": found.pictures / found.total}
        return facts | {"fit_accuracy": found.right / found.pictures, "fit_accuracy_interval": found.interval}

    def of_pictures(self, pictures: Pictures, skipped: list[str]) -> Iterator[Answers]:
        """The answers to pictures in files, each made a square as in training; what cannot be read goes to `skipped`,
        with the reason. Raises Mistake where a logit is not a finite number."""
        config, contents = self.checkpoint.config, self.checkpoint.trained_on.numpy()

        def read(item: Item) -> tuple[Item, UInt8 | None, int, str]:
            """The item, its pixels, the first 8 bytes of its SHA-256, and what is wrong with it."""
            path = Path(item[0])
            try:
                path.stat()  # says so where there is none
                if not looks_like_a_picture(item[0]):
                    raise Mistake(f"no picture, {path.suffix.lower() or 'no suffix'}")
                data = read_bytes(path)
                content = int.from_bytes(hashlib.sha256(data).digest()[:8], signed=True) if len(contents) else 0
                return item, as_trained(data, config.side, config.fit), content, ""
            except Exception as error:  # a decoder raises nearly anything on a damaged file
                return item, None, 0, reason(error, path)

        def sound() -> Iterator[tuple[Item, UInt8, int]]:
            for item, pixels, content, fault in in_order(read, pictures.items, "pictures", pictures.total):
                if pixels is None:
                    skipped.append(f"{item[0]}: {fault}")
                else:
                    yield item, pixels, content

        stream = sound()
        while batch := list(islice(stream, BATCH)):
            items, pixels, content = zip(*batch, strict=True)
            files, labels = zip(*items, strict=True)
            images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
            numbers = np.array([pictures.labels[label] for label in labels])
            learnt = np.isin(np.array(content, np.int64), contents) & (len(contents) > 0)
            yield self._answers(files, numbers, learnt, resize(images, self.explainer.model.resolution))

    def of_split(self, split: Split, learnt: Bools) -> Iterator[Answers]:
        """The answers to a part of a data set, whose images (N,) were `learnt` or not; its classes count by name."""
        machine, start = self.explainer.machine, 0
        names = Labels(self.explainer.model.classes, split.classes)
        labels = np.array([names[name] for name in split.classes])[split.labels]
        files = split.files or tuple(f"{split.name} image {i}" for i in range(len(split)))
        loader = evaluation_loader(split, self.explainer.model.resolution, machine.device, machine.threads)
        for images, _ in tracked(loader, "pictures", len(split), lambda batch: int((batch[1] >= 0).sum())):
            rows = slice(start, min(start + len(images), len(split)))
            count, start = rows.stop - rows.start, rows.stop
            yield self._answers(files[rows], labels[rows], learnt[rows], images[:count])

    @torch.no_grad()
    def _answers(self, files: Sequence[str], labels: Ints, learnt: Bools, images: Tensor) -> Answers:
        """To uint8 images (B, 3, R, R)."""
        explainer, known = self.explainer, None
        features = pooled(explainer.model, images.to(explainer.machine.device), explainer.machine)
        logits = explainer.model.fc(features).double().cpu()
        if not bool(logits.isfinite().all()):
            raise Mistake("the model's logits are not finite: its weights are spoilt")
        probabilities = logits.softmax(1)
        if self.known:
            alike = ~self.known.unlike(features.cpu())
            known = (alike & self.answered.of(probabilities.amax(1)) if self.answered else alike & False).numpy()
        return Answers(files, labels, logits.numpy(), probabilities.numpy(), learnt, known)
