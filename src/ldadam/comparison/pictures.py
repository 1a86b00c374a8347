"""The pictures of a study: validation loss against steps, seconds and optimizer bytes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ldadam.report.figures import STYLE, color_of

MIB = 2**20


def draw_study(record: dict[str, Any], path: Path) -> None:
    """Three panels: the loss on the way against steps and seconds, and the last loss against optimizer bytes."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(15, 4.6), layout="constrained")
        by_step, by_time, by_bytes = figure.subplots(1, 3)
        for index, row in enumerate(record["contestants"]):
            if "failed" not in row:
                runs = [trial for trial in record["trials"] if _is_best(trial, row)]
                _draw_way(by_step, runs, row["name"], index, against=0)
                _draw_way(by_time, runs, row["name"], index, against=1)
                _draw_end(by_bytes, row, index)
        _finish(by_step, record, "optimizer steps")
        _finish(by_time, record, "training time (seconds)")
        by_bytes.set_xlabel("optimizer state (MiB)")
        by_bytes.set_xscale("log")
        by_bytes.set_ylabel("last validation loss, mean and range")
        by_bytes.set_title("Loss and memory: lower left is better")
        if by_step.lines:
            by_step.legend()
        figure.savefig(path, dpi=110)


def _is_best(trial: dict[str, Any], row: dict[str, Any]) -> bool:
    return trial["contestant"] == row["name"] and trial["lr"] == row["lr"]


def _draw_way(ax: Axes, runs: list[dict[str, Any]], name: str, index: int, *, against: int) -> None:
    """A thin line for each seed."""
    for number, run in enumerate(runs):
        x = [point[against] for point in run["validation"]]
        y = [point[2] for point in run["validation"]]
        ax.plot(x, y, ".-", color=color_of(index), linewidth=1, alpha=0.7, label=None if number else name)


def _draw_end(ax: Axes, row: dict[str, Any], index: int) -> None:
    """The mean over seeds, with a bar of a standard deviation to each side."""
    mean, deviation = row["validation_loss"]
    x = row["optimizer_bytes"][0] / MIB
    ax.errorbar(x, mean, yerr=deviation or 0.0, fmt="o", color=color_of(index), capsize=3)
    ax.annotate(f" {row['name']}", (x, mean), fontsize=9, va="center")


def _finish(ax: Axes, record: dict[str, Any], label: str) -> None:
    """Cut off what the first evaluations, and diverged runs, are above."""
    last = [row["validation_loss"][0] for row in record["contestants"] if "failed" not in row]
    if last := [loss for loss in last if math.isfinite(loss)]:
        low, high = min(last), max(last)
        margin = max(high - low, 0.05 * abs(low))
        ax.set_ylim(low - 0.3 * margin, high + 2 * margin)
    ax.set_xlabel(label)
    ax.set_ylabel("validation loss")
    ax.set_title(f"Validation loss against {label.split(' (')[0]}")
