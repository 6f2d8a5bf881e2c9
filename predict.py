"""What a checkpoint says of pictures, as a table; and how good that is, where they have labels.

    python predict.py holiday *.jpg --out predictions.csv  # folders, files, tables, any number
    find . -name '*.png' | python predict.py - --all       # names on stdin; all classes
    python predict.py --part test                          # the checkpoint's own test images
    python predict.py holiday --promise 0.99               # known: where it is right on 99%
    python predict.py holiday --out report.html            # the errors on a page

Labels are the names of folders, or a table's; classes are matched by name. Then accuracy, precision,
recall and F1 of each class with their intervals, calibration and confusions are told too. The last
line on stdout is JSON.
"""

import preflight

preflight.require_environment("predict.py")

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from explain.options import ModelOptions
from ground.entry import execute
from ground.mistake import Mistake
from ground.terminal import print_result

NAMED = 100  # files that could not be read


@dataclass(frozen=True, kw_only=True)
class PredictOptions(ModelOptions):
    pictures: tyro.conf.Positional[tuple[str, ...]] = ()
    """Files, folders, tables of files (.csv, .tsv, .txt), or - for names on stdin."""
    part: Literal["", "train", "validation", "test"] = ""
    """Instead of PICTURES: this part of the data set that the checkpoint was trained on."""
    out: str = "predictions.csv"
    """The table: .csv, or .jsonl for a line of JSON a picture; or .html, a page of the errors."""
    top: int = 5
    """Classes of each picture that the table names, the likeliest first, 1 to 1,000."""
    all: bool = False
    """The probabilities of all classes instead."""
    promise: float = 0.0
    """The share of answers that must be right, above 0.5 and below 1, for `known` (0: 0.98)."""
    with_training: bool = False
    """Count pictures in the figures that the model was trained on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_within("top", 1, 1000)
        if Path(self.out).suffix.lower() not in (".csv", ".jsonl", ".html"):
            raise Mistake(f"--out is {self.out}: its name must end in .csv, .jsonl or .html")
        if self.promise and not 0.5 < self.promise < 1:
            raise Mistake(f"--promise is {self.promise}: it must be above 0.5 and below 1")


def main(arguments: Sequence[str]) -> None:
    description = (__doc__ or "").split("\n\n")[0]
    options = tyro.cli(PredictOptions, args=list(arguments), description=description, prog="predict.py")
    preflight.require_dali()
    preflight.check_driver(options.device)
    result = predict(options)
    print_result(lines(result), result)


def predict(options: PredictOptions) -> dict[str, Any]:
    """Options -> checkpoint -> answers -> table and figures; returns what there is to report."""
    from explain.explainer import Explainer  # --help loads nothing heavy
    from ground.files import check_output, destination, write_whole
    from judge import errors, predictions, report, sources
    from judge.answers import Judge

    kind, skipped = Path(options.out).suffix.lower(), list[str]()
    if bool(options.pictures) == bool(options.part):
        raise Mistake("name pictures: files, folders, a table, - for names on stdin; or --part test")
    if options.part and kind == ".html":
        raise Mistake("--part has no page here: gradcam.py --out errors.html makes it")
    checkpoint = options.load()
    classes, config = checkpoint.model.classes, checkpoint.config
    inputs = [options.ckpt, options.data, *options.pictures, *[config.data] * config.own_pictures]
    check_output(options.out, inputs=inputs, mark=predictions.MARKS[kind])
    explainer = Explainer.of(checkpoint, options.device, options.precision, options.threads)
    judge = Judge(explainer, checkpoint, options.promise)
    if options.part:
        batches = judge.of_split(*sources.part(options, checkpoint, options.part))
    else:
        batches = judge.of_pictures(*sources.find(options.pictures, judge.labels), skipped)
    figures = report.Report(classes, options.with_training)
    answers = figures.gather(batches, skipped)
    if kind == ".html":
        deque(answers, 0)
    else:
        top = 0 if options.all else options.top
        write_whole(destination(options.out), predictions.blocks(answers, kind, classes, top))
    result = {"out": options.out, "checkpoint": options.ckpt, "model": str(explainer)}
    result |= judge.promise.facts() if judge.promise else {}
    result |= figures.figures(judge.promise is not None)
    if kind == ".html":
        content = errors.render(judge, figures.wrong, figures.columns(), list(report.lines(result)))
        write_whole(destination(options.out), content)
    skipped.sort(key=lambda line: ": no picture, " in line)  # pictures that cannot be read come first
    return result | {"skipped": skipped[:NAMED], "skipped_total": len(skipped)}


def lines(result: dict[str, Any]) -> Iterator[str]:
    """What a person is told at the end."""
    from judge import report

    yield from report.lines(result)
    yield from (f"skipped {line}" for line in result["skipped"])
    more = result["skipped_total"] - len(result["skipped"])
    if more:
        yield f"skipped {more:,} more"
    yield "wrote {out}: {pictures:,} pictures, {skipped_total:,} skipped".format_map(result)


if __name__ == "__main__":
    execute(main, "predict.py")
