"""What is explained, and the figures of the whole set: the errors of a split, pictures of one's own,
or the errors of all training images, each judged by a model that has not seen it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np
import torch

from engine.checkpoint import Checkpoint
from engine.model import resize
from explain import images
from explain.cases import Bools, Cases, Ints
from explain.explainer import BATCH, Explainer
from explain.metrics import Calibration, calibration, confusion_matrix, top_confusions
from ground.mistake import Mistake
from ground.terminal import tracked
from pipeline.dali import evaluation_loader
from pipeline.dataset import DataSet, fold_indices
from pipeline.packed import tiles
from pipeline.pictures import Fit
from pipeline.split import Split

LOOKED_AT = 128  # pixels a side of the pictures that are shown, at most


@dataclass(frozen=True, eq=False)
class Study:
    cases: Cases
    seconds: float  # that the model's pass over all images took
    matrix: Ints | None = None  # (C, C) counts, as `confusion_matrix`; None without labels
    calibration: Calibration | None = None
    temperature: float = 1.0  # that the model's logits are divided by
    error_without: float = 0.0  # expected calibration error at a temperature of 1
    fitted: bool = False  # whether the temperature is one that these very images gave
    reported: int = 0  # errors that the checkpoint itself reports
    skipped: tuple[str, ...] = ()  # files that could not be read, each with the reason

    def plain(self) -> dict[str, Any]:
        """Its figures, for JSON."""
        cases = self.cases
        if self.matrix is None or self.calibration is None:
            return {"evaluation_seconds": self.seconds, "pictures": len(cases), "skipped": self.skipped}
        confusions = top_confusions(self.matrix)
        return {
            "evaluation_seconds": self.seconds,
            "errors": len(cases),
            "total": cases.total,
            "split": cases.name,
            "accuracy": 1 - len(cases) / cases.total,
            "checkpoint_errors": self.reported,
            "calibration_error": self.calibration.error,
            "temperature": self.temperature,
            "calibration_error_without": self.error_without,
            "temperature_fitted_here": self.fitted,
            "confusions": [(cases.classes[true], cases.classes[other], n) for true, other, n in confusions],
        }


def of_split(explainer: Explainer, checkpoint: Checkpoint, data: DataSet) -> Study:
    """The errors in the split that the checkpoint was reported on. Raises Mistake if it has changed."""
    split = data.reported(checkpoint.config.validate, checkpoint.config.fold)
    fitted = split.name == "validation" and fitted_to_it(checkpoint, data)
    return _errors(split, [(explainer, slice(None))], [checkpoint], fitted, questioned=False)


def of_folds(checkpoints: Sequence[Checkpoint], data: DataSet) -> Study:
    """Errors in the training images, each judged by a model that has not seen it; see `surer`."""
    config, train = checkpoints[0].config, data.load("train")
    judges: list[tuple[Explainer, Ints | slice]] = []
    for checkpoint in checkpoints:
        fold = fold_indices(train, checkpoint.config.fold)
        if len(fold) != checkpoint.metrics["test_total"]:
            raise Mistake("the data have changed since the first fold was trained: start another audit")
        judges.append((Explainer.of(checkpoint, config.device, threads=config.threads), fold))
    fitted = any(fitted_to_it(checkpoint, data) for checkpoint in checkpoints)
    return _errors(train, judges, checkpoints, fitted, questioned=True)


def of_rows(explainer: Explainer, checkpoint: Checkpoint, split: Split, rows: Ints) -> Cases:
    """The errors among some rows of a split."""
    some = split.take(rows, split.name)
    cases = _errors(some, [(explainer, slice(None))], [checkpoint], fitted=False, questioned=False).cases
    return replace(cases, index=rows[cases.index])


def of_pictures(
    explainer: Explainer, paths: Sequence[str], side: int, fit: Fit, most: int = 0
) -> Study:
    """Pictures of one's own, made squares of `side` pixels as in training, and classified."""
    pictures = images.read(paths, side, fit, most)
    start = perf_counter()
    parts = resize(pictures.inputs, explainer.model.resolution).split(BATCH)
    tracker = tracked(parts, "evaluation", len(pictures.names), len)
    logits, _, maps, inputs = explainer.examine((part.to(explainer.machine.device), None) for part in tracker)
    seconds, count = perf_counter() - start, len(logits)
    cases = Cases(
        name="own", total=count, classes=explainer.model.classes, index=np.arange(count),
        labels=None, logits=logits, class_maps=maps, inputs=inputs, pictures=pictures.tiles,
        files=pictures.names, disputed=np.zeros(count, bool),
    )
    return Study(cases, seconds, skipped=pictures.skipped)


def fitted_to_it(checkpoint: Checkpoint, data: DataSet) -> bool:
    """Whether the temperature is that of the validation images or of the fold that the run reported on."""
    config, metrics = checkpoint.config, checkpoint.metrics
    elsewhere = bool(config.fold) and data.has_validation()
    return not elsewhere and metrics.get("temperature", config.temperature) != config.temperature


def surer(logits: torch.Tensor, labels: Ints) -> Bools:
    """(N,) whether another class than the label is so likely by logits (N, C) as images of that class are on average.

    The rule of confident learning, by which a class's images set the threshold for it (Northcutt, Jiang and Chuang
    2021, JAIR 70, arXiv 1911.00068).
    """
    probabilities = logits.double().softmax(1).numpy()
    predicted = probabilities.argmax(1)
    of_label = np.take_along_axis(probabilities, labels[:, None], 1)[:, 0]
    sums, counts = (np.bincount(labels, weights, minlength=logits.shape[1]) for weights in (of_label, None))
    thresholds = np.where(counts, sums / np.maximum(counts, 1), np.inf)  # of a class without images there is none
    return (predicted != labels) & (probabilities.max(1) >= thresholds[predicted])


def _errors(
    split: Split, judges: Sequence[tuple[Explainer, Ints | slice]],
    checkpoints: Sequence[Checkpoint], fitted: bool, questioned: bool,
) -> Study:
    """The errors in a split, and the figures of all; `judges`: models, and the indices they judge."""
    start, parts = perf_counter(), []
    for explainer, part in judges:
        if split.classes != explainer.model.classes:
            raise Mistake("the data have other classes than the checkpoint: they have changed since it was trained")
        some, machine = split.take(part, split.name), explainer.machine
        loader = evaluation_loader(some, explainer.model.resolution, machine.device, machine.threads)
        batches = tracked(loader, "evaluation", len(some), lambda batch: int((batch[1] >= 0).sum()))
        parts.append(explainer.examine(batches))
    seconds = perf_counter() - start
    logits, wrong, maps, inputs = (torch.cat(column) for column in zip(*parts, strict=True))
    judged = np.concatenate([np.arange(len(split))[part] for _, part in judges])  # (N,) places, in the logits' order
    order = np.argsort(judged[wrong.numpy()])  # (E,) of the maps
    index = judged[wrong.numpy()][order]
    labels, errors = split.labels[judged], split.take(index, split.name)
    temperature = 1.0 if questioned else checkpoints[0].metrics.get("temperature", 1.0)
    disputed = surer(logits, labels)[wrong][order] if questioned else np.isin(index, split.disputed)
    cases = Cases(
        name=split.name, total=len(logits), classes=split.classes, index=index,
        labels=errors.labels, logits=logits[wrong][order], class_maps=maps[order],
        inputs=inputs[order].contiguous(memory_format=torch.channels_last),
        pictures=tiles(errors.images, LOOKED_AT), files=errors.files, disputed=disputed, questioned=questioned,
    )
    matrix = confusion_matrix(labels, logits.argmax(1).numpy(), len(split.classes))
    found, without = (calibration(logits * scale, labels) for scale in (1.0, temperature))
    metrics = [one.metrics for one in checkpoints]
    reported = sum(one.get("test_total", 0) - one.get("test_correct", 0) for one in metrics)
    return Study(cases, seconds, matrix, found, temperature, without.error, fitted, reported)
