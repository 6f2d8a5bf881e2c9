"""A whole training step as one CUDA graph: the host starts hundreds of kernels with one call.

Without it the host is the limit. On an H200 with 16 cores (2026-11-26, torch 2.11, ResNet-18, batch 512, bf16) a step
keeps the GPU busy for 7 ms, but the host needs 15 ms to start its 640 kernels one by one, and 7.6 ms where
torch.compile's own CUDA graphs hold the forward and the backward pass alone.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class StepGraph:
    """`update(images, labels, step)` of batches of one shape, recorded once and replayed at each step.

    A graph runs the same kernels on the same memory again. So each batch is copied into the recorded one's memory,
    and what changes from step to step, its number and the learning rates, is read from the device.

    Args:
        update: one training step; `step` is a float64 tensor () on the device.
        optimizer: its groups' "lr" are tensors () on the device while `update` is recorded, then numbers again.
        images, labels: a batch of the shape to record, on the device; they become what batches are copied to.

    Recording trains: two steps, at a learning rate of 0. It needs a stream of its own, on which everything that it
    meets ran before, and comes before DALI's first batch, since freeing memory would end the recording. Raises
    RuntimeError where the step cannot be recorded.
    """

    def __init__(
        self, update: Callable[[Tensor, Tensor, Tensor], None], optimizer: torch.optim.Optimizer,
        images: Tensor, labels: Tensor,
    ) -> None:  # fmt: skip
        self._images, self._labels = images, labels
        self._step = torch.zeros((), dtype=torch.float64, device=images.device)
        self._rates = [torch.zeros((), device=images.device) for _ in optimizer.param_groups]
        self._graph = torch.cuda.CUDAGraph()
        numbers = [group["lr"] for group in optimizer.param_groups]
        for group, rate in zip(optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate
        try:
            for _ in range(2):  # libraries pick their kernels and take their memory before the recording
                update(images, labels, self._step)
            stream = torch.cuda.current_stream()
            with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
                update(images, labels, self._step)
        finally:
            for group, number in zip(optimizer.param_groups, numbers, strict=True):
                group["lr"] = number

    def replay(self, images: Tensor, labels: Tensor, step: int, rates: Sequence[float]) -> None:
        """The step with this batch, number and learning rates. The host does not wait."""
        self._images.copy_(images)
        self._labels.copy_(labels)
        self._step.fill_(step)
        for tensor, rate in zip(self._rates, rates, strict=True):
            tensor.fill_(rate)
        self._graph.replay()
