"""One small trained network that the tests of explain/ share: width 8, on generated images, in seconds.

Each image holds two of ten glyphs on noise, one stronger than the other; the label is the stronger one. So evidence for
the label has a place, evidence for the likeliest wrong answer another, and a net of this size gets some wrong.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.model import ResNet

SIDE = 24


def glyph_images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images (count, 3, 24, 24) uint8 and labels (count,) int64."""
    generator = torch.Generator().manual_seed(seed)
    glyphs = torch.rand(10, 3, 5, 5, generator=torch.Generator().manual_seed(0)).gt(0.5).float().mul(2).sub(1)
    glyphs = F.interpolate(glyphs, scale_factor=2.0)
    images = torch.randn(count, 3, SIDE, SIDE, generator=generator) * 18 + 120
    labels = torch.randint(10, (count,), generator=generator)
    others = (labels + torch.randint(1, 10, (count,), generator=generator)) % 10
    strength = torch.empty(count).uniform_(15, 45, generator=generator)
    share = torch.empty(count).uniform_(0.5, 1.0, generator=generator)
    # The glyphs lie in different halves, so they never cover each other.
    first_left = torch.rand(count, generator=generator) < 0.5
    rows = torch.randint(0, SIDE - 10, (count, 2), generator=generator).tolist()
    columns = torch.randint(0, SIDE // 2 - 10, (count, 2), generator=generator).tolist()
    for i in range(count):
        for k, (glyph, scale) in enumerate(((labels[i], strength[i]), (others[i], strength[i] * share[i]))):
            top, left = rows[i][k], columns[i][k] + (0 if first_left[i] == (k == 0) else SIDE // 2)
            images[i, :, top : top + 10, left : left + 10] += glyphs[glyph] * scale
    return images.round().clamp(0, 255).to(torch.uint8), labels


@cache
def trained() -> tuple[ResNet, Tensor, Tensor]:
    """A net in eval mode, and the 1,000 images and labels that it was not trained on."""
    images, labels = glyph_images(3000, seed=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ResNet(width=8).to(memory_format=torch.channels_last)
        epochs, batch = 4, 100
        optimiser = torch.optim.SGD(model.parameters(), momentum=0.9, nesterov=True, weight_decay=5e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.2, total_steps=epochs * len(images) // batch)
        for _ in range(epochs):
            for chosen in torch.randperm(len(images)).split(batch):
                loss = F.cross_entropy(model(images[chosen].contiguous(memory_format=torch.channels_last)), labels[chosen])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
    return model.eval(), *glyph_images(1000, seed=2)
