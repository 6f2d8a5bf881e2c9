"""Which images a run trains on and which it reports on."""

from pipeline import cifar10
from pipeline.cifar10 import Split
from pipeline.synthetic import generated

HELD_OUT = 5_000  # the last training images, for choosing settings without the test set


def training_splits(validate: bool, generate: bool) -> tuple[Split, Split]:
    """The training images and those to report on: the test set, or with `validate` the last 5,000 training images.

    With `validate` the test set is not opened. `generate` gives 2,048 and 512 generated images.
    """
    if generate:
        return generated(2048, "training", seed=0), test_split(generate)
    train = cifar10.load("train")
    if not validate:
        return train, test_split(generate)
    cut = len(train.images) - HELD_OUT
    return (
        Split(train.images[:cut], train.labels[:cut], "training"),
        Split(train.images[cut:], train.labels[cut:], "validation"),
    )


def test_split(generate: bool) -> Split:
    """The 10,000 test images, or 512 generated ones."""
    return generated(512, "test", seed=1) if generate else cifar10.load("test")
