"""How good the answers are where pictures have labels: gathered by batches, told as figures."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from explain import metrics
from ground.mistake import Mistake
from judge.answers import Answers
from pipeline.labels import name_list

TABLE = 20  # classes: of more, those of the lowest F1 are shown, and no table of confusions
PAIRS = 1000  # confusions in the last line
SHARE = "{:.2%} (95% interval {:.2%} to {:.2%})"


class Report:
    """What is kept of every picture that has a label: 41 bytes; others are counted."""

    def __init__(self, classes: Sequence[str], with_training: bool) -> None:
        self.classes, self.with_training = classes, with_training
        self.counts = Counter(pictures=0, trained_on=0, known=0)
        self.foreign: dict[str, None] = {}  # labels that are no class of the model's
        self.wrong: dict[str, int] = {}  # files taken for another class than theirs, with that
        self._kept: list[tuple[np.ndarray, ...]] = []

    def gather(self, batches: Iterable[Answers], skipped: Sequence[str]) -> Iterator[Answers]:
        """The same answers again. Raises Mistake at last if none, as all files were skipped."""
        for answers in batches:
            labels, p = answers.labels, answers.probabilities
            known = np.zeros(len(labels), bool) if answers.known is None else answers.known
            self.counts.update(pictures=len(labels), known=int(known.sum()))
            self.counts.update(trained_on=int(answers.learnt.sum()))
            pairs = zip(answers.names, labels, strict=True)
            self.foreign |= {name: None for name, label in pairs if name and label < 0}
            some = np.flatnonzero((labels >= 0) & (~answers.learnt | self.with_training))
            places, own = metrics.ranks(p[some], labels[some]), p[some, labels[some]]
            columns = labels, p.argmax(1), p.max(1), known
            self._kept.append((*(column[some] for column in columns), own, places))
            self.wrong |= {answers.files[i]: int(labels[i]) for i in some[places > 1]}
            yield answers
        if not self.counts["pictures"]:
            reasons = ": " * bool(skipped) + "; ".join(skipped[:3])
            raise Mistake(f"none of {len(skipped):,} files is a picture that can be read{reasons}")

    def columns(self) -> list[np.ndarray]:
        """Columns (N,) of the pictures with a label: class, predicted class, probability 0..1 of that,
        whether it is known, probability of the class itself and its place, from 1."""
        return [np.concatenate(column) for column in zip(*self._kept, strict=True)]

    def figures(self, promised: bool) -> dict[str, Any]:
        """All that is told; `promised`: whether the checkpoint can tell what it knows."""
        labels, predicted, confidence, known, own, places = self.columns()
        figures: dict[str, Any] = {**self.counts, "foreign_labels": list(self.foreign)}
        figures |= {"with_training": self.with_training, "scored": len(labels)}
        figures |= {} if promised else {"known": None}
        if not len(labels):
            return figures
        right = predicted == labels
        matrix = metrics.confusion_matrix(labels, predicted, len(self.classes))
        shares = {"accuracy": right, "top5": places <= 5}
        shares |= {"answered": known} if promised else {}
        shares |= {"answered_accuracy": right[known]} if known.any() else {}
        for name, hits in shares.items():
            figures[name], figures[f"{name}_interval"] = metrics.share(hits)
        scores = {name: column.tolist() for name, column in metrics.class_scores(matrix).items()}
        every = {
            name: {figure: column[i] for figure, column in scores.items()}
            for i, name in enumerate(self.classes)
        }
        figures["absent"] = [name for name, one in every.items() if not one["images"]]
        seen = figures["classes"] = {name: one for name, one in every.items() if one["images"]}
        figures["class_accuracy"] = float(np.mean([one["recall"] for one in seen.values()]))
        figures["calibration_error"] = metrics.calibrated(confidence, right).error
        figures["log_loss"] = float(-np.log(np.maximum(own, np.finfo(float).tiny)).mean())
        pairs = metrics.top_confusions(matrix, PAIRS)
        figures["confusions"] = [(self.classes[i], self.classes[k], n) for i, k, n in pairs]
        rows = zip(self.classes, matrix.tolist(), strict=True)
        figures["confusion_matrix"] = dict(rows) if len(matrix) <= TABLE else None
        return figures


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """What a person is told of the figures."""
    if foreign := result["foreign_labels"]:
        yield f"not scored, as the model has no such class: {name_list(foreign)}"
    if result["trained_on"]:
        how = "they count" if result["with_training"] else "they do not count (--with-training)"
        yield f"{result['trained_on']:,} of the pictures were trained on: {how}"
    if result["scored"]:
        yield from _score_lines(result)
    if "promise" not in result:
        yield "the checkpoint cannot tell what it knows: fewer than 100 pictures were held out for that"
        return
    yield result["promise_in_words"]
    yield "here {known:,} of {pictures:,} pictures are known".format_map(result)
    if "answered_accuracy" in result:
        right = SHARE.format(result["answered_accuracy"], *result["answered_accuracy_interval"])
        yield f"of those with a label {result['answered']:.1%}, right on {right}"


def _score_lines(result: Mapping[str, Any]) -> Iterator[str]:
    classes = result["classes"]
    if absent := result["absent"]:
        yield f"no pictures of {len(absent):,} of the model's classes: {name_list(absent)}"
    right = SHARE.format(result["accuracy"], *result["accuracy_interval"])
    yield f"{result['scored']:,} pictures with a label: right {right}"
    text = "mean of the classes {class_accuracy:.2%}, among the first five {top5:.2%}, "
    yield (text + "log loss {log_loss:.4f}, ECE {calibration_error:.2%}").format_map(result)
    width = max(5, *map(len, classes))
    yield f"{'class':<{width}}  pictures  precision, recall and F1, each with its 95% interval"
    shown = sorted(classes, key=lambda name: classes[name]["f1"])[:TABLE]
    for name in shown if len(classes) > TABLE else classes:
        line = f"{name:<{width}}  {classes[name]['images']:8,}"
        for figure in ("precision", "recall", "f1"):
            value, (low, high) = classes[name][figure], classes[name][f"{figure}_interval"]
            cell = f"{value:6.1%} ({low:5.1%} to {high:6.1%})"
            line += f"  {cell if value == value else ' never predicted':<24}"
        yield line.rstrip()
    if not (matrix := result["confusion_matrix"]):
        some = (f"{true} as {other} ({n:,})" for true, other, n in result["confusions"][:5])
        yield "most often mistaken: " + ", ".join(some)
        return
    yield "confusions: rows are true classes; columns predicted ones, in the same order"
    width = max(map(len, matrix))
    for name, row in matrix.items():
        yield f"{name:<{width}}" + "".join(f"{count:>7}" for count in row)
