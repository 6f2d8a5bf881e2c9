"""What a checkpoint's model says of any number of pictures, in the memory of a few batches."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.checkpoint import Checkpoint
from engine.features import pooled
from engine.known import PROMISE
from engine.model import resize
from explain.cases import Bools, Floats, Ints
from explain.explainer import BATCH, Explainer
from ground.mistake import Mistake
from ground.terminal import tracked
from judge.sources import Item, Labels
from pipeline.contents import in_order
from pipeline.dali import evaluation_loader
from pipeline.pictures import as_trained, looks_like_a_picture, read_bytes, reason
from pipeline.split import Split, UInt8


@dataclass(frozen=True, eq=False)
class Answers:
    """What is known of B pictures."""

    files: Sequence[str]
    names: Sequence[str]  # labels as they were given, or ""
    labels: Ints  # (B,) classes, -1 where the model has none of that name
    probabilities: Floats  # (B, C)
    learnt: Bools  # (B,) whether the model was trained on it
    known: Bools | None  # (B,) whether the model knows; None: nobody can tell
    features: Tensor  # (B, K) float32, those of layer4, averaged over the image


class Judge:
    """A checkpoint's model, which knows by a promise of `share` (0: the usual one).

    Raises Mistake where a promise is asked for and the checkpoint can keep none.
    """

    def __init__(self, explainer: Explainer, checkpoint: Checkpoint, share: float = 0.0) -> None:
        self.explainer, self.checkpoint = explainer, checkpoint
        self.labels = Labels(explainer.model.classes)
        self.promise = checkpoint.known.keep(share or PROMISE) if checkpoint.known else None
        if share and not self.promise:
            why = "the checkpoint has no pictures to keep a promise by: train with --validate"
            raise Mistake(f"--promise is {share}: {why}, or on a folder of 1,000 or more")

    def of_pictures(
        self, items: Iterable[Item], total: int, skipped: list[str]
    ) -> Iterator[Answers]:
        """The answers to pictures in files, each made a square as in training; what cannot be read
        goes to `skipped`, with the reason."""
        config, trained_on = self.checkpoint.config, set(self.checkpoint.trained_on.tolist())

        def read(item: Item) -> tuple[Item, UInt8, bool] | str:
            """The item, its pixels, and whether it was trained on; or what is wrong with it."""
            path = Path(item[0])
            try:
                path.stat()  # says so where there is none
                if not looks_like_a_picture(item[0]):
                    raise Mistake(f"no picture, {path.suffix.lower() or 'no suffix'}")
                data = read_bytes(path)
                content = int.from_bytes(hashlib.sha256(data).digest()[:8], signed=True)
                return item, as_trained(data, config.side, config.fit), content in trained_on
            except Exception as error:  # a decoder raises nearly anything on a damaged file
                return f"{item[0]}: {reason(error, path)}"

        def sound() -> Iterator[tuple[Item, UInt8, bool]]:
            for found in in_order(read, items, "pictures", total):
                if isinstance(found, str):
                    skipped.append(found)
                else:
                    yield found

        stream = sound()
        while batch := list(islice(stream, BATCH)):
            some, pixels, learnt = zip(*batch, strict=True)
            images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
            images = resize(images, self.explainer.model.resolution)
            files, names = zip(*some, strict=True)
            yield self._answers(files, names, np.array(learnt), images)

    def of_split(self, split: Split, learnt: Bools) -> Iterator[Answers]:
        """The answers to a part of a data set, whose images (N,) were `learnt` or not."""
        machine, start = self.explainer.machine, 0
        names = [split.classes[label] for label in split.labels]
        resolution = self.explainer.model.resolution
        loader = evaluation_loader(split, resolution, machine.device, machine.threads)
        for images, _ in tracked(loader, "pictures", len(split), lambda batch: len(batch[1])):
            rows = slice(start, min(start + len(images), len(split)))  # the last batch is filled up
            images, start = images[: rows.stop - start], rows.stop
            yield self._answers(split.names[rows], names[rows], learnt[rows], images)

    @torch.no_grad()
    def _answers(
        self, files: Sequence[str], names: Sequence[str], learnt: Bools, images: Tensor
    ) -> Answers:
        """To uint8 images (B, 3, R, R). Raises Mistake where a logit is not a finite number."""
        explainer = self.explainer
        images = images.to(explainer.machine.device)
        features = pooled(explainer.model, images, explainer.machine)
        logits, features = explainer.model.fc(features).double().cpu(), features.cpu()
        if not bool(logits.isfinite().all()):
            raise Mistake("the model's logits are not finite: its weights are spoilt")
        p, labels = logits.softmax(1), np.array([self.labels[name] for name in names])
        known = self.promise(features, p).numpy() if self.promise else None
        return Answers(files, names, labels, p.numpy(), learnt, known, features)
