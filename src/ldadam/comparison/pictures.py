"""The pictures of a study: validation loss against steps, seconds and optimizer bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ldadam.report.figures import STYLE, color_of

MIB = 2**20
# Before this share of a run, losses are so much larger that differences at its end could not be seen.
SHOWN_FROM = 0.3
# Above this ratio of the largest state to the smallest one, bytes are drawn on a logarithmic axis.
LOGARITHMIC_FROM = 4.0


def draw_study(record: dict[str, Any], path: Path, *, times: bool = True) -> None:
    """Two or three panels: the loss on the way, against steps and seconds, and the last loss against optimizer bytes.

    Args:
        record: as `Results.record` makes it.
        path: of the picture.
        times: whether to draw it against seconds, which say little where the machine had other work.
    """
    rows = [(index, row) for index, row in enumerate(record["contestants"]) if "failed" not in row]
    runs = {row["name"]: [run for run in record["trials"] if _is_best(run, row)] for _, row in rows}
    with matplotlib.rc_context(STYLE):
        num_panels = 3 if times else 2
        figure = Figure(figsize=(5.2 * num_panels, 4.6), layout="constrained")
        by_step, *by_time, by_bytes = figure.subplots(1, num_panels)
        _draw_ways(by_step, rows, runs, against=0, label="optimizer steps")
        for ax in by_time:
            _draw_ways(ax, rows, runs, against=1, label="training time (seconds)")
        for index, row in rows:
            _draw_end(by_bytes, row, index)
        sizes = [row["optimizer_bytes"][0] for _, row in rows]
        if sizes and max(sizes) > LOGARITHMIC_FROM * min(sizes):
            by_bytes.set_xscale("log")
        by_bytes.margins(x=0.25)
        by_bytes.set_xlabel("optimizer state (MiB)")
        by_bytes.set_ylabel("last validation loss, mean ± standard deviation")
        by_bytes.set_title("Loss and memory: lower left is better")
        figure.savefig(path, dpi=110)


def _is_best(trial: dict[str, Any], row: dict[str, Any]) -> bool:
    return trial["contestant"] == row["name"] and trial["lr"] == row["lr"]


def _draw_ways(
    ax: Axes,
    rows: Sequence[tuple[int, dict[str, Any]]],
    runs: dict[str, list[dict[str, Any]]],
    *,
    against: int,
    label: str,
) -> None:
    """A thin line for each seed of each optimizer, from where the end can be told apart."""
    shown = []
    for index, row in rows:
        for number, run in enumerate(runs[row["name"]]):
            x, y = ([point[place] for point in run["validation"]] for place in (against, 2))
            name = None if number else row["name"]
            ax.plot(x, y, ".-", color=color_of(index), linewidth=1, alpha=0.7, label=name)
            shown += [loss for step, _, loss in run["validation"] if step >= SHOWN_FROM * run["steps"]]
    if shown := [loss for loss in shown if math.isfinite(loss)]:
        margin = 0.05 * (max(shown) - min(shown)) + 1e-3
        ax.set_ylim(min(shown) - margin, max(shown) + margin)
        ax.legend()
    ax.set_xlabel(label)
    ax.set_ylabel("validation loss")
    ax.set_title(f"Validation loss against {label.split(' (')[0]}")


def _draw_end(ax: Axes, row: dict[str, Any], index: int) -> None:
    """The mean over seeds, with a bar of a standard deviation to each side."""
    mean, deviation = row["validation_loss"]
    x = row["optimizer_bytes"][0] / MIB
    ax.errorbar(x, mean, yerr=deviation or 0.0, fmt="o", color=color_of(index), capsize=3)
    ax.annotate(row["name"], (x, mean), xytext=(6, 6), textcoords="offset points", fontsize=9)
