"""The training loop this project grew from, written fairly: what it costs before any of our changes.

Float32, NCHW, Adam at 1e-3, batch 64, OneCycle, torchvision transforms in torch's DataLoader, loss and accuracy read
from the device at every step. Its wrong loss (nll_loss on raw logits) is put right here: only its speed is compared.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.config import Config
from engine.model import ResNet


class SeedStyle:
    """One training step at a time on images (B, 3, 32, 32) float32, normalised, and labels (B,), from the CPU."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self.device = device
        self.model = ResNet(config.depth, config.width).to(device)
        self.model.normalise = lambda images: images  # type: ignore[method-assign]  # its loader has normalised them
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, max_lr=1e-2, total_steps=20 * 782)
        self.seen, self.loss, self.correct = 0, 0.0, 0

    def train_step(self, images: Tensor, labels: Tensor) -> None:
        images, labels = images.to(self.device), labels.to(self.device)
        self.optimizer.zero_grad()
        logits = self.model(images)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self.seen += len(labels)
        self.loss += loss.item()
        self.correct += (logits.argmax(1) == labels).sum().item()
