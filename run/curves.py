"""Draws a run: loss, accuracy and learning rate over the epochs, as one PNG, curves.png in the run folder.

pyplot is left out: its figures are global and would have to be closed. A picture takes 0.25 s (one core of a Xeon).
"""

import io
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ground.files import write_whole

# Blue, vermilion and bluish green of Okabe and Ito's colour-blind safe set; line style and marker differ too.
TRAIN: dict[str, Any] = {"color": "#0072B2", "linestyle": "--", "marker": "o"}
TEST: dict[str, Any] = {"color": "#D55E00", "linestyle": "-", "marker": "s"}
LR = "#009E73"
MARKED = 40  # epochs at most: markers of more would run together


def draw(rows: Sequence[Mapping[str, Any]], lr_at: Callable[[int], float], path: Path) -> None:
    """Write curves.png for the epoch rows of a run, one at least; an older picture stays until the new one is whole.

    Args:
        lr_at: learning rate of a step of the run, drawn up to the last row's step.

    Raises:
        OSError: the file cannot be written.
    """
    figure = Figure(figsize=(13, 4), dpi=110, layout="constrained")
    loss, accuracy, rate = figure.subplots(1, 3)
    epochs, markersize = [row["epoch"] for row in rows], 5 if len(rows) <= MARKED else 0
    for axes, columns, scale, form in (
        (loss, ("loss", "reported_loss"), 1, ".4f"),
        (accuracy, ("train_accuracy", "reported_accuracy"), 100, ".2f"),
    ):
        names = "training, augmented", rows[-1]["split"]
        for column, name, style in zip(columns, names, (TRAIN, TEST), strict=True):
            values = [row[column] * scale for row in rows]
            label = f"{name}: {values[-1]:{form}}"
            axes.plot(epochs, values, linewidth=2, label=label, markersize=markersize, **style)
        axes.legend(frameon=False)
    steps = rows[-1]["step"]
    drawn = range(0, steps, 1 + steps // 1000)
    rate.plot([step * epochs[-1] / steps for step in drawn], [*map(lr_at, drawn)], linewidth=2, color=LR)
    rate.set_ylim(bottom=0)
    for axes, title in ((loss, "Loss"), (accuracy, "Accuracy, %"), (rate, "Learning rate")):
        axes.set(title=title, xlim=(0, epochs[-1] * 1.03), xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        for before, row in pairwise(rows):
            if before["resolution"] != row["resolution"]:  # which bends the curves
                axes.axvline(before["epoch"], color="0.6", linewidth=1, linestyle=":", zorder=0)
                place = {"transform": axes.get_xaxis_transform(), "color": "0.4", "fontsize": 8}
                axes.text(before["epoch"], 0.02, f" {row['resolution']} px", **place)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_whole(path, picture.getvalue())
