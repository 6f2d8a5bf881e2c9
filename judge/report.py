"""How good the answers are where pictures have labels: gathered by batches, told as figures."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from explain.metrics import calibrated, class_scores, confusions, ranks, share
from ground.mistake import Mistake
from judge.answers import Answers
from pipeline.labels import name_list

TOP = 5
TABLE = 20  # classes: of more, those of the lowest F1 are shown, and no table of confusions
SHARE = "{0:.2%} (95% interval {1:.2%} to {2:.2%})"


class Report:
    """What is kept of every picture that has a label: 41 bytes; others are counted."""

    def __init__(self, classes: Sequence[str], with_training: bool) -> None:
        self.classes, self.with_training = classes, with_training
        self.pictures = self.learnt = self.known = 0
        self.foreign: dict[str, None] = {}  # labels that are no class of the model's
        self.wrong: dict[str, int] = {}  # files taken for another class than theirs, with that
        self._kept: list[tuple[np.ndarray, ...]] = []

    def gather(self, batches: Iterable[Answers], skipped: Sequence[str]) -> Iterator[Answers]:
        """The same answers again. Raises Mistake at last if none, as all files were skipped."""
        for answers in batches:
            labels, p = answers.labels, answers.probabilities
            known = np.zeros(len(labels), bool) if answers.known is None else answers.known
            self.pictures += len(labels)
            self.learnt += int(answers.learnt.sum())
            self.known += int(known.sum())
            pairs = zip(answers.names, labels, strict=True)
            self.foreign |= {name: None for name, label in pairs if name and label < 0}
            some = np.flatnonzero((labels >= 0) & (~answers.learnt | self.with_training))
            places, own = ranks(answers.logits[some], labels[some]), p[some, labels[some]]
            columns = labels, answers.logits.argmax(1), p.max(1), known
            self._kept.append((*(column[some] for column in columns), own, places))
            errors = some[answers.logits[some].argmax(1) != labels[some]].tolist()
            self.wrong |= {answers.files[i]: int(labels[i]) for i in errors}
            yield answers
        if not self.pictures:
            reasons = ": " * bool(skipped) + "; ".join(skipped[:3])
            raise Mistake(f"none of {len(skipped):,} files is a picture that can be read{reasons}")

    def columns(self) -> list[np.ndarray]:
        """Of N pictures with a label, each (N,): class, predicted class, probability 0..1 of that,
        whether it is known, probability of the class itself and its place, from 1."""
        return [np.concatenate(column) for column in zip(*self._kept, strict=True)]

    def figures(self, promised: bool) -> dict[str, Any]:
        """All that is told; `promised`: whether the checkpoint can tell what it knows."""
        figures: dict[str, Any] = {"pictures": self.pictures, "foreign_labels": list(self.foreign)}
        figures |= {"trained_on": self.learnt, "with_training": self.with_training}
        figures |= {"known": self.known if promised else None}
        labels, predicted, confidence, known, own, places = self.columns()
        figures["scored"] = len(labels)
        if not len(labels):
            return figures
        right, scores = predicted == labels, class_scores(labels, predicted, len(self.classes))
        shares = {"accuracy": right, f"top{TOP}": places <= TOP}
        shares |= ({"answered": known} if promised else {})
        shares |= ({"answered_accuracy": right[known]} if known.any() else {})
        for name, hits in shares.items():
            figures[name], figures[f"{name}_interval"] = share(hits)
        seen = np.flatnonzero(scores["images"]).tolist()
        figures["class_accuracy"] = float(scores["recall"][seen].mean())
        figures["calibration_error"] = calibrated(confidence, right).error
        figures["log_loss"] = float(-np.log(np.maximum(own, np.finfo(float).tiny)).mean())
        figures["absent"] = [self.classes[i] for i in np.flatnonzero(scores["images"] == 0).tolist()]
        values = {name: column.tolist() for name, column in scores.items()}
        figures["classes"] = {
            self.classes[i]: {name: column[i] for name, column in values.items()} for i in seen
        }
        pairs = confusions(labels, predicted, len(self.classes))
        figures["confusions"] = [(self.classes[i], self.classes[k], n) for i, k, n in pairs]
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
    elif result["least_probability"] is None:
        text = "no probability keeps a promise of {promise:.4g} on the {fitted_on:,} pictures that "
        text += "it is fitted on: none is known; the most that it can promise is {possible_promise}"
        yield text.format_map(result)
    else:
        text = "promise {promise:.4g}: known from a probability of {least_probability:.3f} on; of "
        text += "the {fitted_on:,} pictures of the fit {fit_answered:.1%}, right on " + SHARE
        yield text.format(result["fit_accuracy"], *result["fit_accuracy_interval"], **result)
        yield "here {known:,} of {pictures:,} pictures are known".format_map(result)
        if "answered_accuracy" in result:
            interval = result["answered_accuracy_interval"]
            text = "of those with a label {answered:.1%}, right on " + SHARE
            yield text.format(result["answered_accuracy"], *interval, **result)


def _score_lines(result: Mapping[str, Any]) -> Iterator[str]:
    classes, absent = result["classes"], result["absent"]
    if absent:
        yield f"no pictures of {len(absent):,} of the model's classes: {name_list(absent)}"
    text = "{scored:,} pictures with a label: right " + SHARE + ", mean of the classes "
    text += f"{{class_accuracy:.2%}}, among the first {TOP} {{top{TOP}:.2%}}; "
    text += "log loss {log_loss:.4f}; ECE {calibration_error:.2%}"
    yield text.format(result["accuracy"], *result["accuracy_interval"], **result)
    names = list(classes)
    if len(names) > TABLE:
        names = sorted(names, key=lambda name: classes[name]["f1"])[:TABLE]
    width = max(5, *map(len, names))
    yield f"{'class':<{width}}  pictures  precision, recall and F1, each with its 95% interval"
    for name in names:
        one, line = classes[name], f"{name:<{width}}  {classes[name]['images']:8,}"
        for figure in ("precision", "recall", "f1"):
            low, high = one[f"{figure}_interval"]
            cell = f"{one[figure]:6.1%} ({low:5.1%} to {high:6.1%})"
            line += f"  {cell if one[figure] == one[figure] else ' never predicted':<24}"
        yield line.rstrip()
    said = list(dict.fromkeys([*classes, *(pair[1] for pair in result["confusions"])]))
    if len(said) > TABLE:
        some = (f"{true} as {other} ({n:,})" for true, other, n in result["confusions"][:TOP])
        yield "most often mistaken: " + ", ".join(some)
        return
    yield "confusions: rows are true classes, columns predicted ones, by their number"
    yield " " * (width + 4) + "".join(f"{k:>6}" for k in range(1, len(said) + 1))
    counts = {(true, other): n for true, other, n in result["confusions"]}
    counts |= {(name, name): round(one["recall"] * one["images"]) for name, one in classes.items()}
    for k, name in enumerate(said, 1):
        row = "".join(f"{counts.get((name, other), 0):>6}" for other in said)
        yield f"{k:>2}  {name:<{width}}{row}"
