"""What torchvision's own ResNet-18 and training recipe reach on a folder of pictures in the same minutes.

    python -m bench.recipe.reference --data holiday --minutes 5

The recipe is that of torchvision's reference training of this network: SGD with momentum 0.9 and weight decay 1e-4, a
learning rate of 0.1 for 256 images a step, divided by 10 after one and two thirds, random resized crops and mirroring.
What differs serves the comparison: pictures of 64 pixels, decoded once as ours are, batches of 64, bfloat16 where the
CPU or GPU is fast at it, and a length in minutes.
"""

import argparse
import time
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models import resnet18
from torchvision.transforms import v2

from engine.config import Config
from engine.device import autocast
from engine.machine import Machine
from ground.entry import execute
from ground.mistake import Mistake
from pipeline.dataset import open_dataset
from pipeline.split import Split

SIDE, STORED, BATCH = 64, 96, 64


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description="Train torchvision's ResNet-18 by torchvision's recipe.")
    parser.add_argument("--data", required=True, help="a folder of pictures")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if not options.minutes > 0:
        raise Mistake(f"--minutes is {options.minutes}: it must be above 0")
    machine = Machine.of(Config(threads=options.threads))
    data = open_dataset(options.data, STORED)
    train, *others = (data.load(part) for part in ("train", "validation", "test"))
    held_out = {split.name: split for split in others}  # one, where the validation pictures stand for those to test
    torch.manual_seed(options.seed)
    model = resnet18(num_classes=len(train.classes)).to(machine.device).to(memory_format=torch.channels_last)
    normalise = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(*train.statistics)])

    def logits_of(images: Tensor) -> Tensor:
        images = normalise(images.to(machine.device)).contiguous(memory_format=torch.channels_last)
        with autocast(machine.device, machine.precision):
            return model(images)

    rate = 0.1 * BATCH / 256
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=1e-4)
    augment = v2.Compose([v2.RandomResizedCrop(SIDE, antialias=True), v2.RandomHorizontalFlip()])
    images, labels = nchw(train), torch.from_numpy(train.labels)
    start, steps = time.perf_counter(), 0
    while (share := (time.perf_counter() - start) / (60 * options.minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * 0.1 ** int(3 * share)
        batch = torch.randint(len(images), (BATCH,))
        logits = logits_of(torch.stack([augment(image) for image in images[batch]]))
        optimizer.zero_grad()
        F.cross_entropy(logits.float(), labels[batch].to(machine.device)).backward()
        optimizer.step()
        steps += 1
    model.eval()
    middle = v2.Compose([v2.Resize(round(SIDE * 256 / 224), antialias=True), v2.CenterCrop(SIDE)])
    right = 0
    for split in held_out.values():
        with torch.no_grad():
            predicted = torch.cat([logits_of(middle(some)).argmax(1) for some in nchw(split).split(200)])
        right += int((predicted.cpu() == torch.from_numpy(split.labels)).sum())
    total, names = sum(map(len, held_out.values())), " and ".join(held_out)
    epochs = steps * BATCH / len(train)
    print(f"{right} of {total} {names} pictures right ({right / total:.1%}), after {epochs:.1f} epochs")


def nchw(split: Split) -> Tensor:
    """All images (N, 3, H, W) uint8."""
    return torch.from_numpy(np.array(split.images)).permute(0, 3, 1, 2)


if __name__ == "__main__":
    execute(main, "-m bench.recipe.reference")
