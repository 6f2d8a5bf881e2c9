"""How good the answers are, where the pictures have labels: gathered batch by batch, then told as figures and lines."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from explain.cases import Ints
from explain.metrics import calibrated, class_scores, ranks, share
from ground.mistake import Mistake
from judge.answers import Answers
from pipeline.labels import name_list

TOP = 5
TABLE = 20  # classes: of more, those of the lowest F1 are shown, and no table of confusions
CONFUSIONS = 1000  # pairs of classes in the result, the most frequent ones
SHARE = "{0:.2%} (95% interval {1:.2%} to {2:.2%})"


class Report:
    """What is kept of every picture that has a label: 41 bytes; others are counted."""

    def __init__(self, classes: Sequence[str], with_training: bool) -> None:
        self.classes, self.with_training = classes, with_training
        self.pictures = self.learnt = self.known = 0
        self._kept: list[tuple[np.ndarray, ...]] = []

    def gather(self, batches: Iterable[Answers], skipped: Sequence[str]) -> Iterator[Answers]:
        """The same answers again. Raises Mistake at the end where there were none, as all files were skipped."""
        for answers in batches:
            known = np.zeros(len(answers.files), bool) if answers.known is None else answers.known
            self.pictures += len(known)
            self.learnt += int(answers.learnt.sum())
            self.known += int(known.sum())
            scored = (answers.labels >= 0) & (~answers.learnt | self.with_training)
            labels, logits, p = answers.labels[scored], answers.logits[scored], answers.probabilities[scored]
            own = np.take_along_axis(p, labels[:, None], 1)[:, 0]
            self._kept.append((labels, logits.argmax(1), p.max(1), own, ranks(logits, labels), known[scored]))
            yield answers
        if not self.pictures:
            reasons = ": " * bool(skipped) + "; ".join(skipped[:3])
            raise Mistake(f"none of {len(skipped):,} files is a picture that can be read{reasons}")

    def figures(self, promised: bool) -> dict[str, Any]:
        """All that is told; `promised`: whether the checkpoint can tell what it knows."""
        counts: dict[str, Any] = {"pictures": self.pictures, "known": self.known if promised else None}
        counts |= {"trained_on": self.learnt, "with_training": self.with_training}
        labels, predicted, confidence, own, place, known = (np.concatenate(c) for c in zip(*self._kept, strict=True))
        if not len(labels):
            return counts | {"scored": 0}
        right, scores = predicted == labels, class_scores(labels, predicted, len(self.classes))
        seen = np.flatnonzero(scores.images).tolist()
        names = [self.classes[i] for i in seen]
        figures = counts | {"scored": len(labels), "absent": [name for name in self.classes if name not in set(names)]}
        shares = {"accuracy": right, f"top{TOP}": place <= TOP} | ({"answered": known} if promised else {})
        for name, hits in (shares | ({"answered_accuracy": right[known]} if known.any() else {})).items():
            figures[name], figures[f"{name}_interval"] = share(hits)
        figures["class_accuracy"] = float(scores.recall[seen].mean())
        figures["calibration_error"] = calibrated(confidence, right).error
        figures["log_loss"] = float(-np.log(np.maximum(own, np.finfo(float).tiny)).mean())
        columns = {name: values[seen].tolist() for name, values in vars(scores).items()}
        rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
        figures["classes"] = dict(zip(names, rows, strict=True))
        return figures | {"confusions": self._confusions(labels[~right], predicted[~right])}

    def _confusions(self, labels: Ints, predicted: Ints) -> list[tuple[str, str, int]]:
        """(true class, predicted class, pictures), most frequent first; without a table of all pairs, which may be
        many."""
        pairs, counts = np.unique(labels * len(self.classes) + predicted, return_counts=True)
        most = np.argsort(-counts, kind="stable")[:CONFUSIONS]
        rows = zip(*np.divmod(pairs[most], len(self.classes)), counts[most], strict=True)
        return [(self.classes[true], self.classes[other], int(n)) for true, other, n in rows]


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """What a person is told of the figures."""
    if foreign := result["foreign_labels"]:
        yield f"{len(foreign):,} labels are no class of the model, and not scored: {name_list(foreign)}"
    if result["trained_on"]:
        how = "they count too" if result["with_training"] else "left out of the figures, unless --with-training"
        yield f"{result['trained_on']:,} of the pictures are among those that the model was trained on: {how}"
    if result["scored"]:
        yield from _score_lines(result)
    if "promise" not in result:
        yield "the checkpoint cannot tell what it knows: it was trained without pictures to keep a promise by"
    elif result["least_probability"] is None:
        yield (
            "no probability keeps a promise of {promise:.4g} on the {fitted_on:,} pictures that it is fitted on, so "
            "none is known; the most that it can promise is {possible_promise}"
        ).format_map(result)
    else:
        text = "promise {promise:.4g}: known from a probability of {least_probability:.3f} on; where that was fitted, "
        text += "on {fitted_on:,} pictures, {fit_answered:.1%} are known, right of these " + SHARE
        yield text.format(result["fit_accuracy"], *result["fit_accuracy_interval"], **result)
        yield "here {known:,} of {pictures:,} pictures are known".format_map(result)
        if "answered_accuracy" in result:
            text = "of those with a label {answered:.1%} are known, right of these " + SHARE
            yield text.format(result["answered_accuracy"], *result["answered_accuracy_interval"], **result)


def _score_lines(result: Mapping[str, Any]) -> Iterator[str]:
    if result["absent"]:
        yield f"no pictures of {len(result['absent']):,} of the model's classes: {name_list(result['absent'])}"
    text = "{scored:,} pictures with a label: right " + SHARE + ", mean of the classes {class_accuracy:.2%}"
    text += f", among the first {TOP} {{top{TOP}:.2%}}"
    yield text.format(result["accuracy"], *result["accuracy_interval"], **result)
    yield "confidence and accuracy differ by {calibration_error:.2%} (ECE); log loss {log_loss:.4f}".format_map(result)
    classes, pairs = result["classes"], {(true, other): n for true, other, n in result["confusions"]}
    names = sorted(classes, key=lambda name: classes[name]["f1"])[:TABLE] if len(classes) > TABLE else list(classes)
    width = max(5, *map(len, names))
    yield f"{'class':<{width}}  pictures  precision, recall and F1, each with its 95% interval"
    for name in names:
        one, cells = classes[name], []
        for figure in ("precision", "recall", "f1"):
            text = "{:6.1%} ({:5.1%} to {:6.1%})".format(one[figure], *one[f"{figure}_interval"])
            cells.append(f"{text if one[figure] == one[figure] else '  never predicted':<24}")
        yield f"{name:<{width}}  {one['images']:8,}  " + "  ".join(cells).rstrip()
    said = list(dict.fromkeys([*classes, *(other for _, other in pairs)]))
    if len(said) > TABLE:
        some = result["confusions"][:TOP]
        yield "most often " + ", ".join(f"{true} taken for {other} ({n:,})" for true, other, n in some)
        return
    yield "confusions: rows are true classes, columns predicted ones, by their number"
    yield " " * (width + 4) + "".join(f"{k:>6}" for k in range(1, len(said) + 1))
    for k, name in enumerate(said, 1):
        right = {(name, name): round(classes[name]["recall"] * classes[name]["images"])} if name in classes else {}
        yield f"{k:>2}  {name:<{width}}" + "".join(f"{(pairs | right).get((name, other), 0):>6}" for other in said)
