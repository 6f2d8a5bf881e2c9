"""features.npz: layer4's features of many pictures, and what the model says of each.

    with np.load("features.npz") as file:
        features, paths = file["features"], file["path"]  # (N, K) float32 and (N,)

part (N,): which of the checkpoint's data, or "" of other pictures; label, prediction (N,) int64:
numbers in `classes` (C,), -1 of a name that is none; probability (N,) float32 of the prediction; and
what an ONNX file says of the checkpoint. Features lie in memory twice, pixels of files a few at a time.
"""

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from engine.checkpoint import Checkpoint
from explain.explainer import Explainer
from explain.options import CheckpointOptions
from ground.data import kind_of
from ground.files import destination, write_whole
from ground.mistake import Mistake
from judge import sources
from judge.answers import Answers, Judge
from pipeline import contents, store
from pipeline.dataset import DataSet

NAMES = ("features", "path", "part", "label", "prediction", "probability")


def write(options: CheckpointOptions, checkpoint: Checkpoint, out: Path, facts: Mapping[str, str]) -> dict[str, Any]:
    """The file, whole; what there is to report. Raises Mistake where no picture can be read."""
    skipped, rows, buffer = list[str](), list[tuple[Any, ...]](), io.BytesIO()
    judge = Judge(Explainer.of(checkpoint, threads=options.threads), checkpoint, 0.0)
    for part, answers in _answers(options, judge, skipped):
        p, features = answers.probabilities, answers.features.numpy()
        said = p.argmax(1), p.max(1).astype(np.float32)
        rows.append((features, answers.files, [part] * len(p), answers.labels, *said))
    if not rows:
        raise Mistake(f"none of {len(skipped):,} files is a picture that can be read: " + "; ".join(skipped[:3]))
    columns = {name: np.concatenate(column) for name, column in zip(NAMES, zip(*rows, strict=True), strict=True)}
    rows.clear()
    np.savez(buffer, **{**facts, **columns, "classes": checkpoint.model.classes})  # type: ignore[arg-type]
    write_whole(destination(out), buffer.getbuffer())
    pictures, width = columns["features"].shape
    result = {"file": str(out), "bytes": buffer.tell(), "pictures": pictures, "width": width}
    return result | {"skipped": skipped[:100], "skipped_total": len(skipped)}


def _answers(options: CheckpointOptions, judge: Judge, skipped: list[str]) -> Iterator[tuple[str, Answers]]:
    """The part and the answers, batch by batch; of a model that was not tested, no test images."""
    config, data = judge.checkpoint.config, _own_data(options, judge)
    if data is None:
        answers = judge.of_pictures(*sources.find([options.data], judge.labels), skipped)
        yield from (("", one) for one in answers)
        return
    train, reported = data.splits(config.validate, config.fold)
    splits = [train, data.validation(), reported]  # of which the last two can be the same
    for name, split in {split.name: split for split in splits if split}.items():
        yield from ((name, one) for one in judge.of_split(split, np.full(len(split), split is train)))


def _own_data(options: CheckpointOptions, judge: Judge) -> DataSet | None:
    """The checkpoint's data; None where --data names other pictures, which are not decoded for that."""
    name, checkpoint = options.data, judge.checkpoint
    if not name or kind_of(name) != "pictures":
        return options.open_data(checkpoint)
    files = [file for file, _ in sources.find([name], judge.labels)[0]]
    if not checkpoint.config.own_pictures:
        return None
    hashes = contents.digests(Path(), files, store.index_path(Path(name)))[0]
    held = [int.from_bytes(bytes.fromhex(text[:16]), signed=True) for text in hashes]
    try:
        all_held = np.isin(checkpoint.trained_on.numpy(), held).all()
        return options.open_data(checkpoint) if all_held else None
    except Mistake:  # others are among them
        return None
