"""What a checkpoint's model says of any number of pictures, in the memory of a few batches."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.checkpoint import Checkpoint
from engine.features import pooled
from engine.model import resize
from explain.cases import Bools, Floats, Ints
from explain.explainer import BATCH, Explainer
from ground.interval import wilson
from ground.mistake import Mistake
from ground.terminal import tracked
from judge.sources import Item, Labels
from pipeline.contents import in_order
from pipeline.dali import evaluation_loader
from pipeline.pictures import as_trained, looks_like_a_picture, read_bytes, reason
from pipeline.split import Split, UInt8

PROMISE = 0.98
LESSER = (0.99, 0.98, 0.97, 0.95, 0.9, 0.8, 0.7, 0.6)  # tried where a promise cannot be kept


@dataclass(frozen=True, eq=False)
class Answers:
    """What is known of B pictures."""

    files: Sequence[str]
    names: Sequence[str]  # labels as they were given, or ""
    labels: Ints  # (B,) classes, -1 where the model has none of that name
    logits: Floats  # (B, C)
    probabilities: Floats  # (B, C)
    learnt: Bools  # (B,) whether the model was trained on it
    known: Bools | None  # (B,) whether the model knows; None: nobody can tell
    features: Tensor  # (B, K) float32, those of layer4, averaged over the image


class Judge:
    """A checkpoint's model, which knows from some probability on (`promise` 0: the usual one).

    Raises Mistake where a promise is asked for and the checkpoint can keep none.
    """

    def __init__(self, explainer: Explainer, checkpoint: Checkpoint, promise: float) -> None:
        self.explainer, self.checkpoint = explainer, checkpoint
        self.labels = Labels(explainer.model.classes)
        self.known, self.promise = checkpoint.known, promise or PROMISE
        if promise and not self.known:
            why = "the checkpoint has no pictures to keep a promise by: train with --validate"
            raise Mistake(f"--promise is {promise}: {why}, or on a folder of 1,000 or more")
        self.answered = self.known.keep(self.promise) if self.known else None

    def facts(self) -> dict[str, Any]:
        """The promise, and how it does on the pictures that it is fitted on; {} without one."""
        if not self.known:
            return {}
        facts: dict[str, Any] = {"promise": self.promise, "fitted_on": self.known.total}
        if not (found := self.answered):
            possible = (promise for promise in LESSER if self.known.keep(promise))
            return facts | {"least_probability": None, "possible_promise": next(possible, None)}
        facts |= {"least_probability": found.probability}
        facts |= {"fit_answered": found.pictures / self.known.total}
        facts |= {"fit_accuracy": found.right / found.pictures}
        return facts | {"fit_accuracy_interval": wilson(found.right, found.pictures)}

    def of_pictures(
        self, items: Iterable[Item], total: int, skipped: list[str]
    ) -> Iterator[Answers]:
        """The answers to pictures in files, each made a square as in training; what cannot be read
        goes to `skipped`, with the reason."""
        config, contents = self.checkpoint.config, self.checkpoint.trained_on.numpy()

        def read(item: Item) -> tuple[Item, UInt8 | None, int, str]:
            """The item, its pixels, the first 8 bytes of its SHA-256, and what is wrong with it."""
            path, content = Path(item[0]), b""
            try:
                path.stat()  # says so where there is none
                if not looks_like_a_picture(item[0]):
                    raise Mistake(f"no picture, {path.suffix.lower() or 'no suffix'}")
                data = read_bytes(path)
                if len(contents):
                    content = hashlib.sha256(data).digest()[:8]
                pixels = as_trained(data, config.side, config.fit)
                return item, pixels, int.from_bytes(content, signed=True), ""
            except Exception as error:  # a decoder raises nearly anything on a damaged file
                return item, None, 0, reason(error, path)

        def sound() -> Iterator[tuple[Item, UInt8, int]]:
            for item, pixels, content, fault in in_order(read, items, "pictures", total):
                if pixels is None:
                    skipped.append(f"{item[0]}: {fault}")
                else:
                    yield item, pixels, content

        stream = sound()
        while batch := list(islice(stream, BATCH)):
            some, pixels, content = zip(*batch, strict=True)
            images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
            learnt = np.isin(np.array(content, np.int64), contents) & (len(contents) > 0)
            files, names = zip(*some, strict=True)
            images = resize(images, self.explainer.model.resolution)
            yield self._answers(files, names, learnt, images)

    def of_split(self, split: Split, learnt: Bools) -> Iterator[Answers]:
        """The answers to a part of a data set, whose images (N,) were `learnt` or not."""
        machine, start = self.explainer.machine, 0
        files = split.files or [f"{split.name} image {i}" for i in range(len(split))]
        names = [split.classes[label] for label in split.labels]
        resolution = self.explainer.model.resolution
        loader = evaluation_loader(split, resolution, machine.device, machine.threads)
        for images, _ in tracked(loader, "pictures", len(split), lambda batch: len(batch[1])):
            rows = slice(start, start + len(images))  # the last batch is filled up
            start = rows.stop
            yield self._answers(files[rows], names[rows], learnt[rows], images[: len(files[rows])])

    @torch.no_grad()
    def _answers(
        self, files: Sequence[str], names: Sequence[str], learnt: Bools, images: Tensor
    ) -> Answers:
        """To uint8 images (B, 3, R, R). Raises Mistake where a logit is not a finite number."""
        explainer, known = self.explainer, None
        images = images.to(explainer.machine.device)
        features = pooled(explainer.model, images, explainer.machine)
        logits, features = explainer.model.fc(features).double().cpu(), features.cpu()
        if not bool(logits.isfinite().all()):
            raise Mistake("the model's logits are not finite: its weights are spoilt")
        p, labels = logits.softmax(1), np.array([self.labels[name] for name in names])
        if self.known:
            known = np.zeros(len(files), bool)
            if self.answered:
                known = (self.answered.of(p.amax(1)) & ~self.known.unlike(features)).numpy()
        return Answers(files, names, labels, logits.numpy(), p.numpy(), learnt, known, features)
