"""One run of train.py, behind one object: its folder, resume states, clock, bar and rows.

    with open_run(state, learner, loader, data, clock) as run:
        run.begin("cpu")
        for epoch in range(run.epochs_done, config.epochs):
            with run.training(epoch):
                for images, labels in run.batches(epoch): ...

Every rank has one and goes through the same calls. Rank 0 has a RecordedRun, which also speaks and writes.
"""

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from engine import checkpoint
from engine.device import peak_memory
from engine.known import Known, fit_known
from engine.learner import Batch, Evaluation, Learner, NonFiniteLoss, Progress
from engine.temperature import fit_temperature
from engine.warm_up import needs_warm_up, warm_up
from ground.memory import memory_advice
from ground.mistake import Mistake
from ground.terminal import Tracker, stdout_console
from pipeline.dali import DaliLoader, EvaluationLoader
from pipeline.split import Int64, Split
from run.folder import RunFolder
from run.reporter import Reporter, model_summary, throughput
from run.resume import Keeper, State
from run.schema import EpochRow
from run.stopwatch import Stopwatch

FROZEN = "frozen.pt"  # in a run folder: the network before any but its last layer has learnt


@dataclass(frozen=True)
class RunData:
    """What a run is trained on and reports on."""

    digest: str  # SHA-256 of the images to train on and of those to report on
    identity: str  # what the whole data set is: pipeline.dataset.DataSet.identity
    contents: Int64  # what is in the files of the images to train on: pipeline.split.Split.contents
    reported: Split  # the images that the run reports on
    rows: Int64  # (n,) which of them this rank evaluates, in their order


class Run:
    """What every rank does of a run: train, evaluate and add up.

    In its `with`, running out of memory is a line of advice.

    Args:
        state: where the run goes on; empty for a fresh one.
        learner: what trains; its config is the run's.
        loader: the training batches.
        data: what is trained on and reported on.
        clock: has the seconds that the run took so far.

    Attributes:
        rows: of the epochs that are finished.
    """

    def __init__(self, state: State, learner: Learner, loader: DaliLoader, data: RunData, clock: Stopwatch) -> None:
        self.config, self.machine = learner.config, learner.machine
        self.state, self.learner, self.loader, self.clock = state, learner, loader, clock
        self.data = data
        self.rows = list(state.rows)
        self._open = ExitStack()

    def __enter__(self) -> Self:
        self._open.enter_context(memory_advice(self.config.batch_size, self.machine.device))
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def begin(self, preset: str) -> list[str]:
        """Compile, and whatever else must be done before the first step; returns what could not be, in lines."""
        if not needs_warm_up(self.learner):
            return []
        with self.clock.on("compile"):
            return warm_up(self.learner, self.loader.plan.share)

    @property
    def epochs_done(self) -> int:
        return len(self.rows)

    def first_step(self, epoch: int) -> int:
        """Steps of an epoch, counted from 0, that were done before the run stopped."""
        return self.learner.step - epoch * len(self.loader)

    @contextmanager
    def training(self, epoch: int) -> Iterator[None]:
        """Around the steps of an epoch: what they take is the training time."""
        with self.clock.on("train"):
            yield

    def batches(self, epoch: int) -> Iterator[Batch]:
        """What is left of an epoch's batches; the time until each arrives is noted."""
        return self.clock.waiting("wait", self.loader.epoch(epoch, self.first_step(epoch)))

    def after_step(self) -> None:
        """To be called when a training step is on its way."""

    def after_batch(self) -> None:
        """Is called after each batch that is evaluated."""

    def evaluate(
        self, batches: Iterable[Batch], flip: bool = False, temperature: float = 1.0
    ) -> Evaluation:
        """The model on these batches, as `engine.learner.evaluate`."""
        with self._evaluating():
            return self.learner.evaluate(batches, flip, self.after_batch, temperature)

    def temperature(self, unseen: Iterable[Batch]) -> float:
        """The one that fits these images, neither trained on nor test images; the config's where they are too few."""
        with self._evaluating():
            fitted = fit_temperature(self.learner.model.eval(), unseen, self.machine, self.after_batch)
        return fitted or self.config.temperature

    def known(self, train: Iterable[Batch], unseen: Iterable[Batch], temperature: float) -> Known | None:
        """When the model does not know, by images trained on and by those of the temperature."""
        with self._evaluating():
            return fit_known(self.learner.model.eval(), train, unseen, temperature, self.machine, self.after_batch)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Around all that is not trained on: timed, and where memory runs out the advice is not --batch-size."""
        side = self.config.reported_side(len(self.rows))
        with self.clock.on("eval"), memory_advice(0, self.machine.device, side):
            yield

    def keep_frozen(self, test: EvaluationLoader, unseen: EvaluationLoader | None) -> None:
        """Evaluate a network of which the last layer alone has learnt, and keep it. In one process only."""

    def keep_better(self, unseen: EvaluationLoader | None) -> None:
        """Take that network's weights where it is better on these images, if there are any. In one process only."""

    def end_epoch(self, epoch: int, progress: Progress, result: Evaluation) -> None:
        """Add the row of an epoch."""
        train, wait, evaluation = (self._gained(kind) for kind in ("train", "wait", "eval"))
        self.record(
            EpochRow(
                epoch=epoch + 1,
                epochs=self.config.epochs,
                step=self.learner.step,
                steps=self.learner.total_steps,
                resolution=self.config.resolution(epoch),
                lr=self.learner.lr_at(self.learner.step),
                train_seconds=train,
                wait_seconds=wait,
                eval_seconds=evaluation,
                it_per_s=len(self.loader) / train,
                images_per_s=progress.images / train,
                split=self.data.reported.name,
                loss=progress.loss,
                train_accuracy=progress.accuracy,
                last_loss=progress.last_loss,
                last_accuracy=progress.last_accuracy,
                reported_loss=result.loss,
                reported_correct=result.correct,
                reported_total=result.total,
                reported_accuracy=result.accuracy,
                reported_class_accuracy=result.class_accuracy,
            )
        )

    def record(self, row: EpochRow) -> None:
        """Add the row of a finished epoch."""
        self.rows.append(row)

    def _gained(self, kind: str) -> float:
        """Seconds of a kind since the last row, over stops too: the largest of the ranks'."""
        self.clock.raise_to(kind, self.machine.world.largest(self.clock[kind]))
        before = sum(row[f"{kind}_seconds"] for row in self.rows)  # type: ignore[literal-required]
        return max(0.0, self.clock[kind] - before)

    def end(self, flipped: Evaluation, temperature: float, known: Known | None = None) -> None:
        """To be called at last, with the evaluation by test-time augmentation."""
        self._gathered(flipped)

    def _gathered(self, result: Evaluation) -> npt.NDArray[np.float64]:
        """(2, n) `answers` of all ranks, in the order of the reported images."""
        answers = result.answers.new_zeros(2, len(self.data.reported))
        answers[:, torch.from_numpy(self.data.rows)] = result.answers[:, : len(self.data.rows)]
        return self.machine.world.sum_(answers).cpu().numpy()


class RecordedRun(Run):
    """Rank 0's: keeps all there is of the run in its folder, and says it.

    In its `with` the run folder is held. From `begin` on, a stop signal waits for the end of a step.

    Raises:
        Mistake: the run folder cannot be written or belongs to another run.
    """

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.folder = stack.enter_context(RunFolder(self.config.run_dir, self.state, self.learner.lr_at))
            self.rows = self.folder.rows
            stack.enter_context(memory_advice(self.config.batch_size, self.machine.device))
            self.config = replace(self.config, run_dir=str(self.folder.path))
            self.keeper = Keeper(self.folder.path, self.rows, self.learner, self.data.digest, self.clock, self.state)
            self.folder.write_config(checkpoint.config_dict(self.config))
            self._open = stack.pop_all()
        self.both: dict[str, Any] = {}  # how the frozen network and all layers did
        self._out_before = _status(self.config.out)
        self.reporter = Reporter(stdout_console())
        self.bar: Tracker | None = None
        return self

    def begin(self, preset: str) -> list[str]:
        """Say what is to come, and compile it."""
        self.reporter.say(model_summary(self.learner.model, self.config.model_side))
        self.reporter.choice(preset, self.config, self.machine)
        for note in (*self.keeper.notes, self.machine.crowded()):
            if note:
                self.reporter.say(note)
        notes = super().begin(preset)
        for note in notes:
            self.reporter.say(note)
        self._open.enter_context(self.keeper)
        return notes

    @contextmanager
    def training(self, epoch: int) -> Iterator[None]:
        """Around the steps of an epoch: they are timed, and shown in a bar.

        Raises:
            Mistake: a step's loss is not finite; names its images and the state before it.
        """
        steps, plan = len(self.loader), self.loader.plan
        self.bar = self.reporter.epoch(
            epoch + 1, self.config.epochs, steps, plan.batch_size, self.learner.peek, self.first_step(epoch)
        )
        try:
            with self.bar, super().training(epoch):
                yield
        except NonFiniteLoss as error:
            draws = replace(plan, rank=0, world=1).draws(*divmod(error.step, steps))
            where = self.folder.note_bad_batch(error.step, draws.indices.tolist())
            raise Mistake(f"{error} ({where}): {self._advice}") from None

    def after_step(self) -> None:
        """Move the bar; stop where a signal asks for it; save what is due.

        Raises:
            Stopped: by a signal; the state is saved.
            NonFiniteLoss: found when saving; nothing is saved.
            OSError: the state cannot be saved; those before it are intact.
        """
        if self.bar:
            self.bar.advance()
        self.keeper.after_step()

    def after_batch(self) -> None:
        """Stop where a signal asks for it; raises as `after_step`."""
        self.keeper.stop_if_asked()

    def evaluate(
        self, batches: Iterable[Batch], flip: bool = False, temperature: float = 1.0
    ) -> Evaluation:
        """The model on these batches.

        Raises:
            Mistake: the loss is not finite, though that of training was.
        """
        result = super().evaluate(batches, flip, temperature)
        if not math.isfinite(result.loss):
            what = f"the loss of the {self.data.reported.name} images is not finite"
            raise Mistake(f"{what} after step {self.learner.step}: {self._advice}")
        return result

    def keep_frozen(self, test: EvaluationLoader, unseen: EvaluationLoader | None) -> None:
        """Evaluate the network of which the last layer alone has learnt, and keep it as FROZEN in the run folder."""
        if self.state.path:
            return
        result = self.evaluate(test.epoch(0))
        figures = ("loss", "correct", "total", "accuracy", "class_accuracy")
        metrics: dict[str, Any] = {f"test_{name}": getattr(result, name) for name in figures}
        metrics |= {"split": self.data.reported.name, "precision": self.machine.precision}
        metrics |= {"origin": self.learner.model.origin} if self.learner.model.origin else {}
        if unseen:
            metrics["unseen_accuracy"] = self.evaluate(unseen.epoch(0)).accuracy
        path = self.folder.path / FROZEN
        checkpoint.save_model(path, self.learner.model, self.config, metrics, torch.from_numpy(self.data.contents))
        self.reporter.say(f"the last layer alone: {self.data.reported.name} accuracy {result.accuracy:.2%} ({path})")

    def keep_better(self, unseen: EvaluationLoader | None) -> None:
        """Take that network's weights where it is better on these images, and tell of both."""
        frozen, better = checkpoint.load(self.folder.path / FROZEN), False
        if unseen:
            last = self.evaluate(unseen.epoch(self.config.epochs))
            better = frozen.metrics["unseen_accuracy"] > last.accuracy
        self.both = {
            "frozen_accuracy": frozen.metrics["test_accuracy"],
            "all_layers_accuracy": self.rows[-1]["reported_accuracy"],
            "kept": "frozen" if better else "all layers",
        }
        if better:
            self.learner.model.load_state_dict(frozen.model.state_dict())
            self.both |= {name: value for name, value in frozen.metrics.items() if name.startswith("test_")}

    def record(self, row: EpochRow) -> None:
        """Add the row of a finished epoch, show it, and save the state if one is due."""
        self.folder.add(row)
        self.reporter.row(row)
        self.keeper.end_epoch()

    def end(self, flipped: Evaluation, temperature: float, known: Known | None = None) -> None:
        """Write the model and its predictions, and say how it went: in the last row, and in an
        evaluation with test-time augmentation.

        Raises:
            OSError: the model cannot be written; the state is saved, so that only this is left to do.
        """
        reported = {name: value for name, value in self.rows[-1].items() if name.startswith("reported_")}
        metrics = {
            **{name.replace("reported", "test"): value for name, value in reported.items()},
            **self.both,
            "test_accuracy_tta": flipped.accuracy,
            "temperature": temperature,
            "split": self.data.reported.name,
            **({"identity": self.data.identity} if self.data.identity else {}),
            **({"origin": self.learner.model.origin} if self.learner.model.origin else {}),
            "precision": self.machine.precision,
            **{f"{name}_seconds": value for name, value in self.clock.seconds().items()},
            **throughput([row["images_per_s"] for row in self.rows]),
            "peak_memory_bytes": peak_memory(self.machine.device),
        }
        probability, predicted = self._gathered(flipped)
        out = self.config.out
        if _status(out) != self._out_before:
            out = str(Path(out).with_stem(f"{Path(out).stem}-{self.folder.path.name}"))
            self.reporter.say(f"another program has written {self.config.out} meanwhile: this model goes to {out}")
        try:
            trained_on = torch.from_numpy(np.sort(self.data.contents))
            checkpoint.save_model(out, self.learner.model, self.config, metrics, trained_on, known)
        except (OSError, ValueError):
            self.keeper.save()
            raise
        self.folder.write_predictions(self.data.reported, predicted, probability)
        self.reporter.finish(metrics | {"checkpoint": out, "environment": self.machine.card()})

    @property
    def _advice(self) -> str:
        return f"try a smaller --max-lr; last good resume state: {self.keeper.saved}"


def _status(path: str) -> tuple[int, ...]:
    """What is another when a file has been written anew; empty of none."""
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def open_run(state: State, learner: Learner, loader: DaliLoader, data: RunData, clock: Stopwatch) -> Run:
    """This rank's run: rank 0 records it. The arguments are those of Run."""
    kind = RecordedRun if learner.machine.world.first else Run
    return kind(state, learner, loader, data, clock)
