"""The recipe that fits the data set and this machine: what the person left open.

    config = decide(config, given_flags(arguments), state, train, len(reported), machine)

A run that goes on keeps what was chosen when it began.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from statistics import median
from time import perf_counter
from typing import Any

import torch

from engine.config import PICTURES, PRESETS, C, Config
from engine.device import synchronise
from engine.distributed import ALONE
from engine.learner import Learner
from engine.machine import Machine
from engine.model import Images, network
from engine.warm_up import needs_warm_up, warm_up
from run.resume import State

MOST_EPOCHS = 200
FEWEST_EPOCHS = 3  # before the network is made narrower: see docs/RESULTS.md, accuracy against time
NARROWEST = 8
SCALES = (0.75, 0.5)  # of the resolutions, before the width
STRIDED_FROM = 96  # pixels: from here on the stem halves the sides, or a step would take too long
BATCHES, EPOCH_STEPS = (256, 128), 200  # larger batches, where an epoch has so many steps of them
SHARE = 0.8  # of the side that is tested, to train on: random regions show objects larger (FixRes, arXiv 1906.06423)
STEPS = 8  # of an epoch at least, where the batch size is left open
TRIED_SECONDS = 0.7  # of each resolution
EVALUATION = 1 / 3  # cost of an image that is evaluated, in those that are trained on


def decide(
    config: C, given: Collection[str], state: State, train: Images, reported: int, machine: Machine, spent: float = 0.0
) -> C:
    """The config with all settings decided but those whose names are `given`.

    With pictures of one's own: size, resolutions, shift, stem and batch size, from the pictures. With `minutes`: the
    epochs and, where fewer than FEWEST_EPOCHS fit, lower resolutions, then a smaller width, from the speed of this
    machine, which is measured in some seconds, for so many images to train on and `reported` to evaluate after each.
    Of a run that fits the last layer first, that and the seconds `spent` so far count too.
    """
    chosen: dict[str, Any] = {}
    # The shift is meant for the preset's last resolution, whatever resolutions were given.
    meant = (PRESETS[PICTURES] if "resolutions" in given else config).resolutions[-1]
    if config.own_pictures:
        sides = config.resolutions
        largest = next((size for size in BATCHES if len(train) >= size * EPOCH_STEPS), config.batch_size)
        stem = "strided" if train.side >= STRIDED_FROM else "small"
        chosen = {
            "size": train.side,
            "resolutions": scaled(sides, (SHARE if config.stem == "imagenet" else 1) * train.side / sides[-1]),
            "translate": round(config.translate * train.side / meant),
            "stem": config.stem if config.stem == "imagenet" else stem,
            "batch_size": max(2, machine.world.size * 2, min(largest, len(train) // STEPS)),
        }
    if state.path:
        names = [*chosen, *(("epochs", "width", "resolutions") if config.minutes else ())]
        chosen = {name: getattr(state.config, name) for name in names}
    config = replace(config, **{name: value for name, value in chosen.items() if name not in given})
    if state.path or not config.minutes:
        return config
    for candidate in candidates(config, given):
        seconds = image_seconds(candidate, train, machine)
        before = spent + len(train) * EVALUATION * seconds[config.model_side] if config.head_first else 0.0
        config = replace(candidate, epochs=epochs_within(candidate, seconds, len(train), reported, before))
        if config.epochs >= FEWEST_EPOCHS:
            break
    return config


def candidates(config: C, given: Collection[str]) -> list[C]:
    """The config, then ones that take less and less time an image."""
    made = [config]
    # Packed pictures are tested at their full size: the network must have learnt on nearly that.
    if config.own_pictures and not config.packed and "resolutions" not in given:
        made += [replace(config, resolutions=scaled(config.resolutions, scale)) for scale in SCALES]
    while not ("width" in given or config.pretrained) and made[-1].width // 2 >= NARROWEST:
        made.append(replace(made[-1], width=made[-1].width // 2))
    return made


def scaled(sides: Sequence[int], scale: float) -> tuple[int, ...]:
    """Sides in pixels in that proportion, as multiples of 8."""
    return tuple(max(8, round(side * scale / 8) * 8) for side in sides)


def epochs_within(config: Config, seconds: Mapping[int, float], count: int, reported: int, before: float) -> int:
    """How many epochs fit into the minutes, 1 at least, at so many seconds an image of each side, `before` spent."""
    for epochs in range(1, MOST_EPOCHS + 1):
        longer = replace(config, epochs=epochs + 1)
        sides = [(longer.resolution(epoch), longer.reported_side(epoch)) for epoch in range(epochs + 1)]
        cost = sum(count * seconds[side] + EVALUATION * reported * seconds[other] for side, other in sides)
        if before + cost > 60 * config.minutes:
            break
    return epochs


def image_seconds(config: Config, train: Images, machine: Machine) -> dict[int, float]:
    """Seconds that training takes for each image, by resolution; the slowest of the ranks'.

    The median of some steps on random images by a network that is thrown away; data and exchange between ranks are not
    in it.
    """
    share = -(-config.batch_size // machine.world.size)
    model = network(config, train.classes).to(machine.device).to(memory_format=torch.channels_last)
    config = replace(config, batch_size=share)
    learner = Learner(model, config, 1 << 20, replace(machine, world=ALONE))
    if needs_warm_up(learner):
        warm_up(learner, share)
    learner.model.train()
    by_side = {}
    for side in sorted({*config.resolutions, config.model_side}):
        nhwc = torch.randint(256, (share, side, side, 3), dtype=torch.uint8, device=machine.device)
        images = nhwc.permute(0, 3, 1, 2)
        labels = torch.randint(len(train.classes), (share,), device=machine.device)
        times: list[float] = []
        while len(times) < 4 or sum(times) < TRIED_SECONDS:
            start = perf_counter()
            learner.train_step(images, labels)
            synchronise(machine.device)
            times.append(perf_counter() - start)
        by_side[side] = machine.world.largest(median(times[1:])) / share
    return by_side
