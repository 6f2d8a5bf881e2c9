"""From the first version's style to ours, one change a rung: what each brings, also where it brings a loss.

The rungs run in turns, a lap each, so a slow minute of the machine slows all of them, and a gain is the median
quotient of laps that ran next to each other.

The bottom is the loader and the training loop that this project grew from, written fairly: torchvision transforms in
torch's DataLoader, image by image; float32, NCHW, Adam at 1e-3, batch 64, OneCycle, loss and accuracy read from the
device at every step. Its wrong loss (nll_loss on raw logits) is put right here: only its speed is compared.
"""

import gc
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from bench.core.clock import Batch, Lane, race, ratio
from bench.core.record import GAIN, Row
from bench.core.session import Say
from bench.core.setup import Setup
from engine.config import Config
from engine.convolution import use_torch_gradients
from engine.device import autocast
from engine.model import ResNet
from ground.mistake import Mistake
from pipeline.split import Split

Loader = DataLoader[tuple[Tensor, int]]
FIRST_BATCH = 64
WORKERS = 2
BOTTOM = "float32, NCHW, Adam, DataLoader, scalars read every step"


def measure_ladder(setup: Setup, say: Say) -> list[Row]:
    """Images/s of each rung, its gain over the one below, and the top's gain over the bottom."""
    lanes = {}
    for name, start in _rungs(setup).items():
        say(f"preparing {name}")
        lanes[name] = start()
    say("all rungs in turns")
    rates, laps = race(list(lanes.values()), setup.budget(4))
    rows, gains = [], []
    for i, (name, rate) in enumerate(zip(lanes, rates, strict=True)):
        gain, in_all = ratio(laps[i], laps[max(0, i - 1)]), ratio(laps[i], laps[0])
        note = f"{gain.median:.2f}x, {in_all.median:.2f}x in all"
        rows.append(Row.of_rate("ladder", name, rate, note if i else BOTTOM))
        gains.append(Row.of("ladder", f"{GAIN}{name}", "x", gain))
    if not setup.machine.compiled:
        rows.append(Row("ladder", "+ torch.compile", "images/s", note="with --compile on"))
    return [*rows, *gains[1:], Row.of("ladder", "top over bottom", "x", ratio(laps[-1], laps[0]))]


def _rungs(setup: Setup) -> dict[str, Callable[[], Lane]]:
    """Each rung by its name, from the bottom up: a function that starts it."""
    small, large, precision = min(FIRST_BATCH, setup.batch_size // 2), setup.batch_size, setup.precision
    sgd = setup.changed(muon_lr=0.0)
    first, fed_by_torch = partial(_first_lane, setup, small), partial(_lane_fed_by_torch, sgd)
    rungs: dict[str, Callable[[], Lane]] = {
        f"first version's style, batch {small}": first,
        "+ channels_last": partial(first, channels_last=True),
        f"+ mixed precision ({precision})": partial(first, channels_last=True, precision=precision),
        "+ no reading of scalars": partial(first, channels_last=True, precision=precision, synchronise=False),
        "+ our train_step, fused SGD": partial(fed_by_torch, small),
        f"+ batch {large}": partial(fed_by_torch, large),
        "+ DALI, uint8 to the model": partial(_our_lane, sgd, compiled=False, cuda_graph=False),
        "+ Muon, for accuracy": partial(_our_lane, setup, compiled=False, cuda_graph=False),
    }
    if setup.machine.compiled:
        rungs["+ torch.compile"] = partial(_our_lane, setup, cuda_graph=False)
    if setup.cuda:
        rungs["+ a step as one CUDA graph"] = partial(_our_lane, setup)
    return rungs


def _first_lane(setup: Setup, batch_size: int, **switches: Any) -> Lane:
    return Lane(_torch_batches(setup, batch_size), FirstVersion(setup, **switches).train_step, setup.device)


def _lane_fed_by_torch(setup: Setup, batch_size: int) -> Lane:
    """Our train_step, on normalised batches that come in float32 and NCHW, on the CPU."""
    learner = setup.cold_learner(compiled=False, cuda_graph=False)
    take_normalised(learner.model)

    def step(images: Tensor, labels: Tensor) -> None:
        there = images.to(setup.device, memory_format=torch.channels_last, non_blocking=True)
        learner.train_step(there, labels.to(setup.device, non_blocking=True))

    return Lane(_torch_batches(setup, batch_size), step, setup.device)


def _torch_batches(setup: Setup, batch_size: int) -> Iterator[Batch]:
    return for_ever(torch_loader(setup.split, setup.config, batch_size, WORKERS, normalise=True))


def _our_lane(setup: Setup, **without: bool) -> Lane:
    learner = setup.cold_learner(**without) if without else setup.learner()
    return Lane(setup.dali(setup.batch_size, setup.side), learner.train_step, setup.device)


class FirstVersion:
    """One training step at a time on images (B, 3, R, R) float32, normalised, and labels (B,), from the CPU.

    Args:
        channels_last: of the model and its images.
        precision: "fp32", or the type of convolutions under autocast.
        synchronise: read loss and accuracy at every step; else they are summed on the device.
    """

    def __init__(
        self, setup: Setup, channels_last: bool = False, precision: str = "fp32", synchronise: bool = True
    ) -> None:
        self.device, self.precision, self.synchronise = setup.device, precision, synchronise
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        model = ResNet(setup.split.classes, setup.config.depth, setup.config.width)
        self.model = model.to(self.device).to(memory_format=self.layout)
        take_normalised(self.model)
        use_torch_gradients(self.model)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, max_lr=1e-2, total_steps=10**9)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        self.sums = torch.zeros(2, device="cpu" if synchronise else self.device)  # of the loss and of right answers

    def train_step(self, images: Tensor, labels: Tensor) -> None:
        images = images.to(self.device, memory_format=self.layout, non_blocking=not self.synchronise)
        labels = labels.to(self.device, non_blocking=not self.synchronise)
        self.optimizer.zero_grad()
        with autocast(self.device, self.precision):
            logits = self.model(images)
            loss = F.cross_entropy(logits, labels)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        correct = (logits.argmax(1) == labels).sum()
        if self.synchronise:
            self.sums += torch.tensor([loss.item(), correct.item()])
        else:
            self.sums += torch.stack([loss.detach(), correct])


def take_normalised(model: nn.Module) -> None:
    """Let the model take float32 images that its loader has normalised."""
    model.normalise = lambda images: images  # type: ignore[assignment]


class _Pictures(Dataset[tuple[Tensor, int]]):
    def __init__(self, split: Split, transform: transforms.Compose) -> None:
        self.images, self.labels, self.transform = split.images, split.labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(np.asarray(self.images[index : index + 1])[0])), int(self.labels[index])


def torch_loader(split: Split, config: Config, batch_size: int, workers: int, normalise: bool = False) -> Loader:
    """torch's DataLoader with our augmentation, drawn anew for each image; the last, smaller batch is left out.

    Args:
        config: its `translate` and `cutout`, and the last of its resolutions R.
        workers: processes that load; 0 for the caller's own.
        normalise: float32 of mean 0 and deviation 1 by the split's statistics; else uint8.

    Yields images (B, 3, R, R) NCHW and labels (B,) int64, on the CPU.
    """
    steps: list[object] = [
        transforms.RandomCrop(split.side, padding=config.translate, padding_mode="reflect"),
        transforms.RandomHorizontalFlip(),
    ]
    if config.resolutions[-1] != split.side:
        steps.append(transforms.Resize(config.resolutions[-1]))
    floats = [transforms.ToTensor(), transforms.Normalize(*split.statistics)]
    steps += floats if normalise else [transforms.PILToTensor()]
    if config.cutout:
        share, fill = (config.cutout / split.side) ** 2, 0 if normalise else split.mean_colour
        steps.append(transforms.RandomErasing(p=1, scale=(share, share), ratio=(1, 1), value=fill))
    return DataLoader(
        _Pictures(split, transforms.Compose(steps)),
        batch_size,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        worker_init_fn=_leave_inherited_alone,
    )


def for_ever(loader: Loader) -> Iterator[Batch]:
    """The loader's batches, epoch after epoch; raises Mistake where shared memory is too small."""
    warnings.filterwarnings("ignore", message="This DataLoader will create")  # more workers than cores: on purpose
    try:
        while True:
            yield from loader
    except RuntimeError as error:
        if "shared memory" not in str(error):
            raise
        advice = "make it larger (docker run --shm-size 1g), or leave out the parts data and ladder (--only)"
        raise Mistake(f"/dev/shm is too small for the workers of torch's DataLoader: {advice}") from None


def _leave_inherited_alone(worker: int) -> None:
    """A worker is a fork: one that collects a DALI pipeline that its parent had dropped is aborted."""
    gc.freeze()
