"""A run's folder: config.json, log.jsonl (one row an epoch), TensorBoard scalars, curves.png, resume state.

    python train.py --run-dir runs/mine     # default: runs/YYYYMMDD-HHMMSS
    tensorboard --logdir runs

A run that goes on from its resume state goes on with its log: no epoch is missing or there twice.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import chain, count
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Self

# Importing it costs 50 ms once torch is there (it does not import TensorFlow).
from torch.utils.tensorboard import SummaryWriter

from report.curves import draw
from report.progress import json_line

SCALARS = {
    "loss/training": "loss",
    "loss/{split}": "test_loss",
    "accuracy/training": "train_accuracy",
    "accuracy/{split}": "test_accuracy",
    "learning rate": "lr",
    "images per second": "images_per_s",
    "resolution": "resolution",
}
# Between epochs, pictures may take this share of the run's time: one takes 0.25 s, an epoch on a fast GPU little more.
DRAWING_SHARE = 0.02
FIRST_DRAW_SECONDS = 0.5


class RunFolder:
    """Keeps the record of one run; use it in a `with`, or close it, to get the last picture.

    Args:
        path: the folder; made if missing. "" makes a new one, runs/YYYYMMDD-HHMMSS, never shared by two runs.
        resume_epoch: epochs that the resume state has finished, 0 for a fresh run. The log keeps the rows of these
            epochs alone, so that the rows that follow neither double one nor leave a gap; a fresh run starts the log
            anew. TensorBoard hides the points beyond them.
        lrs: learning rate of each step of the run, for the picture; without it, one point an epoch.

    Attributes:
        path: the folder.
        rows: the log's rows so far.

    Raises:
        ValueError: the folder or a file in it cannot be written, or the log is not this program's; says which.
    """

    def __init__(self, path: str | Path = "", resume_epoch: int = 0, lrs: Sequence[float] = ()) -> None:
        self._lrs = lrs
        self.path = _new_folder(Path("runs")) if path == "" else Path(path)
        with _writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        rows = _read(self.log_path) if resume_epoch else []
        self.rows = [row for row in rows if row["epoch"] <= resume_epoch]
        with _writing(self.log_path):
            _replace(self.log_path, "".join(json_line(row) + "\n" for row in self.rows))
        # TensorBoard drops what an earlier run left in the folder from this step on.
        purge = self.rows[-1]["step"] + 1 if self.rows else 0
        with _writing(self.path):
            self._board = SummaryWriter(str(self.path), purge_step=purge)
        self._drawn, self._draw_seconds = perf_counter(), FIRST_DRAW_SECONDS

    @property
    def log_path(self) -> Path:
        return self.path / "log.jsonl"

    @property
    def resume_path(self) -> Path:
        """Where the resume state belongs."""
        return self.path / "resume.pt"

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write config.json, one setting a line."""
        path = self.path / "config.json"
        with _writing(path):
            _replace(path, json.dumps(config, indent=2) + "\n")

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a finished epoch's row to the log and to TensorBoard, and draw the curves where that is cheap.

        Call it before the resume state of that epoch is saved: a crash between the two then costs nothing, as a row
        beyond the state is dropped when the run goes on.
        """
        self.rows.append(dict(row))
        with _writing(self.log_path), self.log_path.open("a", encoding="utf-8") as log:
            log.write(json_line(row) + "\n")
        split = row.get("split", "test")
        with _writing(self.path):
            for tag, key in SCALARS.items():
                if row.get(key) is not None:
                    self._board.add_scalar(tag.format(split=split), row[key], row["step"])
            self._board.flush()
        if (perf_counter() - self._drawn) * DRAWING_SHARE >= self._draw_seconds:
            self._draw()

    def close(self) -> None:
        """Draw the last picture and close the files."""
        with _writing(self.path):
            self._board.close()
        if self.rows:
            self._draw()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _draw(self) -> None:
        path = self.path / "curves.png"
        start = perf_counter()
        with _writing(path):
            draw(self.rows, path, self._lrs)
        self._drawn = perf_counter()
        self._draw_seconds = self._drawn - start


def _new_folder(parent: Path) -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    names = chain([stamp], (f"{stamp}-{n}" for n in count(2)))
    while True:
        folder = parent / next(names)
        with _writing(folder), suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder


def _read(path: Path) -> list[dict[str, Any]]:
    """The log's rows; the end of a line that a crash cut short is left out."""
    if not path.exists():
        return []
    try:
        # Every whole row ends in a newline, so what follows the last one is either empty or cut short.
        *lines, _ = path.read_text(encoding="utf-8").split("\n")
        rows = [json.loads(line) for line in lines]
        return [row for row in rows if row["epoch"] > 0 and row["step"] > 0]
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{path} is not a log of this program: move it away to go on with a new one") from None


def _replace(path: Path, text: str) -> None:
    """Write a text file whole: a reader, or a crash, meets the old one or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"cannot write {path}: {reason}; make room there or choose another --run-dir") from error
