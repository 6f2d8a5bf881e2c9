"""Before the first step: torch.compile's graphs and the GPU's recordings are made; nothing is trained."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from engine.device import synchronise
from engine.graph import StepGraph
from engine.learner import Learner
from ground.memory import out_of_memory

PASSES = 3  # on CUDA: torch.compile's own graphs are recorded in the second, replayed in the third


def needs_warm_up(learner: Learner) -> bool:
    return learner.machine.compiled or _records(learner) or learner.machine.world.size > 1


def warm_up(learner: Learner, batch_size: int) -> list[str]:
    """Compile, and on a GPU record, the step of every resolution, for batches of (batch_size, 3, R, R).

    Recording takes steps; what they changed is put back. Returns what could not be done, in lines for a person.

    With several ranks DistributedDataParallel also settles the groups in which gradients are sent, which else it
    would change after a process's first step. They decide in what order numbers are added: a resumed run would
    round differently.
    """
    device, notes = learner.machine.device, []
    with _put_back(learner), _stream_of_its_own(_records(learner)):
        for side in sorted(set(learner.config.resolutions)):
            nhwc = torch.zeros(batch_size, side, side, 3, dtype=torch.uint8, device=device)
            images, labels = nhwc.permute(0, 3, 1, 2), nhwc.new_zeros(batch_size, dtype=torch.int64)
            for _ in range(PASSES if device.type == "cuda" else 1):
                # As in a step, since CUDA graphs record what is alive: `correct` during the backward pass, no
                # gradients after it.
                loss, correct = learner.loss(images, labels)
                loss.backward()
                learner.optimizer.zero_grad(set_to_none=True)
                del loss, correct
            if _records(learner):
                try:
                    learner.graphs[images.shape] = StepGraph(learner.update, learner.optimizer, images, labels)
                except RuntimeError as error:
                    if out_of_memory(error):
                        raise
                    why = str(error).splitlines()[0]
                    notes.append(f"slower than it could be: no CUDA graph of a step at {side} px ({why})")
    synchronise(device)
    return notes


def _records(learner: Learner) -> bool:
    """Whether each shape of batch gets a CUDA graph of the whole step. Not with fp16, which decides at each step on
    the host whether to skip it; nor with several ranks, not tried."""
    machine = learner.machine
    alone = machine.world.size == 1 and not learner.compiler_replays
    wanted = learner.config.cuda_graph and machine.device.type == "cuda"
    return wanted and machine.precision != "fp16" and alone


@contextmanager
def _stream_of_its_own(wanted: bool) -> Iterator[None]:
    """What is recorded may meet nothing of the default stream, and autograd keeps a parameter's node on the stream
    where it was made."""
    if not wanted:
        yield
        return
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


@contextmanager
def _put_back(learner: Learner) -> Iterator[None]:
    """Afterwards all tensors that a step writes to have the values of before."""

    def momentum() -> list[Tensor]:
        buffers = [state["momentum_buffer"] for state in learner.optimizer.state.values()]
        return [buffer for buffer in buffers if buffer is not None]

    tensors = [*learner.model.state_dict().values(), *momentum(), learner.metrics.values]
    copies = {id(tensor): tensor.clone() for tensor in tensors}
    yield
    for tensor in tensors:
        tensor.copy_(copies[id(tensor)])
    for buffer in momentum():
        if id(buffer) not in copies:
            buffer.zero_()  # which a first step starts from
