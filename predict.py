"""What a checkpoint says of pictures, as a table; and how good that is, where they have labels.

    python predict.py holiday *.jpg --out predictions.csv    # folders, files, tables of files, any number
    find / -name '*.png' | python predict.py - --all         # names on stdin; the probabilities of all classes
    python predict.py --part test                            # the checkpoint's own test pictures
    python predict.py holiday --promise 0.99                 # it answers where it is right on 99%

Labels are the names of folders, or a table's; classes are matched by name. Then accuracy, precision, recall and F1
of each class with their intervals, calibration and confusions are told too. The last line on stdout is JSON.
"""

import preflight

preflight.require_environment("predict.py")

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from explain.options import ModelOptions
from ground.entry import execute
from ground.mistake import Mistake
from ground.terminal import print_result

if TYPE_CHECKING:  # --help loads nothing heavy
    from engine.checkpoint import Checkpoint
    from pipeline.split import Split

PROMISE = 0.98
NAMED = 100  # files that could not be read


@dataclass(frozen=True, kw_only=True)
class PredictOptions(ModelOptions):
    pictures: tyro.conf.Positional[tuple[str, ...]] = ()
    """Files, folders, tables of files (.csv, .tsv, .txt), or - for names on stdin."""
    part: Literal["", "train", "validation", "test"] = ""
    """Instead of PICTURES: this part of the data set that the checkpoint was trained on."""
    out: str = "predictions.csv"
    """The table: .csv, or .jsonl for a line of JSON a picture."""
    top: int = 5
    """Classes of each picture that the table names, the likeliest first, 1 to 1,000."""
    all: bool = False
    """The probabilities of all classes instead."""
    promise: float = 0.0
    """How large a share of its answers must be right, above 0.5 and below 1; others it does not know (0: 0.98)."""
    with_training: bool = False
    """Count pictures in the figures that the model was trained on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_within("top", 1, 1000)
        if Path(self.out).suffix.lower() not in (".csv", ".jsonl"):
            raise Mistake(f"--out is {self.out}: its name must end in .csv or .jsonl")
        if self.promise and not 0.5 < self.promise < 1:
            raise Mistake(f"--promise is {self.promise}: it must be above 0.5 and below 1")
        if bool(self.pictures) == bool(self.part):
            raise Mistake("name pictures: files, folders, a table or - for names on stdin; or else --part test")


def main(arguments: Sequence[str]) -> None:
    description = (__doc__ or "").split("\n\n")[0]
    options = tyro.cli(PredictOptions, args=list(arguments), description=description, prog="predict.py")
    preflight.require_dali()
    preflight.check_driver(options.device)
    result = predict(options)
    print_result(lines(result), result)


def predict(options: PredictOptions) -> dict[str, Any]:
    """Options -> checkpoint -> answers -> table and figures; returns what there is to report."""
    from explain.cases import Bools, Floats  # --help loads nothing heavy
    from explain.explainer import Explainer
    from ground.files import check_output, destination, write_whole
    from judge import answers, predictions, report, sources

    checkpoint = options.load()
    kind, config, classes = Path(options.out).suffix.lower(), checkpoint.config, checkpoint.model.classes
    read = [path for path in options.pictures if path != sources.STDIN]
    data = [config.data] if config.own_pictures else []
    check_output(options.out, inputs=[options.ckpt, options.data, *read, *data], mark=predictions.MARKS[kind])
    known = checkpoint.known
    if options.promise and not known:
        what = f"--promise is {options.promise}, but {options.ckpt} has no pictures to keep a promise by"
        raise Mistake(f"{what}: train with --validate, or on a folder, with 100 held out or more")
    promise = options.promise or PROMISE
    answered = known.keep(promise) if known else None
    skipped: list[str] = []
    faults, foreign = 0, tuple[str, ...]()

    def skip(line: str) -> None:
        nonlocal faults
        faults += 1
        if faults <= NAMED:
            skipped.append(line)

    if options.part:
        split, learnt = part_of(options, checkpoint)
        explainer = Explainer.of(checkpoint, options.device, options.precision, options.threads)
        batches, labelled = answers.of_split(explainer, known, split, learnt), True
    else:
        pictures = sources.find(options.pictures, classes)
        explainer = Explainer.of(checkpoint, options.device, options.precision, options.threads)
        batches, labelled = answers.of_pictures(explainer, checkpoint, pictures, skip), pictures.labelled
        foreign = pictures.foreign
    figures = report.Report(classes, options.with_training)

    def parts() -> Iterator[tuple[answers.Answers, Floats, Bools | None]]:
        for batch in batches:
            probabilities, sure = answers.probabilities(batch.logits), None
            if known:
                sure = ~batch.unlike & answers.enough(probabilities, answered)
            figures.add(batch, probabilities, sure)
            yield batch, probabilities, sure
        if not figures.pictures:
            raise Mistake(f"none of the {faults:,} files is a picture that can be read: " + "; ".join(skipped[:3]))

    table = predictions.Table(kind, classes, 0 if options.all else options.top, labelled)
    write_whole(destination(options.out), predictions.blocks(table, parts()))
    result = {"out": options.out, "checkpoint": options.ckpt, "skipped": skipped, "skipped_total": faults}
    result |= {"foreign_labels": foreign, "precision": explainer.machine.precision}
    if known:
        result |= {"promise": promise, "least_probability": answered.probability if answered else None}
        result["fitted_on"] = known.total
        if answered:
            result["fit_answered"] = answered.pictures / answered.total
            result["fit_accuracy"] = answered.right / answered.pictures
            result["fit_interval"] = answered.interval
    return result | figures.figures(known is not None)


def part_of(options: PredictOptions, checkpoint: "Checkpoint") -> "tuple[Split, Any]":
    """A part of the checkpoint's data, and (N,) bool: whether it was trained on each image.

    Of pictures their contents tell; of other data, that the run trained on all of the part.
    """
    import numpy as np

    config, data = checkpoint.config, options.open_data(checkpoint)
    held_out = bool(config.validate or config.fold)
    if options.part == "validation" and not (held_out or data.has_validation()):
        raise Mistake(f"--part is validation: {options.ckpt} was trained without; --validate holds some out")
    if options.part == "train":
        split = data.splits(config.validate, config.fold)[0]
    elif options.part == "validation":
        split = data.validation() or data.reported(config.validate, config.fold)
    else:
        split = data.load("test")
    if len(split.contents):
        return split, np.isin(split.contents, checkpoint.trained_on.numpy())
    return split, np.full(len(split), options.part == "train")


def lines(result: dict[str, Any]) -> Iterator[str]:
    """What a person is told at the end."""
    from judge import report

    if result["foreign_labels"]:
        names = result["foreign_labels"]
        yield f"{len(names)} labels are no class of the model, and not scored: {', '.join(names[:6])}"
    yield from report.lines(result)
    yield from report.promise_lines(result)
    yield from (f"skipped {line}" for line in result["skipped"])
    if result["skipped_total"] > len(result["skipped"]):
        yield f"skipped {result['skipped_total'] - len(result['skipped']):,} more"
    yield "wrote {out}: {pictures:,} pictures".format_map(result)


if __name__ == "__main__":
    execute(main, "predict.py")
