"""Is one model better than another, or is it chance? Their answers to the same pictures, compared.

    python -m bench compare-answers A.pt B.pt        # on the images that they are reported on
    python -m bench compare-answers runs/a runs/b    # what two runs kept of these: predictions.npz
    python -m bench compare-answers a.csv b.jsonl    # tables of predict.py, of pictures with labels
    python -m bench compare-answers A.pt B.pt --out changed.html     # what one alone gets right

Pictures are the same by content where both sides know it, else by file; copies count once. Of those
that one side alone gets right chance gives each side half: the exact test of McNemar (1947,
Psychometrika 12). Where such are a share s of all, and the accuracies differ by d, so many pictures
show it at the level of 5% in 80 of 100 cases (Connor 1987, Biometrics 43):

    (1.96 sqrt(s) + 0.84 sqrt(s - d^2))^2 / d^2

Of pairs of trainings with other seeds it takes as many as have so many answers, each counted as new.
"""

import csv
import io
import json
import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import tyro

from engine.checkpoint import Checkpoint
from explain.explainer import Explainer
from explain.options import ModelOptions
from explain.outputs import plain
from ground.files import check_output, destination, read_bounded, write_whole
from ground.interval import wilson
from ground.mistake import Mistake
from ground.terminal import print_result
from judge import errors
from judge.answers import Judge
from judge.sources import part
from pipeline.labels import name_list, one_spelling
from pipeline.split import Split
from run.folder import PREDICTIONS

MOST_BYTES = 1_000_000_000  # of a table, which may be anybody's
LEVEL, POWER = 0.05, 0.8
NAMED, SHOWN = 1000, 10  # changed pictures in the last line, and in the text


@dataclass(frozen=True, kw_only=True)
class CompareOptions(ModelOptions):
    answers: tyro.conf.Positional[tuple[str, str]]
    """Two of: checkpoints, run folders, tables of predictions (.csv, .jsonl, .npz)."""
    out: str = ""
    """A page (.html) of the pictures that one of two checkpoints alone gets right."""
    ckpt: tyro.conf.Suppress[str] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out and Path(self.out).suffix.lower() != ".html":
            raise Mistake(f"--out is {self.out}: its name must end in .html")
        if self.out and any(map(table, self.answers)):
            raise Mistake("--out needs two checkpoints: run folders and tables hold no pictures")


@dataclass(frozen=True)
class Told:
    """What a model said of n pictures with labels."""

    files: Sequence[str]
    labels: Sequence[str]
    predicted: Sequence[str]
    contents: Sequence[int] = ()  # as Split.contents; empty where they are not known
    classes: Sequence[str] = ()  # empty where they are not known
    model: tuple[Explainer, Checkpoint, Split] | None = None  # of a checkpoint, with the pictures


def main(arguments: Sequence[str]) -> None:
    about, program = (__doc__ or "").split("\n\n")[0], "python -m bench compare-answers"
    options = tyro.cli(CompareOptions, args=list(arguments), description=about, prog=program)
    told = [read(options, name) for name in options.answers]
    result, wrong = compare(*told)
    if options.out:
        sides = [(*one.model, np.array(rows, np.int64)) for one, rows in zip(told, wrong, strict=True) if one.model]
        text = [*lines(options.answers, result | {"changed": []}), "below: what one alone gets wrong"]
        write_whole(destination(options.out), errors.render_alone(sides, result["pictures"], text))
        result["out"] = options.out
    print_result(lines(options.answers, result), result)


def table(name: str) -> Path | None:
    """The predictions that a file or a run folder holds; None of a checkpoint."""
    path = Path(name) / PREDICTIONS if Path(name).is_dir() else Path(name)
    return path if path.suffix in (".npz", ".csv", ".jsonl") else None


def read(options: CompareOptions, name: str) -> Told:
    """What a file or a run folder holds. Raises OSError; Mistake where it is no predictions."""
    if not (path := table(name)):
        return of_checkpoint(replace(options, ckpt=name))
    data = read_bounded(path, MOST_BYTES)
    try:
        if path.suffix == ".npz":
            with np.load(io.BytesIO(data)) as kept:
                names, files, contents = kept["classes"], kept["files"], kept["contents"]
                labels, predicted = (names[kept[key]].tolist() for key in ("labels", "predicted"))
            return Told(files.tolist(), labels, predicted, contents.tolist(), names.tolist())
        text = io.StringIO(data.decode("utf-8", "surrogateescape"), newline="")
        rows = csv.DictReader(text) if path.suffix == ".csv" else map(json.loads, text)
        cells = [(row["file"], row["label"], row["prediction"]) for row in rows if row["label"]]
        files, labels, predicted = ([*map(plain, column)] for column in zip(*cells, strict=True))
        return Told(files, labels, predicted)
    except (ValueError, LookupError, TypeError, AttributeError, csv.Error, zipfile.BadZipFile):
        what = "predictions of this program for pictures with labels"
        raise Mistake(f"{path} holds no {what}") from None


def of_checkpoint(options: CompareOptions) -> Told:
    """What a checkpoint's model says of the images that it is reported on."""
    checkpoint = options.load()
    if options.out:
        config = checkpoint.config
        check_output(options.out, inputs=[options.ckpt, options.data, *[config.data] * config.own_pictures])
    held_out = checkpoint.config.validate or checkpoint.config.fold
    split, learnt = part(options, checkpoint, "validation" if held_out else "test")
    explainer = Explainer.of(checkpoint, options.device, options.precision, options.threads)
    batches = list(Judge(explainer, checkpoint).of_split(split, learnt))
    labels = [name for answers in batches for name in answers.names]
    predicted = [split.classes[i] for answers in batches for i in answers.probabilities.argmax(1)]
    model = explainer, checkpoint, split
    return Told(split.names, labels, predicted, split.contents.tolist(), split.classes, model)


def compare(a: Told, b: Told) -> tuple[dict[str, Any], tuple[list[int], list[int]]]:
    """What there is to report; rows in A that it alone gets wrong, and such rows in B.

    Raises Mistake for no common pictures, or for other classes or labels of these.
    """
    by = "content" if len(a.contents) and len(b.contents) else "file"
    keys = (a.contents, b.contents) if by == "content" else (a.files, b.files)
    rows_a, rows_b = ({key: row for row, key in enumerate(some)} for some in keys)
    both = [(row, rows_b[key]) for key, row in rows_a.items() if key in rows_b]
    if not both:
        raise Mistake(f"the two have no pictures in common, by their {by}s")
    names = (*a.labels, *a.predicted, *a.classes, *b.labels, *b.predicted, *b.classes)
    meant = one_spelling(names)[0]
    kinds = [{meant[name] for name in one.classes} for one in (a, b)]
    if a.classes and b.classes and (other := kinds[0] ^ kinds[1]):
        raise Mistake(f"the two have other classes: {name_list(sorted(other))} are in one alone")
    rights, changed, wrong = list[tuple[bool, bool]](), [], (list[int](), list[int]())
    for i, k in both:
        label = meant[a.labels[i]]
        if label != meant[b.labels[k]]:
            raise Mistake(f"{a.files[i]} has the label {label} in one, {b.labels[k]} in the other")
        in_a, in_b = meant[a.predicted[i]] == label, meant[b.predicted[k]] == label
        rights.append((in_a, in_b))
        if in_a != in_b:
            changed.append((a.files[i], label, a.predicted[i], b.predicted[k]))
            wrong[in_a].append(k if in_a else i)  # of A where B alone is right, else of B
    count, (right_a, right_b) = len(both), np.sum(rights, 0).tolist()
    alone_b, alone_a = map(len, wrong)
    needed = pictures_needed(len(changed) / count, (right_b - right_a) / count)
    result = {
        "pictures": count, "matched_by": by, "accuracy": [right_a / count, right_b / count],
        "accuracy_interval": [wilson(right_a, count), wilson(right_b, count)],
        "right_in_a_alone": alone_a, "right_in_b_alone": alone_b, "p": mcnemar(alone_a, alone_b),
        "pictures_needed": needed, "seeds_needed": needed and math.ceil(needed / count),
        "changed": changed[:NAMED],
    }  # fmt: skip
    return result, wrong


def mcnemar(a: int, b: int) -> float:
    """The probability that chance parts a + b pictures as unevenly, or more so."""
    ways = [1]  # in which k of them can be chosen
    for k in range(min(a, b)):
        ways.append(ways[-1] * (a + b - k) // (k + 1))
    return min(1.0, 2 * sum(ways) / 2 ** (a + b))


def pictures_needed(changed: float, difference: float) -> int | None:
    """How many pictures show this difference of accuracies, where so large a share changes; None for 0."""
    if not difference:
        return None
    level, power = NormalDist().inv_cdf(1 - LEVEL / 2), NormalDist().inv_cdf(POWER)
    deviations = level * changed**0.5 + power * (changed - difference**2) ** 0.5
    return math.ceil((deviations / difference) ** 2)


def lines(names: Sequence[str], result: Mapping[str, Any]) -> Iterator[str]:
    """What a person is told."""
    columns = names, result["accuracy"], result["accuracy_interval"]
    for side, (name, accuracy, (low, high)) in zip("AB", zip(*columns, strict=True), strict=True):
        yield f"{side}: {accuracy:.2%} right (95% interval {low:.2%} to {high:.2%}): {name}"
    text = "{pictures:,} pictures, the same by {matched_by}; "
    text += "{right_in_a_alone:,} are right in A alone, {right_in_b_alone:,} in B alone"
    yield text.format_map(result)
    verdict = "more than chance" if result["p"] <= LEVEL else "chance may be all of it"
    yield f"McNemar's exact test: p = {result['p']:.3g}: {verdict}"
    if result["pictures_needed"]:
        text = "a difference of this size shows in 80 of 100 cases with {pictures_needed:,} such "
        pairs = "pair" if result["seeds_needed"] == 1 else "pairs"
        yield (text + f"pictures, or with {{seeds_needed:,}} {pairs} of seeds on these").format_map(result)
    for file, label, said_a, said_b in result["changed"][:SHOWN]:
        yield f"{file}: {label}; A says {said_a}, B {said_b}"
