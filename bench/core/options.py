"""Flags of the measuring commands: those of train.py, so that what is measured is what it would train.

python -m bench COMMAND [PRESET] [flags]
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch
import tyro
from tyro.conf import Suppress

from engine.config import PRESETS, Config, typed, with_one_length
from ground.mistake import Mistake


@dataclass(frozen=True, kw_only=True)
class Options(Config):
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
class SpeedOptions(Options):
    """Flags of the commands that measure speed; their recipe is the `full` preset's at 32 px unless they name one."""

    quick: bool = False
    """Fewer and shorter measurements: a first look."""


T = TypeVar("T", bound=Options)


def parse(
    kind: type[T],
    arguments: Sequence[str],
    command: str,
    about: str | None,
    default: str,
    **changes: Any,
) -> T:
    """`[PRESET] [flags]` -> options.

    Args:
        about: a module's docstring, of which --help shows the first paragraph.
        default: the preset without a name, with `changes`.

    Raises:
        ValueError: the preset is unknown, a value is out of range, or both --epochs and --minutes are given.
        SystemExit: after --help, or one message on stderr about a flag.
    """
    named = bool(arguments) and not arguments[0].startswith("-")
    preset = arguments[0] if named else default
    if preset not in PRESETS:
        raise Mistake(f"preset {preset!r} is unknown: it must be one of {', '.join(PRESETS)}")
    values = PRESETS[preset].values("weights", "network", "batches", "machine")
    summary = (about or "").split("\n\n")[0]
    options = tyro.cli(
        kind,
        default=kind(preset=preset, **values | ({} if named else changes)),
        args=list(arguments[named:]),
        prog=f"python -m bench {command}".rstrip(),
        description=f"{summary} Before the flags may stand a preset: {', '.join(PRESETS)}.",
    )
    return with_one_length(options, typed(arguments))


def parse_speed(kind: type[T], arguments: Sequence[str], command: str, about: str | None) -> T:
    """`parse` for the commands that measure speed."""
    # CIFAR-10's own pixels, which the preset enlarges. Without a GPU a smaller batch: 512 would take 2.5 s on 2 cores.
    smaller = {} if torch.cuda.is_available() else {"batch_size": 128}
    return parse(kind, arguments, command, about, "full", resolutions=(32,), **smaller)
