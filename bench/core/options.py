"""Flags of the measuring commands: those of train.py, so that what is measured is what it would train.

python -m bench COMMAND [PRESET] [flags]
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch
from tyro.conf import Suppress

from engine.config import PRESETS, Config, parse_flags, preset_and_flags


@dataclass(frozen=True, kw_only=True)
class BenchOptions(Config):
    """A recipe, and where its measurement goes. Nothing here is kept to go on from."""

    preset: Suppress[str] = ""
    out: str = "docs/results"
    """Folder for the results."""
    run_dir: Suppress[str] = ""
    resume: Suppress[str] = ""
    pretrained: Suppress[str] = ""
    checkpoint_every: Suppress[float] = 60.0

    def recorded(self) -> dict[str, Any]:
        """What the record says was set."""
        return {name: value for name, value in asdict(self).items() if name not in self.values("files")}


@dataclass(frozen=True, kw_only=True)
class SpeedOptions(BenchOptions):
    """Flags of the commands that measure speed; their recipe is the `full` preset's at 32 px unless they name one."""

    quick: bool = False
    """Fewer and shorter measurements: a first look."""


T = TypeVar("T", bound=BenchOptions)


def parse(kind: type[T], words: Sequence[str], command: str, about: str | None, default: str, **changes: Any) -> T:
    """`[PRESET] [flags]` -> options; raises as `engine.config.parse_flags` and `preset_and_flags`.

    Args:
        about: a module's docstring, of which --help shows the first paragraph.
        default: the preset where none is named, with `changes`.
    """
    preset, flags = preset_and_flags(words)
    values = PRESETS[preset or default].values("weights", "network", "batches", "machine")
    base = kind(preset=preset or default, **values | ({} if preset else changes))
    summary = (about or "").split("\n\n")[0] + f" Before the flags may stand a preset: {', '.join(PRESETS)}."
    return parse_flags(base, flags, f"python -m bench {command}".rstrip(), summary)


def parse_speed(kind: type[T], words: Sequence[str], command: str, about: str | None) -> T:
    """`parse` for the commands that measure speed."""
    # CIFAR-10's own pixels, which the preset enlarges. Without a GPU a smaller batch: a step of 512 takes seconds.
    smaller = {} if torch.cuda.is_available() else {"batch_size": 128}
    return parse(kind, words, command, about, "full", resolutions=(32,), **smaller)
