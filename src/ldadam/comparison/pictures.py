"""The pictures of a study: validation loss against steps, seconds and optimizer bytes, or differences of many."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ldadam.report.figures import RUN_COLORS, STYLE

MIB = 2**20
# Before this share of a run, losses are so much larger that differences at its end could not be seen.
SHOWN_FROM = 0.3
# Above this number of optimizers, lines and marks could not be told apart.
MANY = 13
# Above this ratio of the largest state to the smallest one that is drawn, bytes are drawn on a logarithmic axis.
LOGARITHMIC_FROM = 4.0
# Below this share of the largest state, one is named instead of drawn: the others would be on top of each other.
DRAWN_FROM = 1 / 80


def draw_study(record: dict[str, Any], path: Path, *, times: bool = True) -> None:
    """Two or three panels: the loss on the way, against steps and seconds, and the last loss against optimizer bytes.

    Of more than `MANY` optimizers, one panel: what each one's last loss differs by from the first one's.

    Seeds may change the data, and then move the losses of all optimizers alike: what is drawn is the mean over the
    seeds that all of them have, and its bars are the spread of the difference from the first one.

    Args:
        record: as `Results.record` makes it.
        path: of the picture.
        times: whether to draw it against seconds, which say little where the machine had other work.
    """
    rows = [row for row in record["contestants"] if "failed" not in row]
    runs = [_of_best(record, row) for row in rows]
    seeds = _common_seeds(runs)
    with matplotlib.rc_context(STYLE):
        if len(rows) > MANY:
            figure = _figure_of_differences(rows, _differences(runs, seeds))
        else:
            figure = _figure_of_ways(rows, runs, seeds, times=times)
        figure.savefig(path, dpi=110)


# Steps, seconds and losses of the evaluations on the way.
Way = list[list[float]]


# Runs of one optimizer at its best learning rate, by seed.
Runs = dict[int, dict[str, Any]]


def _figure_of_ways(rows: Sequence[dict[str, Any]], runs: Sequence[Runs], seeds: set[int], *, times: bool) -> Figure:
    ways = [_mean_way([of_row[seed] for seed in seeds]) for of_row in runs]
    num_panels = 3 if times else 2
    figure = Figure(figsize=(5.2 * num_panels + 2.6, 4.6), layout="constrained")
    by_step, *by_time, by_bytes = figure.subplots(1, num_panels)
    _draw_ways(by_step, ways, against=0, label="optimizer steps")
    for ax in by_time:
        _draw_ways(ax, ways, against=1, label="training time (seconds)")
    spreads = [statistics.stdev(apart) if len(apart) > 1 else 0.0 for apart in _differences(runs, seeds)]
    _draw_ends(by_bytes, rows, ways, spreads)
    handles = [Line2D([], [], color=_color(index), marker=_marker(index)) for index in range(len(rows))]
    figure.legend(handles, [row["name"] for row in rows], loc="outside right upper")
    return figure


def _figure_of_differences(rows: Sequence[dict[str, Any]], differences: Sequence[Sequence[float]]) -> Figure:
    """A line for each optimizer: a ring for each seed, and a bar at their mean."""
    figure = Figure(figsize=(9.0, 1.2 + 0.28 * len(rows)), layout="constrained")
    ax = figure.subplots()
    for place, apart in enumerate(differences):
        ax.plot(apart, [place] * len(apart), "o", color=_color(0), markerfacecolor="none", markersize=5)
        if apart:
            ax.plot(statistics.fmean(apart), place, "|", color=_color(1), markersize=14, markeredgewidth=2.5)
    ax.axvline(0, color="0.6", linewidth=1, zorder=0)
    ax.set_yticks(range(len(rows)), [row["name"] for row in rows])
    ax.invert_yaxis()
    ax.set_xlabel(f"last validation loss against {rows[0]['name']}: a ring for each seed, a bar for their mean")
    ax.set_title("Difference in loss: left is better")
    return figure


def _of_best(record: dict[str, Any], row: dict[str, Any]) -> Runs:
    best = (row["name"], row["lr"])
    return {trial["seed"]: trial for trial in record["trials"] if (trial["contestant"], trial["lr"]) == best}


def _common_seeds(runs: Sequence[Runs]) -> set[int]:
    """The seeds that every optimizer has a run of."""
    return set.intersection(*map(set, runs)) if runs else set()


def _mean_way(runs: Sequence[dict[str, Any]]) -> Way:
    """The mean over runs of each number of each evaluation."""
    evaluations = zip(*(run["validation"] for run in runs), strict=False)
    return [[statistics.fmean(values) for values in zip(*points, strict=True)] for points in evaluations]


def _differences(runs: Sequence[Runs], seeds: set[int]) -> list[list[float]]:
    """For each optimizer, by how much its last loss is above that of the first one, seed by seed."""
    loss = "validation_loss"
    return [[of_row[seed][loss] - runs[0][seed][loss] for seed in sorted(seeds)] for of_row in runs]


def _color(index: int) -> str:
    """Two more than there are markers, so that it takes over a hundred optimizers to repeat both."""
    colors = (*RUN_COLORS, "#111111", "#9acd32", "#7fb2ff")
    return colors[index % len(colors)]


def _marker(index: int) -> str:
    return "osD^v<>PX*h"[index % 11]


def _draw_ways(ax: Axes, ways: Sequence[Way], *, against: int, label: str) -> None:
    """A line for each optimizer, from where the end can be told apart."""
    shown = []
    for index, way in enumerate(ways):
        x, y = ([point[place] for point in way] for place in (against, 2))
        ax.plot(x, y, color=_color(index), marker=_marker(index), markersize=4, linewidth=1)
        shown += [loss for step, _, loss in way if step >= SHOWN_FROM * way[-1][0]]
    if shown := [loss for loss in shown if math.isfinite(loss)]:
        margin = 0.05 * (max(shown) - min(shown)) + 1e-3
        ax.set_ylim(min(shown) - margin, max(shown) + margin)
    ax.set_xlabel(label)
    ax.set_ylabel("validation loss")
    ax.set_title(f"Validation loss against {label.split(' (')[0]}")


def _draw_ends(ax: Axes, rows: Sequence[dict[str, Any]], ways: Sequence[Way], spreads: Sequence[float]) -> None:
    """The last loss of each against its bytes, and the stairs below which no other lies."""
    sizes = [row["optimizer_bytes"][0] / MIB for row in rows]
    ends = [way[-1][2] if way else math.nan for way in ways]
    drawn = [size >= DRAWN_FROM * max(sizes) for size in sizes]
    for index, (size, end, spread) in enumerate(zip(sizes, ends, spreads, strict=True)):
        if drawn[index]:
            ax.errorbar(size, end, yerr=spread, fmt=_marker(index), color=_color(index), capsize=3)
    points = list(itertools.compress(zip(sizes, ends, strict=True), drawn))
    if best := sorted(point for point in points if _is_undominated(*point, sizes, ends)):
        ax.step(*zip(*best, strict=True), where="post", color="0.6", linewidth=1, linestyle="--", zorder=0)
    if points and max(points)[0] > LOGARITHMIC_FROM * min(points)[0]:
        _draw_logarithmic(ax)
    ax.margins(x=0.1)
    smaller = [f"{row['name']} at {size:.2g}" for row, size, shown in zip(rows, sizes, drawn, strict=True) if not shown]
    ax.set_xlabel("optimizer state (MiB)" + f", not drawn: {', '.join(smaller)}" * bool(smaller))
    ax.set_ylabel(f"last loss; bars: spread of the difference to {rows[0]['name']}" if rows else "last loss")
    ax.set_title("Loss and memory: lower left is better")


def _draw_logarithmic(ax: Axes) -> None:
    """Sizes by their ratios, with plain numbers at the ticks."""
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _is_undominated(size: float, end: float, sizes: Sequence[float], ends: Sequence[float]) -> bool:
    others = zip(sizes, ends, strict=True)
    return math.isfinite(end) and not any(s <= size and e <= end and (s, e) != (size, end) for s, e in others)
