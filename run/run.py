"""One run of train.py: its folder, resume states, clock, bar and rows behind one object.

    with Run(state, learner, loader, train.digest, "test", clock) as run:
        run.begin("cpu")
        for epoch in range(run.epochs_done, config.epochs):
            with run.training(epoch) as batches: ...

Every rank has one. They go through the same calls; only rank 0's speaks and writes.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Self

from engine import checkpoint
from engine.device import peak_memory
from engine.learner import Batch, Evaluation, Learner, NonFiniteLoss, Progress
from engine.temperature import fit_temperature
from ground.memory import memory_advice
from ground.mistake import Mistake
from ground.terminal import stdout_console
from pipeline.dali import DaliLoader
from run.folder import NoFolder, RunFolder
from run.reporter import Reporter, throughput
from run.resume import Keeper, State
from run.row import EpochRow
from run.stopwatch import Stopwatch
from run.summary import model_summary


class Run:
    """Keeps and says all there is of one run.

    In its `with` the run folder is held, and running out of memory is a line of advice.

    Args:
        state: where the run goes on; empty for a fresh one.
        learner: what trains; its config is the run's.
        loader: the training batches.
        data: SHA-256 of the training set.
        split: name of the images that the run reports on.
        clock: has the seconds that the run took so far.

    Raises:
        ValueError: the run folder cannot be written or belongs to another run.
    """

    def __init__(
        self, state: State, learner: Learner, loader: DaliLoader, data: str, split: str, clock: Stopwatch
    ) -> None:
        self.config, self.machine, self.world = learner.config, learner.machine, learner.machine.world
        self.state, self.learner, self.loader, self.clock = state, learner, loader, clock
        self.data, self.split = data, split
        self.reporter = Reporter(stdout_console() if self.world.first else None)
        self._open = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.folder: RunFolder = stack.enter_context(
                RunFolder(self.config.run_dir, self.state, self.learner.lr_at)
                if self.world.first
                else NoFolder(self.state)
            )
            stack.enter_context(memory_advice(self.config.batch_size, self.machine.device))
            self.config = replace(self.config, run_dir=str(self.folder.path))
            self.keeper = Keeper(self.folder.path, self.folder.rows, self.learner, self.data, self.clock, self.state)
            self.folder.write_config(checkpoint.config_dict(self.config))
            self._open = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def begin(self, preset: str) -> None:
        """Say what is to come, and compile it; from here on a stop signal waits for the end of a step."""
        self.reporter.say(model_summary(self.learner.model, self.config.resolutions[-1]))
        self.reporter.choice(preset, self.config, self.machine)
        for note in (*self.keeper.notes, self.machine.crowded()):
            if note:
                self.reporter.say(note)
        if self.learner.needs_warm_up:
            with self.clock.on("compile"):
                self.learner.warm_up(self.loader.plan.share)
            for note in self.learner.notes:
                self.reporter.say(note)
        self._open.enter_context(self.keeper)

    @property
    def epochs_done(self) -> int:
        return len(self.folder.rows)

    @contextmanager
    def training(self, epoch: int) -> Iterator[Iterator[Batch]]:
        """What is left of an epoch's batches, counted from 0: shown in the bar, timed, and the run saved between them.

        Raises:
            ValueError: a step's loss is not finite; names its images and the state before it.
        """
        steps, first = len(self.loader), self.learner.step - epoch * len(self.loader)
        # From the inside: the wait for a batch is timed, the run is saved or stopped between two steps, the bar moves.
        batches = self.keeper.steps(self.clock.waiting("wait", self.loader.epoch(epoch, first)))
        with self.reporter.epoch(epoch + 1, self.config.epochs, steps, self.loader.plan.batch_size, first) as bar:
            try:
                with self.clock.on("train"):
                    yield bar.over(batches, self.learner.peek)
            except NonFiniteLoss as error:
                drawn = replace(self.loader.plan, rank=0, world=1).draws(*divmod(error.step, steps))
                where = self.folder.note_bad_batch(error.step, drawn.indices.tolist())
                advice = f"try a smaller --max-lr; last good resume state: {self.keeper.saved}"
                raise Mistake(f"{error} ({where}): {advice}") from None

    def evaluate(self, batches: Iterable[Batch], flip: bool = False) -> Evaluation:
        """The model on these batches; a stop signal ends it between two.

        Raises:
            ValueError: the loss is not finite, though that of training was.
        """
        with self.clock.on("eval"):
            result = self.learner.evaluate(self.keeper.batches(batches), flip)
        if not math.isfinite(result.loss):
            advice = f"try a smaller --max-lr; last good resume state: {self.keeper.saved}"
            raise Mistake(
                f"the loss of the {self.split} images is not finite after step {self.learner.step}: {advice}"
            )
        return result

    def temperature(self, unseen: Iterable[Batch]) -> float:
        """The one that fits these images, neither trained on nor test images; the config's where they are too few."""
        with self.clock.on("eval"):
            fitted = fit_temperature(self.learner.model.eval(), self.keeper.batches(unseen), self.machine)
        return fitted or self.config.temperature

    def end_epoch(self, epoch: int, progress: Progress, result: Evaluation) -> None:
        """Add the row of an epoch, and save the state if one is due."""
        train, wait, evaluation = (self._gained(kind) for kind in ("train", "wait", "eval"))
        row = EpochRow(
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
            split=self.split,
            loss=progress.loss,
            train_accuracy=progress.accuracy,
            last_loss=progress.last_loss,
            last_accuracy=progress.last_accuracy,
            test_loss=result.loss,
            test_correct=result.correct,
            test_total=result.total,
            test_accuracy=result.accuracy,
            test_class_accuracy=result.class_accuracy,
        )
        self.folder.add(row)
        self.reporter.row(row)
        self.keeper.epoch_done()

    def _gained(self, kind: str) -> float:
        """Seconds of a kind since the last row, over stops too: the largest of the ranks'."""
        self.clock.raise_to(kind, self.world.largest(self.clock[kind]))
        return max(0.0, self.clock[kind] - self.folder.total(f"{kind}_seconds"))

    def end(self, flipped: Evaluation, temperature: float) -> None:
        """Write the model and say how it went: in the last row, and in an evaluation with test-time augmentation.

        Raises:
            OSError: the model cannot be written; the state is saved, so that only this is left to do.
        """
        last = self.folder.rows[-1]
        metrics = {
            "test_loss": last["test_loss"],
            "test_correct": last["test_correct"],
            "test_total": last["test_total"],
            "test_accuracy": last["test_accuracy"],
            "test_class_accuracy": last["test_class_accuracy"],
            "test_accuracy_tta": flipped.accuracy,
            "temperature": temperature,
            "split": self.split,
            "precision": self.machine.precision,
            **{f"{name}_seconds": value for name, value in self.clock.seconds().items()},
            **throughput([row["images_per_s"] for row in self.folder.rows]),
            "peak_memory_bytes": peak_memory(self.machine.device),
        }
        if self.world.first:
            try:
                checkpoint.save_model(self.config.out, self.learner.model, self.config, metrics)
            except OSError:
                self.keeper.save()
                raise
        self.reporter.finish(metrics | {"checkpoint": self.config.out, "environment": self.machine.card()})
