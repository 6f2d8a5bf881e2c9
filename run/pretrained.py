"""`--pretrained`: start from what a model has learnt. Worth it for few pictures."""

import os
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np

from engine import weights
from engine.checkpoint import Checkpoint
from engine.config import Config
from engine.distributed import World
from engine.model import ResNet
from ground.mistake import Mistake
from pipeline.split import Split
from run.resume import State

OWN = ("fc.", "mean", "std")  # the classes and the colours are those of the new images


def take_shape(config: Config, given: Collection[str], state: State, world: World) -> tuple[Config, Checkpoint | None]:
    """The config with the depth, the width and ImageNet's stem of what `config.pretrained` names,
    and that as a checkpoint; for a run that goes on, with its own, and none.

    Raises:
        OSError, Mistake: as weights.load and weights.fetched.
        Mistake: the run would overwrite it; or settings `given` by a person do not fit it.
    """
    if config.head_first and world.size > 1:
        raise Mistake(f"--head-first is for one process, not for {world.size}: give --no-head-first")
    if os.path.realpath(config.out) == os.path.realpath(config.pretrained):
        raise Mistake(f"--out is {config.out}, the file of --pretrained, which would be lost: name another --out")
    loaded, depth = None, config.depth
    if not state.path and config.pretrained == "imagenet":
        path = world.from_first(lambda: weights.fetched(depth))
        loaded = weights.load(path, weights.prefix(depth))
    elif not state.path:
        loaded = weights.load(config.pretrained)
    theirs = loaded.config if loaded else state.config
    shape: dict[str, Any] = {"depth": theirs.depth, "width": theirs.width}
    if "imagenet" in (theirs.stem, config.stem):  # the weights of the others fit each other
        shape["stem"] = theirs.stem
    if theirs.stem == "imagenet":
        shape |= {"whiten": False, "dirac": False}
    for name, needed in shape.items():
        value, path = getattr(config, name), config.pretrained
        if name in given and value != needed:
            raise Mistake(f"--{name} is {value}, but --pretrained {path} has {needed}: leave --{name} out")
    return replace(config, **shape), loaded


def require_unseen(config: Config, learnt: Checkpoint, reported: Split) -> None:
    """Raises Mistake where the pretrained checkpoint may have learnt images that the run is to report on.

    What it was trained on is told by the content of its pictures; of CIFAR-10, generated images and checkpoints of
    earlier versions, by the name of the data.
    """
    seen = int(np.isin(reported.contents, learnt.trained_on.numpy()).sum())
    theirs, ours = (os.path.realpath(os.path.expanduser(one.data)) for one in (learnt.config, config))
    if seen or (theirs == ours and (config.validate or config.fold) and not len(learnt.trained_on)):
        which = f"{seen} of the {len(reported)}" if seen else "maybe some of the"
        raise Mistake(
            f"--pretrained {config.pretrained} was trained on {which} {reported.name} images that this run reports on: "
            "the report would be too good; take another checkpoint, or report on others"
        )


def start_from(model: ResNet, learnt: Checkpoint) -> None:
    """Give the model the weights of a checkpoint of its shape, all but those of its last layer;
    with ImageNet's stem its mean and deviation too, for which its filters are made."""
    own = OWN[:1] if learnt.config.stem == "imagenet" else OWN
    taken = {k: v for k, v in learnt.model.state_dict().items() if not k.startswith(own)}
    model.load_state_dict(taken, strict=False)
    model.origin = learnt.model.origin
