"""What is explained: the errors of the split that a checkpoint was reported on, or pictures of one's own.

    study = of_split(loaded, device, threads, "bf16")
    study = of_pictures(["holiday"], loaded, device, "bf16")

Both run the checkpoint's model, which is on the device, over all images, with a bar for the time left.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from engine.checkpoint import Checkpoint
from explain import errors, images
from explain.errors import Calibration, Errors, Ints
from explain.phase import Phase
from pipeline import splits
from pipeline.cifar10 import UInt8
from pipeline.dali import evaluation_loader


@dataclass(frozen=True, eq=False)
class Study:
    errors: Errors
    images: UInt8
    """(E, S, S, 3), the errors' pictures to look at."""
    seconds: float
    """That the model's pass over all images took."""
    matrix: Ints | None = None
    """(C, C) counts, row the true class, column the predicted one; None without labels."""
    calibration: Calibration | None = None
    skipped: tuple[str, ...] = ()
    """Files that could not be read, each with the reason."""


def of_split(checkpoint: Checkpoint, device: torch.device, threads: int, precision: str) -> Study:
    """One pass over the split, with the checkpoint's model on the device.

    Raises:
        ValueError: a logit is not a finite number.
        OSError: the data set cannot be read.
    """
    config = checkpoint.config
    if config.validate:
        split = splits.training_splits(True, config.generated)[1]
    else:
        split = splits.test_split(config.generated)
    with Phase("evaluation", len(split.images)) as phase:
        loader = evaluation_loader(split, checkpoint.model.resolution, device, threads)
        outcome = errors.examine(checkpoint.model, loader, device, precision, phase.advance)
        wrong = errors.misclassified(outcome, split)
    matrix = errors.confusion_matrix(outcome.labels, outcome.predicted)
    return Study(wrong, split.images[wrong.index], phase.seconds, matrix, errors.calibration(outcome))


def of_pictures(paths: Sequence[str], checkpoint: Checkpoint, device: torch.device, precision: str) -> Study:
    """Pictures of one's own, read and classified.

    Raises:
        ValueError: none of them can be read, or a logit is not a finite number.
        OSError: a path does not exist.
    """
    model = checkpoint.model
    with Phase("reading", len(images.find(paths))) as phase:
        pictures = images.read(paths, model.resolution, phase.advance)
    with Phase("evaluation", len(pictures.names)) as phase:
        found = images.classify(model, pictures, device, precision, phase.advance)
    return Study(found, pictures.tiles, phase.seconds, skipped=pictures.skipped)
