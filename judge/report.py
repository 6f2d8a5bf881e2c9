"""How good the answers are, where the pictures have labels: gathered batch by batch, then told as figures and lines."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from explain.cases import Bools, Floats, Ints
from explain.metrics import calibrated, class_scores, ranks, share
from judge.answers import Answers
from pipeline.labels import name_list

TOP = 5
TABLE = 20  # classes: of more, the worst are listed
CONFUSIONS = 200  # pairs of classes, the most frequent first


class Report:
    """What is kept of every picture that has a label: 40 bytes; of the others they are counted."""

    def __init__(self, classes: Sequence[str], with_training: bool) -> None:
        self.classes, self.with_training = classes, with_training
        self.pictures = self.learnt = self.known = 0
        self._kept: list[tuple[np.ndarray, ...]] = []

    def add(self, answers: Answers, probabilities: Floats, known: Bools | None) -> None:
        self.pictures += len(answers.files)
        self.learnt += int(answers.learnt.sum())
        self.known += 0 if known is None else int(known.sum())
        scored = (answers.labels >= 0) & (~answers.learnt | self.with_training)
        labels, p = answers.labels[scored], probabilities[scored]
        place = ranks(answers.logits[scored], labels)
        sure = np.zeros(len(labels), bool) if known is None else known[scored]
        own = np.take_along_axis(p, labels[:, None], 1)[:, 0]
        self._kept.append((labels, answers.logits[scored].argmax(1), p.max(1), own, place, sure))

    def figures(self, fitted: bool) -> dict[str, Any]:
        """All that is told; `fitted`: whether there is a threshold for `known`."""
        counts: dict[str, Any] = {"pictures": self.pictures, "known": self.known if fitted else None}
        counts |= {"trained_on": self.learnt, "with_training": self.with_training}
        kept = [np.concatenate(column) for column in zip(*self._kept, strict=True)]
        if not len(kept[0]):
            return counts | {"scored": 0}
        labels, predicted, confidence, own, place, sure = kept
        right = predicted == labels
        scores = class_scores(labels, predicted, len(self.classes))
        seen = scores.images > 0
        result = counts | {"scored": len(labels), "classes_without_pictures": self._names(np.flatnonzero(~seen))}
        for name, hits in (("accuracy", right), (f"top{TOP}", place <= TOP)):
            result[name], result[f"{name}_interval"] = share(hits)
        result["class_accuracy"] = float(scores.recall[seen].mean())
        result["calibration_error"] = calibrated(confidence, right).error
        result["log_loss"] = float(-np.log(np.maximum(own, np.finfo(float).tiny)).mean())
        if fitted:
            result["answered"] = float(sure.mean())
            if sure.any():
                result["answered_accuracy"], result["answered_accuracy_interval"] = share(right[sure])
        columns = {name: value.tolist() for name, value in vars(scores).items()}
        result["classes"] = {
            self.classes[i]: {name: column[i] for name, column in columns.items()}
            for i in np.flatnonzero(seen).tolist()
        }
        return result | {"confusions": self._confusions(labels, predicted)}

    def _names(self, numbers: Ints) -> list[str]:
        return [self.classes[i] for i in numbers.tolist()]

    def _confusions(self, labels: Ints, predicted: Ints) -> list[tuple[str, str, int]]:
        """(true class, predicted class, pictures) of wrong answers, most frequent first; no table of all classes' pairs
        is made, which may be many."""
        wrong, count = labels != predicted, len(self.classes)
        pairs, counts = np.unique(labels[wrong] * count + predicted[wrong], return_counts=True)
        most = CONFUSIONS if count > TABLE else len(pairs)
        order = np.argsort(-counts, kind="stable")[:most]
        trues, others = np.divmod(pairs[order], count)
        return list(zip(self._names(trues), self._names(others), counts[order].tolist(), strict=True))


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """What a person is told of the figures."""
    if result["trained_on"]:
        how = "counted in" if result["with_training"] else "left out of the figures; --with-training counts them in"
        yield f"{result['trained_on']:,} of the pictures are among those that the model was trained on: {how}"
    if not result["scored"]:
        return
    if result["classes_without_pictures"]:
        absent = result["classes_without_pictures"]
        yield f"no pictures of {len(absent)} of the model's classes: {name_list(absent)}"
    text = "{scored:,} pictures have a label: {accuracy:.2%} right (95% interval {0:.2%} to {1:.2%}), "
    text += f"mean of the classes {{class_accuracy:.2%}}, among the first {TOP} {{top{TOP}:.2%}}"
    yield text.format(*result["accuracy_interval"], **result)
    yield "confidence and accuracy differ by {calibration_error:.2%} (ECE); log loss {log_loss:.4f}".format_map(result)
    yield from _class_lines(result["classes"])
    yield from _confusion_lines(result)


def promise_lines(result: Mapping[str, Any]) -> Iterator[str]:
    """What a person is told of when the model does not know."""
    if "promise" not in result:
        yield "known is empty: the checkpoint has no pictures, neither trained on nor tested, to keep a promise by"
        return
    promise = f"{result['promise']:.4g}"
    if result["least_probability"] is None:
        yield f"no probability keeps a promise of {promise} on the {result['fitted_on']:,} pictures: it answers none"
        return
    text = f"promise {promise}: probability {{least_probability:.3f}} or more, and not unlike all trained on; of "
    text += "{fitted_on:,} pictures that this was fitted on it answers {fit_answered:.1%}, right on {fit_accuracy:.2%} "
    yield (text + "(95% interval {0:.2%} to {1:.2%})").format(*result["fit_interval"], **result)
    text = "it answers {known:,} of these {pictures:,} pictures"
    if "answered_accuracy" in result:
        text += "; of those with a label {answered:.1%}, right on {answered_accuracy:.2%} (95% interval {0:.2%} to "
        text += "{1:.2%})"
    yield text.format(*result.get("answered_accuracy_interval", ()), **result)


def _class_lines(classes: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    names = list(classes)
    if len(names) > TABLE:
        names = sorted(names, key=lambda name: classes[name]["f1"])[:TABLE]
        yield f"the {TABLE} classes of the lowest F1; the JSON line has all:"
    width = max(5, *map(len, names))
    yield f"{'class':<{width}}  pictures" + "".join(f"  {name:<21}" for name in ("precision", "recall", "F1")).rstrip()
    for name in names:
        one, cells = classes[name], []
        for figure in ("precision", "recall", "f1"):
            low, high = one[f"{figure}_interval"]
            some = f"{one[figure]:6.1%} ({low:5.1%} to {high:6.1%})"
            cells.append("never predicted      " if one[figure] != one[figure] else some)
        yield f"{name:<{width}}  {one['images']:8,}  " + "  ".join(cells).rstrip()


def _confusion_lines(result: Mapping[str, Any]) -> Iterator[str]:
    classes, pairs = result["classes"], result["confusions"]
    said = list(dict.fromkeys([*classes, *(pair[1] for pair in pairs)]))
    if len(said) > TABLE:
        if pairs:
            yield "most often " + ", ".join(f"{true} taken for {other} ({n:,})" for true, other, n in pairs[:TOP])
        return
    counts = {(true, other): n for true, other, n in pairs}
    counts |= {(name, name): round(one["recall"] * one["images"]) for name, one in classes.items()}
    width, digits = max(map(len, said)), max(4, len(f"{max(counts.values()):,}"))
    yield "rows: the true class; columns: the predicted one, by its number"
    yield " " * (width + 4) + " ".join(f"{k:>{digits}}" for k in range(1, len(said) + 1))
    for k, name in enumerate(said, 1):
        if name in classes:
            row = " ".join(f"{counts.get((name, other), 0):>{digits},}" for other in said)
            yield f"{k:>2}  {name:<{width}}{row}"
        else:
            yield f"{k:>2}  {name}"
