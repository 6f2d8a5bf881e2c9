"""features.npz: layer4's features of many pictures, and what the model says of each.

    file = np.load("features.npz")
    features, paths = file["features"], file["path"]  # (N, K) float32 and (N,)

part (N,): which of the checkpoint's data, or "" of other pictures; label, prediction (N,) int64:
numbers in `classes` (C,), -1 of a name that is none; probability (N,) of the prediction; and what
an ONNX file says of the checkpoint. Features lie in memory twice, pixels of files a few at a time.
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


def write(
    options: CheckpointOptions, checkpoint: Checkpoint, facts: Mapping[str, str], out: str
) -> dict[str, Any]:
    """The file, whole; what there is to report. Raises Mistake where no picture can be read."""
    skipped, rows, buffer = list[str](), list[tuple[Any, ...]](), io.BytesIO()
    judge = Judge(Explainer.of(checkpoint, threads=options.threads), checkpoint, 0.0)
    for part, one in _answers(options, judge, skipped):
        p = one.probabilities
        rows.append((one.features, one.files, [part] * len(p), one.labels, p.argmax(1), p.max(1)))
    if not rows:
        why = "; ".join(skipped[:3])
        raise Mistake(f"none of {len(skipped):,} files is a picture that can be read: {why}")
    columns = dict(zip(NAMES, map(np.concatenate, zip(*rows, strict=True)), strict=True))
    rows.clear()
    columns |= {name: np.array(fact) for name, fact in facts.items()}
    columns["classes"] = np.array(checkpoint.model.classes)
    np.savez(buffer, **columns)  # type: ignore[arg-type]
    write_whole(destination(out), buffer.getbuffer())
    pictures, width = columns["features"].shape
    result = {"file": out, "bytes": buffer.tell(), "pictures": pictures, "width": width}
    return result | {"skipped": skipped[:100], "skipped_total": len(skipped)}


def _answers(
    options: CheckpointOptions, judge: Judge, skipped: list[str]
) -> Iterator[tuple[str, Answers]]:
    """The part and the answers, batch by batch; of a model that was not tested, no test images."""
    config, data = judge.checkpoint.config, _own_data(options, judge)
    if data is None:
        found = sources.find([options.data], judge.labels)
        yield from (("", one) for one in judge.of_pictures(*found, skipped))
        return
    train, reported = data.splits(config.validate, config.fold)
    splits = [train, data.validation(), reported]  # of which the last two can be the same
    for name, split in {split.name: split for split in splits if split}.items():
        yield from ((name, one) for one in judge.of_split(split, np.zeros(len(split), bool)))


def _own_data(options: CheckpointOptions, judge: Judge) -> DataSet | None:
    """The checkpoint's data; None where --data names other pictures, which are not decoded here."""
    if kind_of(options.data or "cifar10") == "pictures":
        files = [file for file, _ in sources.find([options.data], judge.labels)[0]]
        hashes, _ = contents.digests(Path(), files, store.index_path(Path(options.data)))
        held = [int.from_bytes(bytes.fromhex(text[:16]), signed=True) for text in hashes]
        learnt = judge.checkpoint.trained_on.numpy()
        if not judge.checkpoint.config.own_pictures or not np.isin(learnt, held).all():
            return None
    return options.open_data(judge.checkpoint)
