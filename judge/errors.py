"""Pages of errors, by explain's page: those among pictures with labels, with the figures of all; and
those that one of two models alone makes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from engine.checkpoint import Checkpoint
from engine.model import resize
from explain import page, study
from explain.cases import Cases, Ints
from explain.explainer import Explainer
from explain.gallery import smaller
from explain.metrics import calibrated, confusion_matrix
from ground.mistake import Mistake
from judge.answers import Judge
from pipeline.split import Split

MOST = 10_000  # errors on a page
Side = tuple[Explainer, Checkpoint, Split, Ints]  # a model, its data, and rows of these


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
    _require(len(wrong), f"errors among {len(kept[0]):,} pictures with a label: name a .csv file as --out")
    explainer, config = judge.explainer, judge.checkpoint.config
    found = study.of_pictures(explainer, list(wrong), config.side, config.fit, MOST)
    labels = np.array([wrong[name] for name in found.cases.files])
    cases = replace(found.cases, name="labelled", total=len(kept[0]), labels=labels)
    errors = replace(
        found, cases=cases, matrix=confusion_matrix(kept[0], kept[1], len(cases.classes)),
        calibration=calibrated(kept[2], kept[0] == kept[1]),
    )  # fmt: skip
    maps = explainer.explain(cases, "layer4", "gradcam", "pred", several=True)
    return page.render(errors, maps, None, None, str(explainer), told)


def render_alone(sides: Sequence[Side], total: int, told: Sequence[str]) -> bytes:
    """The page of what A alone and B alone get wrong, in UTF-8; the latter are marked.

    Args:
        sides: A and B, each with the rows that it alone gets wrong.
        total: pictures that both were given.
        told: lines about them.

    Raises Mistake where their classes differ, where there are no such errors, or more than MOST.
    """
    models = [explainer.model for explainer, *_ in sides]
    if models[0].classes != models[1].classes:
        raise Mistake("a page needs two models that name their classes in the same way and order: leave --out out")
    _require(sum(len(rows) for *_, rows in sides), "pictures that one alone gets right: leave --out out")
    parts = [(i, study.of_rows(*side)) for i, side in enumerate(sides) if len(side[-1])]
    cases = _together([replace(part, disputed=np.full(len(part), bool(i))) for i, part in parts], total)
    maps = sides[0][0].explain(cases, "layer4", "gradcam", "pred", several=True)
    source = "; ".join(f"{name}: {explainer}" for name, (explainer, *_) in zip("AB", sides, strict=True))
    return page.render(study.Study(cases, 0.0), maps, None, None, source, told)


def _together(parts: Sequence[Cases], total: int) -> Cases:
    """Errors of one model after those of the other, at the smaller one's sizes."""
    side = min(part.pictures.shape[1] for part in parts)
    cells, seen = (min(getattr(part, name).shape[-1] for part in parts) for name in ("class_maps", "inputs"))
    return replace(
        parts[0], total=total, badge="right in A alone",
        inputs=torch.cat([resize(part.inputs, seen) for part in parts]),
        class_maps=torch.cat([F.adaptive_avg_pool2d(part.class_maps, cells) for part in parts]),
        logits=torch.cat([part.logits for part in parts]),
        pictures=np.concatenate([smaller(part.pictures, side) for part in parts]),
        files=tuple(file for part in parts for file in part.files),
        index=np.concatenate([part.index for part in parts]),
        labels=np.concatenate([part.rival for part in parts]),
        disputed=np.concatenate([part.disputed for part in parts]),
    )  # fmt: skip


def _require(count: int, of: str) -> None:
    if not 1 <= count <= MOST:
        raise Mistake(f"a page shows 1 to {MOST:,} errors, and there are {count:,} {of}")
