"""Every image a model gets wrong, found in one pass, with the heatmaps of all of them.

    outcome = examine(model, batches, device, "bf16")
    errors = misclassified(outcome, split)
    maps = explain(model, errors, "layer4", "gradcam", "pred", device, "bf16")

The evaluation pass itself yields all ten layer4 maps of every image; other layers need one more forward and backward
pass, over the errors alone. `python gradcam.py` does this for the test set.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine import runtime
from engine.model import ResNet
from explain.cam import class_maps, evaluating, heatmaps, margin
from pipeline.cifar10 import CLASSES, DISPUTED_TEST_INDICES, SHA256, Split

BATCH = 250

Array = npt.NDArray[np.generic]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one pass over a split found, on the CPU: N images, C classes, of which E wrong."""

    labels: Ints
    """(N,) true classes."""
    logits: Tensor
    """(N, C) float32."""
    class_maps: Tensor
    """(N, C, h, w) float32, raw maps of the last stage."""
    wrong_inputs: Tensor
    """(E, 3, R, R) uint8, channels_last: the misclassified images as the model saw them, in order."""

    @property
    def predicted(self) -> Ints:
        """(N,) the class of the largest logit."""
        return self.logits.argmax(1).numpy()

    @property
    def probabilities(self) -> Floats:
        """(N, C) softmax."""
        return self.logits.double().softmax(1).numpy()

    @property
    def wrong(self) -> Ints:
        """(E,) indices of the misclassified images, rising."""
        return np.flatnonzero(self.predicted != self.labels)


@dataclass(frozen=True, eq=False)
class Errors:
    """The misclassified images of a split, E of `total`, in order of their index; every array starts with E."""

    split: str
    """Name of the split."""
    total: int
    index: Ints
    """Place in the split."""
    true: Ints
    predicted: Ints
    probabilities: Floats
    """(E, C) softmax."""
    loss: Floats
    """Cross-entropy in nats."""
    rank: Ints
    """Place of the true class in the order of the logits, 2 being the runner-up."""
    disputed: npt.NDArray[np.bool_]
    """Annotators disagree about the label; known of CIFAR-10's test set only, elsewhere False."""
    logits: Tensor
    """(E, C) float32."""
    class_maps: Tensor
    """(E, C, h, w) float32, raw maps of the last stage."""
    inputs: Tensor
    """(E, 3, R, R) uint8, as the model saw them."""
    files: tuple[str, ...] = ()
    """(E,) names of pictures of one's own: they have no label, `true` is the runner-up, all count as errors."""

    @property
    def rival(self) -> str:
        """What the class `true` is: "true", or "second" of pictures without a label."""
        return "second" if self.files else "true"

    def __len__(self) -> int:
        return len(self.index)

    def probability(self, classes: Ints) -> Floats:
        """(E,) probability of the given class of each image."""
        return np.take_along_axis(self.probabilities, classes[:, None], 1)[:, 0]

    def select(self, sort: str = "loss", true: str = "any", predicted: str = "any", seed: int = 0) -> Ints:
        """Positions of the errors between two classes (or "any"), largest loss or confidence first, or as named.

        Equal values stay in order of their index, so the order is always the same.

        Raises:
            ValueError: unknown order or class, or no error matches.
        """
        keys: dict[str, Callable[[], Array]] = {
            "loss": lambda: -self.loss,
            "confidence": lambda: -self.probability(self.predicted),
            "index": lambda: self.index,
            "random": lambda: np.random.default_rng(seed).permutation(len(self)),
        }
        if sort not in keys:
            raise ValueError(f"--sort is {sort}: it must be one of {', '.join(keys)}")
        keep = np.ones(len(self), bool)
        for name, classes in ((true, self.true), (predicted, self.predicted)):
            if name != "any":
                keep &= classes == class_number(name)
        if len(self) and not keep.any():
            what = "pictures is of" if self.files else f"errors is of true class {true} and"
            raise ValueError(f"none of the {len(self)} {what} predicted class {predicted}")
        order = np.argsort(keys[sort](), kind="stable")
        return order[keep[order]]


@dataclass(frozen=True, eq=False)
class Maps:
    """Raw, signed heatmaps of all errors, (E, h, w) float32 each."""

    layer: str
    method: str
    target: str
    computed: int
    """Maps that were computed: at layer4 those of all classes of all images."""
    predicted: Tensor
    """Of the predicted class."""
    true: Tensor
    """Of the true class."""
    chosen: Tensor
    """Of `target`."""
    every: Tensor | None = None
    """(E, C, h, w), of all classes; only where they were asked for."""

    @property
    def margin(self) -> Tensor:
        """Predicted minus true."""
        return margin(self.predicted, self.true)


def examine(
    model: ResNet,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    precision: str,
    on_batch: Callable[[int], None] = lambda images: None,
) -> Outcome:
    """One pass over images (B, 3, R, R) uint8 and labels (B,) int64 on the device; labels of -1 are padding.

    Args:
        model: on the device; used in eval mode and left as it was.
        precision: "bf16", "fp16" or "fp32", of the convolutions.
        on_batch: called after each batch with the number of its images.

    Raises:
        ValueError: a logit is not a finite number.
    """
    parts: list[tuple[Tensor, ...]] = []
    with evaluating(model), torch.no_grad(), runtime.autocast(device, precision):
        for images, labels in batches:
            features = model.features(images)
            logits = model.head(features)
            counted = labels >= 0
            wrong = counted & (logits.argmax(1) != labels)
            maps = class_maps(features, model.fc)
            parts.append(tuple(t.cpu() for t in (labels[counted], logits[counted], maps[counted], images[wrong])))
            on_batch(len(parts[-1][0]))
    labels, logits, maps, inputs = (torch.cat(column) for column in zip(*parts, strict=True))
    bad = int((~logits.isfinite()).any(1).sum())
    if bad:
        raise ValueError(f"the model's logits are not finite for {bad} of {len(logits)} images: its weights are spoilt")
    return Outcome(labels.numpy(), logits, maps, inputs.contiguous(memory_format=torch.channels_last))


def misclassified(outcome: Outcome, split: Split) -> Errors:
    """The errors of a pass over `split`."""
    wrong, logits = outcome.wrong, outcome.logits[outcome.wrong]
    true = outcome.labels[wrong]
    order = logits.argsort(dim=1, descending=True, stable=True).numpy()
    known = split.labels_sha256 == SHA256["test_labels"]
    return Errors(
        split=split.name,
        total=len(outcome.labels),
        index=wrong,
        true=true,
        predicted=outcome.predicted[wrong],
        probabilities=outcome.probabilities[wrong],
        loss=torch.nn.functional.cross_entropy(logits.double(), torch.from_numpy(true), reduction="none").numpy(),
        rank=1 + (order == true[:, None]).argmax(1),
        disputed=np.isin(wrong, list(DISPUTED_TEST_INDICES)) & known,
        logits=logits,
        class_maps=outcome.class_maps[wrong],
        inputs=outcome.wrong_inputs,
    )


def explain(
    model: ResNet,
    errors: Errors,
    layer: str,
    method: str,
    target: str,
    device: torch.device,
    precision: str,
    on_batch: Callable[[int], None] = lambda images: None,
    every: bool = False,
) -> Maps:
    """Heatmaps of every error for its predicted and its true class, for `target`, and with `every` for all classes.

    Args:
        layer: one of engine.model.STAGES; layer4's maps are those of the evaluation pass.
        method: one of explain.cam.METHODS.
        target: "pred", "true", "margin" (predicted minus true) or the name of a class.
        on_batch: called after each batch with the number of its images.

    Raises:
        ValueError: unknown layer, method or target.
    """
    columns = [errors.predicted, errors.true]
    if target not in ("pred", "true", "margin"):
        columns.append(np.full_like(errors.true, class_number(target)))
    classes = torch.from_numpy(np.stack(columns, 1))
    whole = errors.class_maps
    if layer != "layer4":
        asked = torch.arange(len(CLASSES)).expand(len(errors), -1) if every else classes
        parts = []
        with runtime.autocast(device, precision):
            for images, wanted in zip(errors.inputs.split(BATCH), asked.split(BATCH), strict=True):
                parts.append(heatmaps(model, images, wanted, layer, method, BATCH).cpu())
                on_batch(len(images))
        whole = torch.cat(parts)
    else:
        on_batch(len(errors))
    named = every or layer == "layer4"
    maps = whole[torch.arange(len(errors))[:, None], classes] if named else whole
    computed = errors.total * len(CLASSES) if layer == "layer4" else whole.shape[0] * whole.shape[1]
    predicted, true, other = maps[:, 0], maps[:, 1], maps[:, -1]
    chosen = {"pred": predicted, "true": true, "margin": margin(predicted, true)}.get(target, other)
    return Maps(layer, method, target, computed, predicted, true, chosen, whole if every else None)


def class_number(name: str) -> int:
    """Index of a class by its name; ValueError if there is none of that name."""
    if name not in CLASSES:
        raise ValueError(f"class {name!r} is unknown: it must be one of {', '.join(CLASSES)}")
    return CLASSES.index(name)


def confusion_matrix(labels: Ints, predicted: Ints, classes: int = len(CLASSES)) -> Ints:
    """(C, C) counts: row the true class, column the predicted one."""
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def top_confusions(matrix: Ints, count: int = 5) -> list[tuple[int, int, int]]:
    """The `count` most frequent confusions (true, predicted, images), most frequent first, none of 0 images."""
    wrong = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    pairs = zip(*(part.tolist() for part in np.unravel_index(order, wrong.shape)), strict=True)
    return [(true, predicted, int(wrong[true, predicted])) for true, predicted in pairs if wrong[true, predicted]]


def class_errors(matrix: Ints) -> Ints:
    """(C,) misclassified images of each true class."""
    return matrix.sum(1) - np.diag(matrix)


@dataclass(frozen=True, eq=False)
class Calibration:
    """Confidence against accuracy in equal bins of confidence; empty bins hold 0."""

    error: float
    """Expected calibration error, 0..1: the bins' |accuracy - confidence|, weighted by their images."""
    images: Ints
    confidence: Floats
    accuracy: Floats


def calibration(outcome: Outcome, bins: int = 15) -> Calibration:
    """Calibration of the predicted classes (Guo et al. 2017, arXiv 1706.04599)."""
    confidence, right = outcome.probabilities.max(1), outcome.predicted == outcome.labels
    place = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    images = np.bincount(place, minlength=bins)
    mean_confidence, accuracy = (
        np.bincount(place, weights=values, minlength=bins) / np.maximum(images, 1) for values in (confidence, right)
    )
    error = float((images * np.abs(accuracy - mean_confidence)).sum() / images.sum())
    return Calibration(error, images, mean_confidence, accuracy)
