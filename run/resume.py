"""The states from which a stopped run goes on: written between two steps, checked and read by `--resume`.

    python train.py --resume runs/mine      # the folder's newest whole state, or a file of one
    python train.py cpu --resume auto       # go on if there is something to go on with, else start

A run folder keeps the last two as resume-STEP.pt, so that a file that the disk tore or altered costs only the time
since the one before it. The file is engine/checkpoint.py's, with the keys

    config, data (SHA-256 of the training set), environment (hardware, versions, threads, precision)
    learner      all that the next step depends on, see Learner.state_dict
    rows         the log's rows: so many epochs are finished
    seconds      spent so far, by kind
    origin       where there is one: ResNet.origin
"""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any, Self

from engine import checkpoint
from engine.config import Config, differences
from engine.learner import Learner
from ground.entry import describe
from ground.interrupt import Stopped, StopSignals
from ground.mistake import Mistake
from run import schema
from run.schema import EpochRow
from run.stopwatch import Stopwatch

RESUME: checkpoint.Kind = ("resume", schema.state)
KEPT = 2
# Saving may take this share of the time. Until the first save shows its cost, this disk speed is assumed.
SHARE = 0.01
BYTES_PER_SECOND = 150e6


@dataclass(frozen=True)
class State:
    """What a run goes on from; all empty for a fresh one."""

    path: Path | None = None
    # With run_dir where the file lies now, and the defaults for all else that does not decide the weights.
    config: Config = field(default_factory=Config)
    given: Config = field(default_factory=Config)  # as the file has it
    learner: Mapping[str, Any] = field(default_factory=dict)
    rows: Sequence[EpochRow] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    data: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    origin: str = ""  # the model's
    notes: Sequence[str] = ()  # what a person should know: files that were passed over


def states(folder: Path) -> list[Path]:
    """The state files of a run folder, the newest first: nothing else that may lie there, and no links."""
    found = [path for path in folder.glob("resume-*.pt") if re.fullmatch(r"resume-[0-9]+\.pt", path.name)]
    return sorted((path for path in found if path.is_file() and not path.is_symlink()), key=_step, reverse=True)


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("resume-"))


def find(wanted: str, run_dir: str, restarted: bool = False) -> State:
    """What `--resume` names: a file, the newest whole state of a folder, or with "auto" that of `run_dir`, or, where
    that is "", of the folder in runs/ that was written to last; nothing for "", and for "auto" where there is none.

    A run that torchrun `restarted`, by the very command that began it, goes on from `run_dir` if it can.

    Raises:
        OSError: there is no such file or no state in the folder, or it cannot be read.
        ValueError: none of the folder's states is whole, or the file is damaged or none.
    """
    if restarted and run_dir and states(Path(run_dir)):
        wanted = run_dir
    if not wanted:
        return State(notes=["restarted, and no state in --run-dir to go on from: a fresh run"] if restarted else [])
    path = Path(wanted)
    if wanted == "auto":
        files = [file for folder in Path("runs").glob("*") for file in states(folder)]
        newest = max(files, key=_written, default=None)
        path = Path(run_dir) if run_dir or newest is None else newest.parent
        if path == Path() or not states(path):
            return State(notes=["nothing to resume: a fresh run"])
    if not path.is_dir():
        return _load(path)
    faults: list[str] = []
    for file in states(path):
        try:
            return replace(_load(file), notes=[f"{fault}; using the state before it" for fault in faults])
        except (ValueError, OSError) as error:
            faults.append(describe(error))
    if not faults:
        raise FileNotFoundError(2, "no resume state in this folder", str(path))
    raise Mistake(f"no state to go on from: {'; '.join(faults)}")


def _written(file: Path) -> float:
    """When; at the beginning of time where the run that wrote it has deleted it by now."""
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _load(path: Path) -> State:
    content = checkpoint.read(path, RESUME)
    given: Config = content.pop("config")
    # Where and by what a run goes on is for the command line to say: a file may be a stranger's.
    here = Config().values("machine", "files") | {"run_dir": str(path.parent)}
    return State(path, replace(given, **here), given=given, **content)


def restore(learner: Learner, state: State, config: Config, *data: str) -> None:
    """Bring a fresh learner to the state, which must be of the same run.

    Args:
        data: the SHA-256 that a state may have of the images; that of the training set alone is an earlier version's.

    Raises:
        Mistake: the config or the data differs from what the state was made with, or it does not fit the learner.
    """
    if changed := differences(state.config, config):
        raise Mistake(
            f"{state.path}: a resumed run keeps its settings, but {'; '.join(changed)}: leave these out, or start "
            "afresh without --resume"
        )
    if state.data not in data:
        raise Mistake(f"{state.path}: it was trained on other data than this run would be")
    steps, epoch = learner.steps_per_epoch, len(state.rows)
    try:
        # The groups' settings are the config's; only their momentum is the state's.
        groups = learner.optimizer.state_dict()["param_groups"]
        optimizer = {"state": state.learner["optimizer"]["state"], "param_groups": groups}
        learner.load_state_dict({**state.learner, "optimizer": optimizer})
        if learner.scaler.state_dict().keys() != state.learner["scaler"].keys():
            raise Mistake("it was made with another scaler")
        if epoch > config.epochs or not epoch * steps <= learner.step <= min((epoch + 1) * steps, learner.total_steps):
            raise Mistake(f"step {learner.step} after {epoch} finished epochs cannot be")
        learner.model.origin = state.origin
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError) as error:
        raise Mistake(f"{state.path}: it does not fit its config: {str(error).splitlines()[0]}") from error


@dataclass(eq=False)
class Keeper:
    """Keeps a run's state on the disk: when it is due, and when a signal asks the run to stop.

    Due is an epoch's end, and inside it what `checkpoint_every` seconds say; more rarely, where saving would take over
    1% of the time. In its `with`, SIGINT, SIGTERM and SIGHUP stop the run between two steps; a second one ends the
    process at once. With several ranks the first one does: the others would wait for this one in the middle of a step.
    """

    folder: Path  # the run's, claimed for `state`; this process alone, rank 0, writes to it
    rows: Sequence[EpochRow]  # the log's, read at each save
    learner: Learner
    data: str  # SHA-256 of the training set
    clock: Stopwatch  # its seconds go into the states
    state: State  # where this run goes on

    def __post_init__(self) -> None:
        self.config, machine = self.learner.config, self.learner.machine
        self.environment = machine.card() | machine.choices()
        self.saved = str(self.state.path or "none yet")
        self.notes = [*self.state.notes, *self._announcements()]
        self._signals, self._alone = StopSignals(), machine.world.size == 1
        size = sum(tensor.nbytes for tensor in self.learner.model.state_dict().values())
        self._last, self._cost = perf_counter(), 3 * size / BYTES_PER_SECOND

    def _announcements(self) -> Iterator[str]:
        """For a person: from what a run goes on, and in what this command line and machine differ from it."""
        if not self.state.path:
            return
        before, now = self.state.environment, self.environment
        changed = [
            f"{name} {before.get(name, 'none')} -> {now.get(name, 'none')}"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name)
        ]
        if changed:
            yield f"not the environment it began in ({', '.join(changed)}): weights may differ"
        given = replace(self.state.given, run_dir=self.config.run_dir, resume=self.config.resume)
        if local := differences(given, self.config, "machine", "files"):
            yield f"these are the command line's, not the state's: {', '.join(local)}"
        yield f"going on from {self.state.path}: {self.position}"

    @property
    def position(self) -> str:
        epoch = min(len(self.rows) + 1, self.config.epochs)
        return f"epoch {epoch}, step {self.learner.step} of {self.learner.total_steps}"

    def after_step(self) -> None:
        """Stop where a signal asked for it, and save what is due.

        Raises:
            Stopped: by a signal; the state is saved.
            NonFiniteLoss: found when saving; nothing is saved.
            OSError: the state cannot be saved; those before it are intact.
        """
        self.stop_if_asked()
        if self._due(self.config.checkpoint_every):
            self.save()

    def end_epoch(self) -> None:
        """Save what is due; after the last epoch wherever there is a state: the newest one tells whether a run is
        finished.
        """
        finished = len(self.rows) == self.config.epochs
        if self._due(0) or (finished and states(self.folder)):
            self.save()

    def save(self) -> None:
        """Write the state now. The step's metrics are waited for: a state whose loss is not finite is never written."""
        self.learner.check_finite()
        start = perf_counter()
        path = self.folder / f"resume-{self.learner.step:08d}.pt"
        with self.clock.on("save"):
            content = {
                "config": checkpoint.config_dict(self.config),
                "learner": self.learner.state_dict(),
                "rows": [dict(row) for row in self.rows],
                "seconds": self.clock.seconds(),
                "data": self.data,
                "environment": self.environment,
                **({"origin": self.learner.model.origin} if self.learner.model.origin else {}),
            }
            try:
                checkpoint.write(path, RESUME, content)
            except OSError as error:
                reason = f"{error.strerror or error}; last good resume state: {self.saved}"
                raise OSError(error.errno, reason, str(path)) from error
            for old in states(self.folder)[KEPT:]:
                old.unlink(missing_ok=True)
        self.saved = str(path)
        self._last = perf_counter()
        self._cost = self._last - start

    def __enter__(self) -> Self:
        if self._alone:
            self._signals.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._signals.__exit__(*error)

    def _due(self, every: float) -> bool:
        wait = max(every, self._cost / SHARE) if self.config.checkpoint_every else 0.0
        return perf_counter() - self._last >= wait

    def stop_if_asked(self) -> None:
        """Save and raise Stopped if a signal has come; raises as `after_step`."""
        if not self._signals.received:
            return
        self.save()
        default = Config().values("machine", "files")
        command = ["python", "train.py", "--resume", str(self.folder)]
        for name, value in self.config.values("machine", "files").items():
            if value != default[name] and name not in ("run_dir", "resume"):
                command += [f"--{name.replace('_', '-')}", str(value)]
        text = f"stopped and saved at {self.position}; go on with: {shlex.join(command)}"
        raise Stopped(self._signals.received, text)


def claim(folder: Path, state: State) -> None:
    """Make the folder ready for a run that goes on from `state`, before anything in it is written: removes the states
    of another, finished run, those beyond `state`, and what a killed save left. A state of its own run that is beyond
    `state` and cannot be read, but is not proved to be damaged, is renamed to NAME.unread.

    Raises:
        Mistake: it holds another run, which is not finished, or whose state cannot be read.
    """
    own = state.path is not None and state.path.parent.resolve() == folder.resolve()
    found = [file for file in states(folder) if not own or _step(file) > state.learner["step"]]
    found = [file for file in found if not (state.path and file.resolve() == state.path.resolve())]
    for file in found:
        try:
            other = _load(file)
        except checkpoint.DamagedError:
            continue
        except (ValueError, OSError) as error:
            if own:
                file.rename(f"{file}.unread")
                continue
            raise Mistake(
                f"{folder} holds a run that may be whole but cannot be read ({describe(error)}): choose another "
                "--run-dir, or remove its resume-*.pt"
            ) from error
        if own:
            continue
        if len(other.rows) < other.config.epochs:
            raise Mistake(
                f"{folder} holds a run that is not finished: go on with --resume {folder}, choose another --run-dir, "
                "or remove its resume-*.pt"
            )
        break
    for leftover in [*found, *folder.glob(".resume-*.tmp")]:
        leftover.unlink(missing_ok=True)
