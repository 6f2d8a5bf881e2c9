"""The page of the errors among pictures with labels: explain's page, with the figures of all."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from explain import page, study
from explain.metrics import calibrated, confusion_matrix
from explain.options import GradcamOptions
from ground.mistake import Mistake
from judge.answers import Judge

MOST = 10_000  # errors on a page


def render(
    judge: Judge, wrong: Mapping[str, int], kept: Sequence[np.ndarray], told: Sequence[str]
) -> bytes:
    """The page in UTF-8.

    Args:
        wrong: the files that were taken for another class, with their own.
        kept: columns (N,) of all that have a label, as `Report.columns`.
        told: lines about them.

    Raises Mistake where there are no errors, or more than MOST.
    """
    if not 1 <= len(wrong) <= MOST:
        what = f"{len(wrong):,} errors among {len(kept[0]):,} pictures with a label"
        raise Mistake(f"a page shows 1 to {MOST:,} errors, and there are {what}: name a .csv file as --out")
    explainer, config = judge.explainer, judge.checkpoint.config
    found = study.of_pictures(explainer, list(wrong), config.side, config.fit, MOST)
    labels = np.array([wrong[name] for name in found.cases.files])
    cases = replace(found.cases, name="labelled", total=len(kept[0]), labels=labels)
    errors = replace(
        found, cases=cases, matrix=confusion_matrix(kept[0], kept[1], len(cases.classes)),
        calibration=calibrated(kept[2], kept[0] == kept[1]),
    )  # fmt: skip
    maps = explainer.explain(cases, "layer4", "gradcam", "pred", several=True)
    return page.render(errors, maps, None, GradcamOptions(out="report.html"), str(explainer), told)
