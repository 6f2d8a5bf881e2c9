"""The recipe that fits the data set and this machine: what the person left open.

    config = decide(config, given_flags(arguments), state, train, len(reported), machine)

A run that goes on keeps what was chosen when it began.
"""

from collections.abc import Collection
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
STRIDED_FROM = 96  # pixels: from here on the stem halves the sides, or a step would take too long
STEPS = 8  # of an epoch at least, where the batch size is left open
TRIED_SECONDS = 0.7  # of each resolution
EVALUATION = 1 / 3  # cost of an image that is evaluated, in those that are trained on


def decide(config: C, given: Collection[str], state: State, train: Images, reported: int, machine: Machine) -> C:
    """The config with all settings decided but those whose names are `given`.

    With pictures of one's own: size, resolutions, shift, stem, batch size, from the pictures. With
    `minutes`: the epochs and, where fewer than FEWEST_EPOCHS fit, the width, from the speed of this machine, which is
    measured in some seconds, for so many images to train on and `reported` to evaluate after each epoch.
    """
    chosen: dict[str, Any] = {}
    # The shift is meant for the preset's last resolution, whatever resolutions were given.
    meant = (PRESETS[PICTURES] if "resolutions" in given else config).resolutions[-1]
    if config.own_pictures:
        sides = config.resolutions
        stem = "strided" if train.side >= STRIDED_FROM else "small"
        chosen = {
            "size": train.side,
            "resolutions": tuple(max(8, round(r * train.side / sides[-1] / 8) * 8) for r in sides),
            "translate": round(config.translate * train.side / meant),
            "stem": config.stem if config.stem == "imagenet" else stem,
            "batch_size": max(2, machine.world.size * 2, min(config.batch_size, len(train) // STEPS)),
        }
    if state.path:
        names = [*chosen, *(("epochs", "width") if config.minutes else ())]
        chosen = {name: getattr(state.config, name) for name in names}
    config = replace(config, **{name: value for name, value in chosen.items() if name not in given})
    if state.path or not config.minutes:
        return config
    work = len(train) + EVALUATION * reported
    while True:
        seconds = image_seconds(config, train, machine)
        for epochs in range(MOST_EPOCHS + 1):
            longer = replace(config, epochs=epochs + 1)
            cost = sum(seconds[longer.resolution(epoch)] for epoch in range(longer.epochs))
            if work * cost > 60 * config.minutes:
                break
        config = replace(config, epochs=max(1, epochs))
        if epochs >= FEWEST_EPOCHS or config.width // 2 < NARROWEST or "width" in given or config.pretrained:
            return config
        config = replace(config, width=config.width // 2)


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
    for side in sorted(set(config.resolutions)):
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
