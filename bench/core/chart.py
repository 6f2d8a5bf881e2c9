"""Pictures of results: bars with quartiles for a bench, curves for a sweep."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from bench.core.record import Result, Row, number

# Okabe and Ito's colour-blind safe set.
BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"
new_figure = partial(Figure, dpi=110, layout="constrained")


def draw_bench(result: Result) -> Figure:
    """All rates of a result as bars: the ladder, and all else that counts images or maps a second."""
    rates = [row for row in result.rows if row.value and row.unit in ("images/s", "maps/s")]
    # The synthetic batch without a model costs nothing, and would take the scale from all others.
    rates = [row for row in rates if not (row.part == "data" and row.name.startswith("synthetic"))]
    rungs, others = ([row for row in rates if (row.part == "ladder") == ladder] for ladder in (True, False))
    groups = [("From the first version's style to ours", rungs, "linear"), ("Rates (logarithmic)", others, "log")]
    groups = [group for group in groups if group[1]]
    heights = [max(2, len(rows)) for _, rows, _ in groups]
    figure = new_figure(figsize=(11, 1.2 + 0.36 * sum(heights) + 0.6 * len(groups)))
    figure.suptitle(f"{result.card.get('gpu') or result.card.get('cpu', '')}, {result.card.get('date', '')[:10]}")
    if groups:
        panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)
        for (axes,), (title, rows, scale) in zip(panels, groups, strict=True):
            axes.set_xscale(scale)
            colours = [{"roof": GREEN, "data": VERMILION}.get(row.part, BLUE) for row in rows]
            _bars(axes, rows, colours, rows[0].unit, title)
    return figure


def draw_ablation(result: Result) -> Figure:
    """The gain of each ingredient as a bar with its standard error."""
    rows = [row for row in result.rows if row.unit == "points"]
    figure = new_figure(figsize=(8, 1.2 + 0.36 * max(2, len(rows))))
    axes = figure.subplots()
    colours = [BLUE if (row.value or 0.0) > 0 else VERMILION for row in rows]
    _bars(axes, rows, colours, "gain in validation accuracy, percentage points; line: one standard error either side")
    axes.axvline(0, color="black", linewidth=0.8)
    return figure


def draw_accuracy_curve(result: Result) -> Figure:
    """Accuracy over the minutes of training, each point with what was trained."""
    figure = new_figure(figsize=(7, 4))
    axes = figure.subplots()
    minutes, values, low, _ = _series(result.rows)
    axes.errorbar(minutes, values, values - low, fmt="o-", color=BLUE)
    for x, y, row in zip(minutes, values, result.rows, strict=True):
        what = ",\n".join(row.note.split(", ")[:2])
        axes.annotate(what, (x, y), (6, -6), textcoords="offset points", va="top", fontsize=8)
    axes.set_xscale("log")
    axes.set_xticks(minutes, [f"{x:g}" for x in minutes])
    axes.minorticks_off()
    axes.margins(x=0.15, y=0.2)
    axes.set_ylabel("accuracy on held-out images, %")
    _finish(axes, "minutes of training", result.card.get("gpu") or "{cores} cores, {cpu}".format_map(result.card))
    return figure


def draw_curves(result: Result, over: str, other_unit: str, other_title: str) -> Figure:
    """Images/s, and beside it another unit, over the numbers at the ends of the rows' names."""
    figure = new_figure(figsize=(11, 4))
    panels = (("images/s", BLUE, "images/s"), (other_unit, VERMILION, other_title))
    for axes, (unit, colour, title) in zip(figure.subplots(1, 2), panels, strict=True):
        rows = [row for row in result.rows if row.unit == unit and row.value is not None]
        parts = list(dict.fromkeys(row.part for row in rows))
        for part in parts:
            sizes, values, low, high = _series([row for row in rows if row.part == part])
            (line,) = axes.plot(sizes, values, marker="o", color=colour if len(parts) == 1 else None, label=part)
            axes.fill_between(sizes, low, high, color=line.get_color(), alpha=0.2)
        if rows:
            axes.set_xscale("log", base=2)
            axes.set_xticks(np.unique(_series(rows)[0]))
            axes.xaxis.set_major_formatter(ScalarFormatter())
        if len(parts) > 1:
            axes.legend()
        axes.set_ylim(0, 1.1 * max(_series(rows)[1], default=1.0))
        _finish(axes, over, title)
    return figure


def _series(rows: Sequence[Row]) -> np.ndarray:
    """(4, rows): the numbers at the ends of the names, the values, and their bounds or the values."""
    series = np.array([(row.name.split()[-1], row.value, row.low, row.high) for row in rows], float).reshape(-1, 4).T
    return np.where(np.isnan(series), series[1], series)


def _bars(axes: Axes, rows: Sequence[Row], colours: Sequence[str], xlabel: str, title: str = "") -> None:
    """Horizontal bars from the top down, with a line over the spread and the value at the end."""
    axes.barh(range(len(rows)), [row.value or 0.0 for row in rows], color=colours, height=0.7)
    for place, row in enumerate(rows):
        if row.low is not None and row.high is not None:
            axes.plot([row.low, row.high], [place, place], color="black", linewidth=2)
        end = max(row.value or 0.0, row.high or 0.0, 0.0)
        text = number(row.value, row.unit)
        axes.annotate(text, (end, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [row.name for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    _finish(axes, xlabel, title, "x")


def _finish(axes: Axes, xlabel: str, title: str, grid: Literal["both", "x"] = "both") -> None:
    axes.set_xlabel(xlabel)
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(axis=grid, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
