"""An epoch as train.py trains it, without what it records."""


def train_epoch(learner, batches):
    """Train on all batches; returns the epoch's metrics."""
    for images, labels in batches:
        learner.train_step(images, labels)
    return learner.end_epoch()
