"""Forward, backward and optimizer of the real train_step, told apart without a second copy of it.

The learner's own turning points are listened to, both calls of its scaler: backward starts where the loss is scaled,
the optimizer where the scaler takes its step.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from engine.learner import Learner

PHASES = ("forward", "backward", "optimizer")


class Phases:
    """A learner's train_step that calls `enter` with each of PHASES as it begins, and with "" at the end."""

    def __init__(self, learner: Learner, enter: Callable[[str], None]) -> None:
        self._learner, self._enter = learner, enter
        scale, step = learner.scaler.scale, learner.scaler.step

        def scale_and_tell(loss: Any) -> Any:
            enter("backward")
            return scale(loss)

        def step_and_tell(optimizer: torch.optim.Optimizer) -> float | None:
            enter("optimizer")
            return step(optimizer)

        learner.scaler.scale = scale_and_tell  # type: ignore[method-assign, assignment]
        learner.scaler.step = step_and_tell  # type: ignore[method-assign]

    def train_step(self, images: Tensor, labels: Tensor) -> None:
        self._enter("forward")
        self._learner.train_step(images, labels)
        self._enter("")
