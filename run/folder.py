"""A run's folder: config.json, log.jsonl (one row an epoch), TensorBoard scalars, curves.png, resume
states, and in the end predictions.npz: what the model says of each image that the run reports on.

    python train.py --run-dir runs/mine     # default: runs/YYYYMMDD-HHMMSS
    tensorboard --logdir runs

A run that goes on from its resume state goes on with its log: no epoch is missing or there twice.
"""

import io
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import chain, count
from pathlib import Path
from time import perf_counter
from typing import Any, NoReturn, Self

import numpy as np

# Importing these costs 50 ms once torch is there (no TensorFlow comes with them).
from tensorboard.compat.proto import event_pb2  # type: ignore[import-untyped]
from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]
from torch.utils.tensorboard.summary import scalar

from ground.files import lock, write_whole
from ground.mistake import Mistake
from ground.terminal import json_line
from pipeline.split import Split
from run.curves import draw
from run.resume import State, claim
from run.schema import EpochRow

SCALARS = {
    "loss/training": "loss",
    "loss/{split}": "reported_loss",
    "accuracy/training": "train_accuracy",
    "accuracy/{split}": "reported_accuracy",
    "learning rate": "lr",
    "images per second": "images_per_s",
    "resolution": "resolution",
}
PREDICTIONS = "predictions.npz"
# Between epochs, pictures may take this share of the run's time: one takes 0.25 s, an epoch on a fast GPU little more.
DRAWING_SHARE = 0.02
FIRST_DRAW_SECONDS = 0.5


class RunFolder:
    """Keeps the record of one run; at the end of its `with` it draws the last picture and lets the folder go.

    Args:
        path: the folder; made if missing. "" makes a new one, runs/YYYYMMDD-HHMMSS, never shared by two runs.
        state: where the run goes on. The log is written anew from its rows, so that those that follow neither
            double one nor leave a gap, whatever became of the log. TensorBoard hides the points beyond them.
        lr_at: learning rate of a step of the run, for the picture.

    Attributes:
        rows: the log's rows so far.

    Raises:
        Mistake: the folder or a file in it cannot be written, another process holds it, or it holds another run
            that is not finished; says which. Nothing in it is changed then.
    """

    def __init__(
        self, path: str | Path = "", state: State | None = None, lr_at: Callable[[int], float] = lambda step: 0.0
    ) -> None:
        state = state or State()
        self.path = _new_folder(Path("runs")) if path == "" else Path(path)
        self.log_path, self._lr_at = self.path / "log.jsonl", lr_at
        with _writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = lock(self.path / "run.lock", self._taken)
        try:
            with _writing(self.path):
                claim(self.path, state)
        except ValueError:
            os.close(self._lock)
            raise
        self.rows = list(state.rows)
        self._write("log.jsonl", "".join(json_line(row) + "\n" for row in self.rows))
        moved = not any(self.path.glob("events.out.*"))
        with _writing(self.path):
            # TensorBoard drops what an earlier run left in the folder from this step on.
            self._board = _Board(self.path, purge=self.rows[-1]["step"] + 1 if self.rows else 0)
            for row in self.rows if moved else ():
                self._board.add(row)
        self._drawn, self._draw_seconds = perf_counter(), FIRST_DRAW_SECONDS

    def _taken(self, holder: str) -> NoReturn:
        raise Mistake(
            f"{self.path} is in use by process {holder}: wait for it, stop it, or choose another --run-dir"
        )

    def _write(self, name: str, text: str) -> Path:
        path = self.path / name
        with _writing(path):
            write_whole(path, text.encode())
        return path

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write config.json, one setting a line."""
        self._write("config.json", json.dumps(config, indent=2) + "\n")

    def write_predictions(
        self, split: Split, predicted: np.ndarray, probability: np.ndarray
    ) -> None:
        """Write predictions.npz, for `numpy.load`: what the model says of the n images of a split.

        files (n,) names; contents (n,) int64 as those of Split, or (0,); labels and predicted (n,)
        int64, numbers of classes; probability (n,) float32; classes (C,) names.
        """
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer, files=split.names, contents=split.contents, labels=split.labels,
            predicted=predicted.astype(np.int64), probability=probability.astype(np.float32),
            classes=split.classes,
        )  # fmt: skip
        with _writing(self.path / PREDICTIONS):
            write_whole(self.path / PREDICTIONS, buffer.getbuffer())

    def add(self, row: EpochRow) -> None:
        """Append a finished epoch's row to the log and to TensorBoard, and draw the curves where that is cheap.

        Call it before the resume state of that epoch is saved: a crash between the two then costs nothing, as a row
        beyond the state is dropped when the run goes on.
        """
        self.rows.append(row)
        with _writing(self.log_path), self.log_path.open("a", encoding="utf-8") as log:
            log.write(json_line(row) + "\n")
        with _writing(self.path):
            self._board.add(row)
        if (perf_counter() - self._drawn) * DRAWING_SHARE >= self._draw_seconds:
            self._draw()

    def note_bad_batch(self, step: int, indices: Sequence[int]) -> str:
        """Write the training images of a step to bad_batch.json; returns the first few and where all are."""
        path = self._write("bad_batch.json", json_line({"step": step, "indices": indices}) + "\n")
        return f"images {', '.join(map(str, indices[:8]))}, ...: all {len(indices)} in {path}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            with _writing(self.path):
                self._board.records.close()
            if self.rows:
                self._draw()
        finally:
            os.close(self._lock)

    def _draw(self) -> None:
        path, start = self.path / "curves.png", perf_counter()
        with _writing(path):
            draw(self.rows, self._lr_at, path)
        self._drawn = perf_counter()
        self._draw_seconds = self._drawn - start


class _Board:
    """TensorBoard's scalars, on the disk when they come; `purge` hides what earlier files have from that step on.

    torch's SummaryWriter writes in a thread of its own, which would meet a full disk with a traceback.
    """

    def __init__(self, folder: Path, purge: int) -> None:
        seconds, rest = divmod(time.time_ns(), 10**9)
        name = f"events.out.tfevents.{seconds:010d}.{socket.gethostname()}.{os.getpid()}.{rest:09d}"
        self.records = RecordWriter((folder / name).open("xb"))
        self._write(file_version="brain.Event:2")
        self._write(step=purge, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))
        self.records.flush()

    def add(self, row: Mapping[str, Any]) -> None:
        for tag, key in SCALARS.items():
            self._write(step=row["step"], summary=scalar(tag.format(split=row["split"]), row[key]))
        self.records.flush()

    def _write(self, **what: Any) -> None:
        self.records.write(event_pb2.Event(wall_time=time.time(), **what).SerializeToString())


def _new_folder(parent: Path) -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    for name in chain([stamp], (f"{stamp}-{n}" for n in count(2))):
        with _writing(parent / name), suppress(FileExistsError):
            (parent / name).mkdir(parents=True)
            break
    return parent / name


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise Mistake(f"cannot write {path}: {reason}; make room there or choose another --run-dir") from error
