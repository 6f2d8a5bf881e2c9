"""The training loop this project grew from, written fairly, and the first changes to it, each a switch.

Float32, NCHW, Adam at 1e-3, batch 64, OneCycle, torchvision transforms in torch's DataLoader, loss and accuracy read
from the device at every step. Its wrong loss (nll_loss on raw logits) is put right here: only its speed is compared.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.config import Config
from engine.convolution import use_torch_gradients
from engine.device import autocast
from engine.model import ResNet


class FirstVersion:
    """One training step at a time on images (B, 3, R, R) float32, normalised, and labels (B,), from the CPU.

    Args:
        channels_last: of the model and its images.
        precision: "fp32", or the type of convolutions under autocast.
        synchronise: read loss and accuracy at every step; else they are summed on the device.
    """

    def __init__(
        self,
        config: Config,
        classes: Sequence[str],
        device: torch.device,
        channels_last: bool = False,
        precision: str = "fp32",
        synchronise: bool = True,
    ) -> None:
        self.device, self.precision, self.synchronise = device, precision, synchronise
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.model = ResNet(classes, config.depth, config.width).to(device).to(memory_format=self.layout)
        take_normalised(self.model)
        use_torch_gradients(self.model)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, max_lr=1e-2, total_steps=10**9)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.sums = torch.zeros(2, device="cpu" if synchronise else device)  # of the loss and of right answers

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
