"""Pictures of results: bars with quartiles for a bench, curves for a sweep."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from bench.core.record import Result, Row, number

# Okabe and Ito's colour-blind safe set.
BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"


def draw_bench(result: Result, path: Path) -> None:
    """All rates of a result as bars: the ladder, and everything else that counts images or maps a second."""
    rates = [row for row in result.rows if row.value and row.unit in ("images/s", "maps/s")]
    # The synthetic batch without a model costs nothing, and would take the scale from all others.
    rates = [row for row in rates if not (row.part == "data" and row.name.startswith("synthetic"))]
    groups = [
        ("From the first version's style to ours", [row for row in rates if row.part == "ladder"], False),
        ("Rates (logarithmic)", [row for row in rates if row.part != "ladder"], True),
    ]
    groups = [group for group in groups if group[1]]
    heights = [max(2, len(rows)) for _, rows, _ in groups]
    figure = Figure(figsize=(11, 1.2 + 0.36 * sum(heights) + 0.6 * len(groups)), dpi=110, layout="constrained")
    figure.suptitle(f"{result.card.get('gpu') or result.card.get('cpu', '')}, {result.card.get('date', '')[:10]}")
    if groups:
        panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, (title, rows, log) in zip(panels, groups, strict=True):
            colours = [GREEN if row.part == "roof" else VERMILION if row.part == "data" else BLUE for row in rows]
            if log:
                axes.set_xscale("log")
            _bars(axes, rows, colours)
            axes.set_title(title, loc="left", fontsize=10)
            axes.set_xlabel(rows[0].unit)
    figure.savefig(path, format="png")


def draw_sweep(result: Result, path: Path) -> None:
    """Images/s and memory over batch size."""
    _curves(result, path, "batch size", "GiB", "peak memory, GiB")


def draw_scaling(result: Result, path: Path) -> None:
    """Images/s and efficiency over the number of processes."""
    _curves(result, path, "processes", "%", "efficiency, %")


def _curves(result: Result, path: Path, over: str, other_unit: str, other_title: str) -> None:
    figure = Figure(figsize=(11, 4), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, unit, colour, title in (
        (left, "images/s", BLUE, "images/s"),
        (right, other_unit, VERMILION, other_title),
    ):
        rows = [row for row in result.rows if row.unit == unit and row.value is not None]
        parts = list(dict.fromkeys(row.part for row in rows))
        for part in parts:
            curve = [row for row in rows if row.part == part]
            sizes = [int(row.name.split()[-1]) for row in curve]
            values = [row.value or 0.0 for row in curve]
            (line,) = axes.plot(sizes, values, marker="o", color=colour if len(parts) == 1 else None, label=part)
            if curve[0].low is not None:
                low, high = [r.low or 0.0 for r in curve], [r.high or 0.0 for r in curve]
                axes.fill_between(sizes, low, high, color=line.get_color(), alpha=0.2)
        if rows:
            axes.set_xscale("log", base=2)
            axes.set_xticks(sorted({int(row.name.split()[-1]) for row in rows}))
            axes.xaxis.set_major_formatter(ScalarFormatter())
        if len(parts) > 1:
            axes.legend()
        axes.set_ylim(0, 1.1 * max((row.value or 0.0 for row in rows), default=1.0))
        axes.set_xlabel(over)
        axes.set_title(title)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png")


def draw_accuracy_curve(result: Result, path: Path) -> None:
    """Accuracy over the minutes of training, each point with what was trained."""
    figure = Figure(figsize=(7, 4), dpi=110, layout="constrained")
    axes = figure.subplots()
    minutes = [float(row.name.split()[-1]) for row in result.rows]
    values = [row.value or 0.0 for row in result.rows]
    axes.errorbar(minutes, values, [v - (r.low or v) for v, r in zip(values, result.rows, strict=True)], color=BLUE)
    axes.plot(minutes, values, "o", color=BLUE)
    for x, y, row in zip(minutes, values, result.rows, strict=True):
        what = ",\n".join(row.note.split(", ")[:2])
        axes.annotate(what, (x, y), (6, -6), textcoords="offset points", va="top", fontsize=8)
    axes.set_xscale("log")
    axes.set_xticks(minutes, [f"{x:g}" for x in minutes])
    axes.minorticks_off()
    axes.margins(x=0.15, y=0.2)
    axes.set_xlabel("minutes of training")
    axes.set_ylabel("accuracy on held-out images, %")
    axes.set_title(result.card.get("gpu") or "{cores} cores, {cpu}".format_map(result.card), loc="left", fontsize=10)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png")


def draw_ablation(result: Result, path: Path) -> None:
    """The gain of each ingredient as a bar with its standard error."""
    rows = [row for row in result.rows if row.unit == "points"]
    figure = Figure(figsize=(8, 1.2 + 0.36 * max(2, len(rows))), dpi=110, layout="constrained")
    axes = figure.subplots()
    _bars(axes, rows, [BLUE if (row.value or 0.0) > 0 else VERMILION for row in rows])
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel("gain in validation accuracy, percentage points; line: one standard error either side")
    figure.savefig(path, format="png")


def _bars(axes: Axes, rows: Sequence[Row], colours: Sequence[str]) -> None:
    """Horizontal bars from the top down, with a line over the spread and the value at the end."""
    axes.barh(range(len(rows)), [row.value or 0.0 for row in rows], color=colours, height=0.7)
    for place, row in enumerate(rows):
        if row.low is not None and row.high is not None:
            axes.plot([row.low, row.high], [place, place], color="black", linewidth=2)
        end = max(row.value or 0.0, row.high or 0.0, 0.0)
        text = number(row.value, row.unit)
        axes.annotate(text, (end, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
    names = [f"{row.part}: {row.name}" if row.part.startswith("batch") else row.name for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
