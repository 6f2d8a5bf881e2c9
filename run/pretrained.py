"""Starting from what a finished model has learnt instead of from random weights: `--pretrained model.pt`.

Worth it where there are few pictures: see docs/YOUR_PICTURES.md.
"""

import os
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from engine import checkpoint
from engine.config import Config
from engine.model import ResNet
from ground.mistake import Mistake
from run.resume import State

OWN = ("fc.", "mean", "std")  # the classes and the colours are those of the new images


def shaped(config: Config, given: Collection[str], state: State) -> Config:
    """The config with the depth and the width of the checkpoint `config.pretrained`, or of the run that goes on.

    Args:
        given: names of the settings that a person has given.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is damaged, or no checkpoint of this program; the run would overwrite it; it may have learnt
            images that the run holds out; or another depth or width was given.
    """
    if os.path.realpath(config.out) == os.path.realpath(config.pretrained):
        raise Mistake(f"--out is {config.out}, the file of --pretrained, which would be lost: name another --out")
    theirs = state.config if state.path else checkpoint.load(config.pretrained).config
    same = os.path.realpath(theirs.data) == os.path.realpath(config.data)
    if same and (config.validate or config.fold) and not state.path:
        raise Mistake(
            f"--pretrained {config.pretrained} was trained on this data: it may have learnt the very images that "
            "--validate or --fold holds out"
        )
    shape: dict[str, Any] = {"depth": theirs.depth, "width": theirs.width}
    for name, needed in shape.items():
        if name in given and getattr(config, name) != needed:
            value, path = getattr(config, name), config.pretrained
            raise Mistake(f"--{name} is {value}, but --pretrained {path} has {needed}: leave --{name} out")
    return replace(config, **shape)


def start_from(model: ResNet, path: str) -> None:
    """Give the model the weights of a checkpoint of its shape, all but those of its last layer.

    Raises:
        OSError, ValueError: as `shaped`.
    """
    weights = checkpoint.load(path).model.state_dict()
    model.load_state_dict({k: v for k, v in weights.items() if not k.startswith(OWN)}, strict=False)
