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

import torch
import torch.nn.functional as F
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
    train, *reported = (data.load(part) for part in ("train", "validation", "test"))
    held_out = {split.name: split for split in reported}  # one, where the validation pictures stand for those to test
    torch.manual_seed(options.seed)
    model = resnet18(num_classes=len(train.classes)).to(machine.device).to(memory_format=torch.channels_last)
    rate = 0.1 * BATCH / 256
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=1e-4)
    augmented = v2.Compose([v2.RandomResizedCrop(SIDE, antialias=True), v2.RandomHorizontalFlip()])
    images, labels = nchw(train), torch.from_numpy(train.labels)
    start, steps = time.perf_counter(), 0
    while (share := (time.perf_counter() - start) / (60 * options.minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * 0.1 ** int(3 * share)
        chosen = torch.randint(len(images), (BATCH,))
        batch = torch.stack([augmented(image) for image in images[chosen]])
        with autocast(machine.device, machine.precision):
            loss = F.cross_entropy(model(normalised(batch, train, machine)), labels[chosen].to(machine.device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
    model.eval()
    middle = v2.Compose([v2.Resize(round(SIDE * 256 / 224), antialias=True), v2.CenterCrop(SIDE)])
    right = 0
    for split in held_out.values():
        with torch.no_grad(), autocast(machine.device, machine.precision):
            logits = [model(normalised(middle(some), train, machine)) for some in nchw(split).split(200)]
        right += int((torch.cat(logits).argmax(1).cpu() == torch.from_numpy(split.labels)).sum())
    total = sum(map(len, held_out.values()))
    epochs = steps * BATCH / len(train)
    print(
        f"{right} of {total} {' and '.join(held_out)} pictures right ({right / total:.1%}), after {epochs:.1f} epochs"
    )


def nchw(split: Split) -> torch.Tensor:
    return torch.from_numpy(split.images.copy()).permute(0, 3, 1, 2)


def normalised(images: torch.Tensor, train: Split, machine: Machine) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1).to(machine.device) for values in train.statistics)
    scaled = images.to(machine.device).float() / 255
    return ((scaled - mean) / std).contiguous(memory_format=torch.channels_last)


if __name__ == "__main__":
    execute(main, "-m bench.recipe.reference")
