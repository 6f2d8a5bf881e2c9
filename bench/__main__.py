"""Images per second on this machine.

    python -m bench              # all parts
    python -m bench data         # the loaders alone: DALI with full augmentation, and torch's DataLoader
    python -m bench train        # a few steps of the real training loop, and of the first version's style

Real CIFAR-10 and the network of the `full` preset, at 32 px. The last line on stdout is JSON.
"""

import preflight

preflight.require_environment("-m bench")
preflight.require_dali()

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial

from rich.console import Console

from bench import throughput
from bench.clock import Rate
from engine import runtime
from engine.config import PRESETS
from pipeline import cifar10

PARTS = ("data", "train")


def main(arguments: Sequence[str]) -> None:
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return
    unknown = [argument for argument in arguments if argument not in PARTS]
    if unknown:
        raise ValueError(f"part {unknown[0]!r} is unknown: it must be one of {', '.join(PARTS)}")
    device = runtime.pick_device("auto")
    precision = runtime.pick_precision(device)
    threads = runtime.configure(device)
    split = cifar10.load("train")
    full = PRESETS["full"]
    augmented = replace(full, batch_size=512, flip="random", cutout=8)
    recipe = replace(full, batch_size=full.batch_size if device.type == "cuda" else 128)  # seconds a step on a CPU

    measurements: dict[str, tuple[str, Callable[[], Rate]]] = {
        "dali": (
            "data: DALI, crop, flip and cutout, batch 512",
            partial(throughput.loader_rate, split, augmented, device, threads),
        ),
        "dataloader": (
            "data: torch DataLoader, crop and flip, batch 512, 2 workers",
            partial(throughput.torch_loader_rate, split, 512, 2),
        ),
        "train": (
            f"train: our loop, {precision}, batch {recipe.batch_size}",
            partial(throughput.training_rate, split, recipe, device, precision, threads),
        ),
        "seed_style": (
            "train: first version's style, fp32, NCHW, Adam, batch 64",
            partial(throughput.seed_rate, split, full, device),
        ),
    }
    parts = arguments or PARTS
    console = Console(highlight=False)
    rates: dict[str, Rate] = {}
    for key, (name, measure) in measurements.items():
        if name.partition(":")[0] in parts:
            with console.status(name):
                rates[key] = measure()
            console.print(f"{name:<60} {rates[key]}", soft_wrap=True)
    ratios = {}
    for ours, theirs in (("dali", "dataloader"), ("train", "seed_style")):
        if ours in rates:
            ratios[f"{ours}/{theirs}"] = rates[ours].median / rates[theirs].median
            console.print(f"{ours} / {theirs}: {ratios[f'{ours}/{theirs}']:.1f}")
    card = runtime.environment_card(device)
    print(json.dumps({"rates": {key: asdict(r) for key, r in rates.items()}, "ratios": ratios, "environment": card}))


if __name__ == "__main__":
    runtime.run(main, "bench")
