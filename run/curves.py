"""Draws a run: loss, accuracy and learning rate over the epochs, as one PNG.

    python train.py             # writes curves.png in the run folder

pyplot is left out: its figures are global and would have to be closed. A picture takes 0.25 s (one core of a Xeon).
"""

import io
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ground.files import write_whole
from run.row import EpochRow

# Blue, vermilion and bluish green of Okabe and Ito's colour-blind safe set; line style and marker differ too.
TRAIN = {"color": "#0072B2", "linestyle": "--", "marker": "o"}
TEST = {"color": "#D55E00", "linestyle": "-", "marker": "s"}
LR = {"color": "#009E73"}
# Runs of more epochs have lines alone: markers would run together.
MARKED = 40


def draw(rows: Sequence[EpochRow], lr_at: Callable[[int], float], path: Path) -> None:
    """Write curves.png for the epoch rows of a run, one at least; an older picture stays until the new one is whole.

    Args:
        lr_at: learning rate of a step of the run, drawn up to the last row's step.

    Raises:
        OSError: the file cannot be written.
    """
    figure = Figure(figsize=(13, 4), dpi=110, layout="constrained")
    loss, accuracy, rate = figure.subplots(1, 3)
    for axes, train_key, test_key, scale, form in (
        (loss, "loss", "reported_loss", 1, ".4f"),
        (accuracy, "train_accuracy", "reported_accuracy", 100, ".2f"),
    ):
        _line(axes, rows, train_key, scale, f"training, augmented: {{:{form}}}", **TRAIN)
        _line(axes, rows, test_key, scale, f"{rows[-1]['split']}: {{:{form}}}", **TEST)
        axes.legend(frameon=False)
    loss.set_title("Loss")
    accuracy.set_title("Accuracy, %")
    rate.set_title("Learning rate")
    epochs, steps = rows[-1]["epoch"], rows[-1]["step"]
    drawn = range(0, steps, 1 + steps // 1000)
    rate.plot([step * epochs / steps for step in drawn], [lr_at(step) for step in drawn], linewidth=2, **LR)
    rate.set_ylim(bottom=0)
    for axes in (loss, accuracy, rate):
        axes.set_xlim(0, epochs * 1.03)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        _mark_resolutions(axes, rows)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_whole(path, picture.getvalue())


def _line(axes: Axes, rows: Sequence[Mapping[str, Any]], key: str, scale: float, label: str, **style: Any) -> None:
    """Plot one column of the rows; the label gets its last value."""
    values = [row[key] * scale for row in rows]
    style["markersize"] = 5 if len(rows) <= MARKED else 0
    axes.plot([row["epoch"] for row in rows], values, linewidth=2, label=label.format(values[-1]), **style)


def _mark_resolutions(axes: Axes, rows: Sequence[EpochRow]) -> None:
    """A dotted line and the new size where the images' resolution changes, which bends the curves."""
    for before, row in pairwise(rows):
        if before["resolution"] != row["resolution"]:
            axes.axvline(before["epoch"], color="0.6", linewidth=1, linestyle=":", zorder=0)
            place = axes.get_xaxis_transform()
            axes.text(before["epoch"], 0.02, f" {row['resolution']} px", color="0.4", fontsize=8, transform=place)
