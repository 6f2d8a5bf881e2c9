"""The row of a finished epoch: what log.jsonl, TensorBoard, the curves, the screen and the resume states say of it."""

from typing import TypedDict


# Every column but `split` is a number: run/schema.py refuses a state where one is not.
class EpochRow(TypedDict):
    epoch: int
    """Counted from 1."""
    epochs: int
    """How many the whole run has."""
    step: int
    """Steps done."""
    steps: int
    """How many the whole run has."""
    resolution: int
    """Side in pixels of the images, those trained on and those evaluated on."""
    lr: float
    """Learning rate of the next step, of all but norm biases and Muon's filters."""
    train_seconds: float
    wait_seconds: float
    """Those of train_seconds in which data was waited for."""
    eval_seconds: float
    it_per_s: float
    """Training steps a second."""
    images_per_s: float
    """Training images a second, of all ranks together."""
    split: str
    """The images that the reported_ values are of: "test" or "validation"."""
    loss: float
    """Mean over the epoch's augmented training images, as train_accuracy."""
    train_accuracy: float
    """0 to 1, as all accuracies."""
    last_loss: float
    """Mean over the last batch, as last_accuracy."""
    last_accuracy: float
    reported_loss: float
    reported_correct: int
    reported_total: int
    reported_accuracy: float
    reported_class_accuracy: float
    """Mean of the classes' own accuracies."""
