"""The state from which a stopped run goes on: read by `--resume`, written after each epoch."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from engine import checkpoint
from engine.config import Config, differences
from engine.learner import Learner


def named(arguments: Sequence[str]) -> dict[str, Any]:
    """What `--resume PATH` on a command line names, a file or a run folder: the dict of `save`, with the file as
    "path"; {} without that flag. It is wanted before the other flags, whose defaults are its "config".

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is damaged, or no resume state.
    """
    paths = [value for flag, value in pairwise([*arguments, ""]) if flag == "--resume"]
    paths += [argument.partition("=")[2] for argument in arguments if argument.startswith("--resume=")]
    if not paths:
        return {}
    path = Path(paths[-1])
    path = path / "resume.pt" if path.is_dir() else path
    state = checkpoint.read(path, checkpoint.RESUME)
    return state | {"path": str(path), "config": checkpoint.config_from(state["config"], path)}


def restore(learner: Learner, state: Mapping[str, Any], config: Config, data: str) -> None:
    """Bring a fresh learner to the state, which must be of the same run.

    Raises:
        ValueError: the config or the data (a SHA-256) differs from what the state was made with.
    """
    if changed := differences(state["config"], config):
        raise ValueError(f"{state['path']}: a resumed run keeps its settings, but {'; '.join(changed)}")
    if state["data"] != data:
        raise ValueError(f"{state['path']}: it was trained on other data than this run would be")
    learner.load_state_dict(state["learner"])


def save(
    path: Path, learner: Learner, config: Config, data: str, seconds: Mapping[str, float], card: Mapping[str, str]
) -> None:
    """Write the state, whole or not at all.

    Args:
        data: SHA-256 of the training set.
        seconds: spent so far, by kind.
        card: hardware and versions.

    Raises:
        OSError: it cannot be written; the state before it is intact.
    """
    content = {
        "config": checkpoint.config_dict(config),
        "learner": learner.state_dict(),
        "data": data,
        "seconds": dict(seconds),
        "environment": dict(card),
    }
    checkpoint.write(path, checkpoint.RESUME, content)
