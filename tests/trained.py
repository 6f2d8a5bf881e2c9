"""One small trained network that the tests of explain/ share: width 8, on generated images, in seconds.

Each image holds two of ten glyphs on noise, one in each half, one stronger than the other; the label is the stronger
one. So evidence for the label has a place and evidence for the likeliest wrong answer another.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.model import ResNet, resize
from explain.cases import Cases
from pipeline.split import Split
from tests.cases import CLASSES, explainer

SIDE = 32
GLYPH = 12
RESOLUTION = 24


@dataclass(frozen=True)
class Glyphs:
    images: Tensor
    """(N, 32, 32, 3) uint8, as a data set holds them."""
    inputs: Tensor
    """(N, 3, 24, 24) uint8, channels_last, as the net takes them."""
    labels: Tensor
    """(N,) int64, the stronger glyph."""

    def split(self) -> Split:
        """As a data set's part."""
        return Split(images=self.images.numpy(), labels=self.labels.numpy(), name="test", classes=CLASSES)


def glyphs(count: int, seed: int) -> Glyphs:
    shapes = torch.rand(10, 3, 4, 4, generator=torch.Generator().manual_seed(0)).gt(0.5).float().mul(2).sub(1)
    shapes = F.interpolate(shapes, scale_factor=3.0)
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, SIDE, SIDE, generator=generator) * 18 + 120
    labels = torch.randint(10, (count,), generator=generator)
    others = (labels + torch.randint(1, 10, (count,), generator=generator)) % 10
    strength = torch.empty(count).uniform_(15, 45, generator=generator)
    share = torch.empty(count).uniform_(0.5, 1.0, generator=generator)
    left = torch.rand(count, generator=generator) < 0.5
    rows = torch.randint(SIDE - GLYPH + 1, (count, 2), generator=generator).tolist()
    columns = torch.randint(SIDE // 2 - GLYPH + 1, (count, 2), generator=generator).tolist()
    for i in range(count):
        for k, (shape, scale) in enumerate(((labels[i], strength[i]), (others[i], strength[i] * share[i]))):
            top, start = rows[i][k], columns[i][k] + (0 if bool(left[i]) == (k == 0) else SIDE // 2)
            images[i, :, top : top + GLYPH, start : start + GLYPH] += shapes[shape] * scale
    images = images.round().clamp(0, 255).to(torch.uint8)
    inputs = resize(images, RESOLUTION).contiguous(memory_format=torch.channels_last)
    return Glyphs(images.permute(0, 2, 3, 1).contiguous(), inputs, labels)


@cache
def trained() -> tuple[ResNet, Glyphs]:
    """A net in eval mode, about 85% right, and 1,000 images that it has not seen; on one thread."""
    training, threads = glyphs(3000, seed=1), torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ResNet(CLASSES, width=8, resolution=RESOLUTION).to(memory_format=torch.channels_last)
        epochs, batch = 4, 100
        optimizer = torch.optim.SGD(model.parameters(), momentum=0.9, nesterov=True, weight_decay=5e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=epochs * 3000 // batch)
        for _ in range(epochs):
            for chosen in torch.randperm(3000).split(batch):
                loss = F.cross_entropy(model(training.inputs[chosen]), training.labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    torch.set_num_threads(threads)
    return model.eval(), glyphs(1000, seed=2)


@cache
def wrong_cases() -> Cases:
    """The images of those that the net gets wrong."""
    model, test = trained()
    logits, wrong, maps, inputs = explainer(model).examine([(test.inputs, test.labels)])
    index = wrong.nonzero()[:, 0].numpy()
    return Cases(
        name="test", total=len(logits), classes=CLASSES, index=index,
        labels=test.labels.numpy()[index], logits=logits[wrong], class_maps=maps,
        inputs=inputs, pictures=test.images.numpy()[index], disputed=np.zeros(len(index), bool),
    )
