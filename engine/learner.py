"""Training and evaluation on any iterable of (images, labels) on the device; prints and writes nothing.

Inside an epoch nothing waits for the device: metrics stay on it until `peek` finds them arrived.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.config import Config
from engine.device import autocast
from engine.distributed import ALONE, World
from engine.graph import StepGraph
from engine.machine import Machine
from engine.model import ResNet
from engine.optimizer import create_optimizer, one_cycle
from ground.mistake import Mistake

Batch = tuple[Tensor, Tensor]

CUDA_GRAPH_MODES = ("reduce-overhead", "max-autotune")
LOOKAHEAD_EVERY = 5  # steps; with the decay below as in airbench94 (Keller Jordan, arXiv 2404.00498)
LOOKAHEAD_DECAY = 0.95**5


@dataclass(frozen=True)
class Progress:
    """Training metrics of all ranks since the start of the epoch, as of some recent step."""

    loss: float
    accuracy: float
    last_loss: float
    last_accuracy: float
    images: int


@dataclass(frozen=True)
class Evaluation:
    loss: float
    correct: int
    total: int
    class_accuracy: float
    """Mean of the classes' own accuracies, of those that there are images of."""
    answers: Tensor = field(default=torch.zeros(2, 0), compare=False)
    """(2, n) float64, of this rank's images in their order, padding last: probability and predicted class."""

    @property
    def accuracy(self) -> float:
        return self.correct / self.total


class NonFiniteLoss(ArithmeticError):
    """The loss of `step` (global, from 0) was not a finite number, or the weights after it."""

    def __init__(self, step: int, steps_per_epoch: int, what: str = "loss was") -> None:
        super().__init__(f"the {what} not finite at epoch {step // steps_per_epoch + 1}, step {step}")
        self.step = step


class Learner:
    """A model, which is on the machine's device and is trained in place, with all that its training needs.

    If the machine compiles, forward and loss are one graph (the backward comes with it). With several ranks each
    trains on its share of the batches, and the model starts from rank 0's weights.

    Raises Mistake where batch norm across ranks is asked for on a CPU, or a rank's share is too small for batch norm.
    """

    def __init__(self, model: ResNet, config: Config, steps_per_epoch: int, machine: Machine) -> None:
        if config.batch_size < 2 * machine.world.size:
            raise Mistake(f"--batch-size is {config.batch_size}: {machine.world.size} processes need 2 images each")
        self.model, self.config, self.machine = model.train(), config, machine
        self._replica = machine.world.replicate(model, config.sync_batch_norm)
        self.steps_per_epoch, self.total_steps = steps_per_epoch, steps_per_epoch * config.epochs
        self.step = 0
        dtype = torch.bfloat16 if machine.precision == "bf16" else torch.float32
        self.optimizer = create_optimizer(model, config, dtype)
        # The groups' own lr is the peak only now: a step sets it, or leaves it to its CUDA graph.
        self._peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.scaler = torch.amp.GradScaler(machine.device.type, enabled=machine.precision == "fp16")
        self.lookahead = Lookahead(model) if config.lookahead else None
        self._forward_and_loss: Callable[..., tuple[Tensor, Tensor]] = _forward_and_loss
        self.compiler_replays = False
        if machine.compiled:
            self.use_backend("inductor", config.compile_mode)
        self.metrics = Metrics(machine.device, machine.world)
        self.graphs: dict[torch.Size, StepGraph] = {}
        """By the images' shape: see engine/warm_up.py."""

    def use_backend(self, backend: str, mode: str | None = None) -> None:
        """Compile forward and loss as one graph, by a backend and mode of torch.compile; one for each shape."""
        self._forward_and_loss = torch.compile(
            _forward_and_loss, fullgraph=True, dynamic=False, backend=backend, mode=mode
        )
        self.compiler_replays = self.machine.device.type == "cuda" and mode in CUDA_GRAPH_MODES

    def train_step(self, images: Tensor, labels: Tensor) -> None:
        """One training step on images (B, 3, H, W) uint8 and labels (B,) int64, both on the device."""
        if self.step % self.steps_per_epoch == 0:  # not before: a state between two epochs still holds these
            self.metrics.reset()
        # A pure function of the step: a run that goes on needs no scheduler's state.
        rates = [one_cycle(self.config, peak, self.step, self.total_steps) for peak in self._peaks]
        graph = self.graphs.get(images.shape)  # on a GPU: all of `update`, started by one call of the host
        if graph:
            graph.replay(images, labels, self.step, rates)
        else:
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            self.update(images, labels, self.step)
        self.step += 1
        if self.lookahead and (self.step % LOOKAHEAD_EVERY == 0 or self.step == self.total_steps):
            self.lookahead.update(self.step / self.total_steps)

    def update(self, images: Tensor, labels: Tensor, step: int | Tensor) -> None:
        """Forward, backward, optimizer and metrics."""
        loss, correct = self.loss(images, labels)
        share = self.machine.world.scale_loss(loss, len(labels), self.config.batch_size)
        # fp16 alone scales: small gradients would round to 0 there. For other types the scaler does nothing.
        self.scaler.scale(share).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.metrics.add(step, loss.detach(), correct, len(labels))

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss () and number of correct ones () of a batch; a backward pass must follow."""
        if self.compiler_replays:
            torch.compiler.cudagraph_mark_step_begin()  # the replay may write over the last step's results
        smoothing, precision = self.config.label_smoothing, self.machine.precision
        return self._replica(self._forward_and_loss, images, labels, smoothing, precision)

    def end_epoch(self) -> Progress:
        """Wait for the device; then the metrics of the epoch so far. Raises NonFiniteLoss: the model is spoilt."""
        self.check_finite()
        return self.metrics.read()

    def evaluate(
        self, batches: Iterable[Batch], flip: bool = False,
        after_batch: Callable[[], None] = lambda: None, temperature: float = 1.0,
    ) -> Evaluation:  # fmt: skip
        return evaluate(self.model, batches, self.machine, flip, after_batch, temperature)

    def check_finite(self) -> None:
        """Wait for the device; raise NonFiniteLoss if a loss so far, or a weight now, is not finite."""
        bad = float(self.metrics.values[6])
        if math.isfinite(bad):
            raise NonFiniteLoss(int(bad), self.steps_per_epoch)
        norms = torch._foreach_norm(_floating(self.model))
        if not bool(torch.stack(norms).isfinite().all()):
            raise NonFiniteLoss(self.step - 1, self.steps_per_epoch, "weights were")

    def peek(self) -> Progress | None:
        """The epoch's metrics so far without waiting: None while the device has not delivered them."""
        return self.metrics.peek()

    def lr_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0, by the peak `max_lr`; 0 after the last."""
        if step >= self.total_steps:
            return 0.0
        return one_cycle(self.config, self.config.max_lr, step, self.total_steps)

    def state_dict(self) -> dict[str, Any]:
        """Copies of all that the next step depends on, as tensors on the CPU and plain values."""
        return _host_copy(
            {
                "step": self.step,
                "model": dict(self.model.state_dict()),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "lookahead": self.lookahead.slow if self.lookahead else [],
                "metrics": self.metrics.values,
            }
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()` of a learner of the same config.

        Raises ValueError, KeyError, RuntimeError or the like where it does not fit; the learner is spoilt then.
        """
        self.step = state["step"]
        self.graphs.clear()  # they write to the momentum of before
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for parameter, kept in self.optimizer.state.items():
            if kept["momentum_buffer"] is not None and kept["momentum_buffer"].shape != parameter.shape:
                raise ValueError("the optimizer's momentum does not have the weights' shapes")
        self.scaler.load_state_dict(state["scaler"])
        if self.lookahead:
            torch._foreach_copy_(self.lookahead.slow, [t.to(self.machine.device) for t in state["lookahead"]])
        self.metrics.values.copy_(state["metrics"])


def _floating(model: nn.Module) -> list[Tensor]:
    """Weights and batch norm's statistics, without its counters."""
    return [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]


def _host_copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _host_copy(item) for key, item in value.items()}
    return [_host_copy(item) for item in value] if isinstance(value, list) else value


def _forward_and_loss(
    model: ResNet, images: Tensor, labels: Tensor, smoothing: float, precision: str
) -> tuple[Tensor, Tensor]:
    # Not around the call: torch.compile would then trace the backward pass in mixed precision, the head's too.
    with autocast(images.device, precision):
        logits = model(images)
    correct = (logits.argmax(1) == labels).sum()
    if (weights := model.loss_weights) is None:
        return F.cross_entropy(logits, labels, label_smoothing=smoothing), correct
    # The sum over the batch's size: torch's mean would weigh all batches alike, whatever classes they hold.
    loss = F.cross_entropy(logits, labels, weights, reduction="sum", label_smoothing=smoothing)
    return loss / len(labels), correct


class Lookahead:
    """Slow weights that follow the fast ones every few steps, then replace them; batch norm's statistics too.

    Zhang et al. 2019, arXiv 1907.08610.
    """

    def __init__(self, model: nn.Module) -> None:
        self.fast = _floating(model)
        self.slow = [t.clone() for t in self.fast]

    @torch.no_grad()
    def update(self, progress: float) -> None:
        """The slow weights' inertia grows with the cube of `progress`, 0..1; at 1 they are the result."""
        pull = 0.0 if progress == 1 else 1 - LOOKAHEAD_DECAY * progress**3
        torch._foreach_lerp_(self.slow, self.fast, pull)
        torch._foreach_copy_(self.fast, self.slow)


class Metrics:
    """An epoch's sums in one tensor on the device, and a copy of it on its way to the host."""

    def __init__(self, device: torch.device, world: World = ALONE) -> None:
        self._world = world
        # Sums of loss * images, correct, images; the same of the last batch; the first step with a bad loss.
        self.values = torch.tensor([0, 0, 0, 0, 0, 0, math.inf], dtype=torch.float64, device=device)
        self._host = torch.zeros_like(self.values, device="cpu", pin_memory=device.type == "cuda")
        self._arrived = torch.cuda.Event() if device.type == "cuda" else None
        self._on_its_way = False

    @torch.no_grad()
    def add(self, step: int | Tensor, loss: Tensor, correct: Tensor, images: int) -> None:
        total = loss.double() * images
        last = self.values[3:6]
        torch.stack([total, correct.double(), torch.full_like(total, images)], out=last)
        # 24 bytes a step: any rank can then stop or save anywhere, knowing all there is.
        self._world.sum_(last)
        self.values[:3] += last
        finite = last[0] - last[0] == 0  # two kernels; isfinite() takes four
        self.values[6] = torch.where(finite, self.values[6], self.values[6].clamp(max=step))

    def read(self) -> Progress:
        return _progress(self.values)

    def peek(self) -> Progress | None:
        if self._arrived is None:
            return self.read()
        ready = self._on_its_way and self._arrived.query()
        progress = _progress(self._host) if ready else None
        if ready or not self._on_its_way:
            self._host.copy_(self.values, non_blocking=True)
            self._arrived.record()
            self._on_its_way = True
        return progress

    def reset(self) -> None:
        self.values[:6] = 0
        self._on_its_way = False


def _progress(values: Tensor) -> Progress:
    loss, correct, images, last_loss, last_correct, last_images, _ = values.tolist()
    count, last = max(images, 1), max(last_images, 1)
    return Progress(loss / count, correct / count, last_loss / last, last_correct / last, int(images))


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Iterable[Batch], machine: Machine,
    flip: bool = False, after_batch: Callable[[], None] = lambda: None, temperature: float = 1.0,
) -> Evaluation:  # fmt: skip
    """Mean cross-entropy and correct count over all batches, in eval mode; the model's mode is put back.

    Labels of -1 are padding and do not count. With `flip` the logits are averaged over each image
    and its mirror image, but for the `answers`, whose logits are divided by the `temperature`. Each
    rank gives its own batches, none of them too, and gets the result of all, with its own answers;
    the model's running statistics become rank 0's. `after_batch` is called after each batch, and
    may stop the evaluation.
    """
    machine.world.share_buffers(model)
    was_training = model.training
    model.eval()
    count = model.get_submodule("fc").get_parameter("bias").numel()
    # One tensor, so that one exchange sums it over the ranks: the loss, each class's right ones, each class's all.
    sums = torch.zeros(1 + 2 * count, dtype=torch.float64, device=machine.device)
    loss_sum, rights, counts = sums[0], sums[1 : 1 + count], sums[1 + count :]
    answers = [torch.zeros(2, 0, dtype=torch.float64, device=machine.device)]
    for images, labels in batches:
        logits = predict_logits(model, images, machine.device, machine.precision)
        answers.append(torch.stack([*(logits.double() / temperature).softmax(1).max(1)]))
        if flip:
            mirrored = predict_logits(model, images.flip(3), machine.device, machine.precision)
            logits = (logits + mirrored) / 2
        loss_sum += F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum").double()
        classes = labels.clamp(min=0)
        rights.index_add_(0, classes, (logits.argmax(1) == labels).double())
        counts.index_add_(0, classes, (labels >= 0).double())
        after_batch()
    model.train(was_training)
    machine.world.sum_(sums)
    rights, counts = rights.cpu(), counts.cpu()
    total = int(counts.sum())
    by_class = (rights / counts)[counts > 0]
    loss = float(loss_sum) / total
    return Evaluation(loss, int(rights.sum()), total, float(by_class.mean()), torch.cat(answers, 1))


def predict_logits(
    model: nn.Module, images: Tensor, device: torch.device, precision: str
) -> Tensor:
    """Logits (B, classes) float32 of uint8 images (B, 3, H, W) on the device, in mixed precision."""
    with autocast(device, precision):
        return model(images)
