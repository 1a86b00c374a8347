"""The panels of a report. Each draws one question about one or several runs on one pair of axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ldadam.report.run_data import RunData, by_kind

RUN_COLORS = (
    "#1f5fbf",
    "#d2691e",
    "#2a8c55",
    "#8a4fbf",
    "#b03060",
    "#5f6b75",
    "#c9a400",
    "#17a2b8",
    "#7a4a2b",
    "#e377c2",
)
KIND_COLORS = ("#1f5fbf", "#5aa0e6", "#2a8c55", "#8fc46a", "#d2691e", "#e8a13c", "#8a4fbf", "#b03060")
PART_COLORS = {
    "weights": "#9aa5b1",
    "gradients": "#c9d1d9",
    "exp_avg": "#1f5fbf",
    "exp_avg_sq": "#5aa0e6",
    "basis": "#2a8c55",
    "error_buffer": "#e8a13c",
    "error_scale": "#b5761b",
    "step": "#444444",
}
STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e9ed",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


@dataclass(frozen=True)
class Panel:
    """One drawing, with the sentence under it on the page."""

    title: str
    caption: str
    draw: Callable[[Axes, Sequence[RunData]], None]
    needs: str | None = None  # what a run must have recorded to be shown


def color_of(index: int) -> str:
    """The color of the index-th run."""
    return RUN_COLORS[index % len(RUN_COLORS)]


def smooth(values: Sequence[float], width: int) -> np.ndarray:
    """Trailing mean over `width` records; shorter at the beginning."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def _draw_loss(ax: Axes, runs: Sequence[RunData], *, against: str) -> None:
    """Training loss as a thin smoothed line, validation loss with markers."""
    shown: list[float] = []
    for index, run in enumerate(runs):
        x, loss = run.series("loss", against=against)
        smoothed = smooth(loss, max(1, len(loss) // 50))
        ax.plot(x, smoothed, color=color_of(index), alpha=0.4, linewidth=1, label=f"{run.name}, training")
        x, validation = run.series("val_loss", against=against)
        ax.plot(x, validation, "o-", color=color_of(index), markersize=3.5, label=f"{run.name}, validation")
        shown += [*smoothed[len(smoothed) // 20 :], *validation]
    finite = [value for value in shown if np.isfinite(value)]
    if finite:
        low, high = min(finite), max(finite)
        ax.set_ylim(low - 0.05 * (high - low) - 1e-3, high + 0.05 * (high - low) + 1e-3)
    ax.set_ylabel(f"loss ({runs[0].facts['loss_unit']})")
    ax.legend()


def draw_loss_by_step(ax: Axes, runs: Sequence[RunData]) -> None:
    """Loss against optimizer steps."""
    _draw_loss(ax, runs, against="step")
    ax.set_xlabel("optimizer steps")


def draw_loss_by_time(ax: Axes, runs: Sequence[RunData]) -> None:
    """Loss against seconds."""
    _draw_loss(ax, runs, against="seconds")
    ax.set_xlabel("training time (seconds)")


def draw_scores(ax: Axes, runs: Sequence[RunData]) -> None:
    """Every score of the task against steps: a color per run, a marker per score."""
    for index, run in enumerate(runs):
        steps, scores = run.per_name("scores")
        for marker, (name, values) in zip("osD^v", scores.items(), strict=False):
            label = f"{run.name}, {name.replace('_', ' ')}"
            ax.plot(steps, values, f"{marker}-", color=color_of(index), markersize=4, label=label)
    ax.set_xlabel("optimizer steps")
    ax.set_ylabel("score on the validation examples")
    ax.legend()


def draw_learning_rate(ax: Axes, runs: Sequence[RunData]) -> None:
    """Learning rate against steps."""
    for index, run in enumerate(runs):
        line = "-" if index == 0 else (0, (4, 2 + index))  # equal schedules stay visible below each other
        ax.plot(*run.series("lr"), color=color_of(index), linestyle=line, label=run.name)
    ax.set_xlabel("optimizer steps")
    ax.set_ylabel("learning rate")
    ax.set_ylim(bottom=0)
    ax.legend()


def draw_step_time(ax: Axes, runs: Sequence[RunData]) -> None:
    """Mean milliseconds per step: model below, optimizer on top."""
    for index, run in enumerate(runs):
        steps = run.metrics[-1]["step"]
        total = 1000 * run.metrics[-1]["seconds"] / steps
        optimizer = 1000 * run.weighted_total("optimizer_seconds") / steps
        first = index == 0
        ax.barh(index, total - optimizer, color="#c9d1d9", label="forward, backward, data" if first else None)
        ax.barh(index, optimizer, left=total - optimizer, color=color_of(0), label="optimizer" if first else None)
        text = f" optimizer {optimizer:.1f} ms of {total:.1f} ms ({100 * optimizer / total:.1f} %)"
        ax.text(0, index - 0.42, text, va="bottom", fontsize=9)
    ax.set_yticks(range(len(runs)), [run.name for run in runs])
    ax.set_ylim(len(runs) - 0.3, -1.3)
    ax.set_xlabel("time per step (milliseconds, mean)")
    ax.grid(axis="y", visible=False)
    ax.legend(loc="upper right", ncols=2)


def draw_captured_map(ax: Axes, runs: Sequence[RunData]) -> None:
    """Captured fraction of every matrix over time: a row per matrix, grouped by kind, layers downwards."""
    run = low_rank_runs(runs)[0]
    steps, matrices = run.per_name("captured")
    groups = by_kind(matrices)
    rows = np.array([row for group in groups.values() for row in group])
    edges = np.array([0, *steps], dtype=float)
    image = ax.pcolormesh(edges, np.arange(len(rows) + 1), rows, cmap="viridis", vmin=0, vmax=1, rasterized=True)
    ax.invert_yaxis()
    sizes = np.cumsum([0, *(len(group) for group in groups.values())])
    ax.set_yticks((sizes[:-1] + sizes[1:]) / 2, list(groups))
    for border in sizes[1:-1]:
        ax.axhline(border, color="white", linewidth=1.5)
    ax.grid(visible=False)
    ax.set_xlabel("optimizer steps")
    ax.set_ylabel("matrices, first layer on top")
    colorbar = ax.figure.colorbar(image, ax=ax, pad=0.02)
    colorbar.set_label("captured fraction ‖UUᵀA‖/‖A‖")


def _draw_kinds(ax: Axes, runs: Sequence[RunData], value: str, combine: Callable[[np.ndarray], np.ndarray]) -> None:
    run = low_rank_runs(runs)[0]
    steps, matrices = run.per_name(value)
    for index, (kind, rows) in enumerate(by_kind(matrices).items()):
        marker = "o" if len(steps) == 1 else None  # a line of one point cannot be seen
        color = KIND_COLORS[index % len(KIND_COLORS)]
        ax.plot(steps, combine(np.array(rows)), marker=marker, markersize=4, color=color, label=kind)
    ax.set_xlabel("optimizer steps")
    ax.legend(ncols=2)


def draw_captured_kinds(ax: Axes, runs: Sequence[RunData]) -> None:
    """Captured fraction, mean over layers, by kind of module."""
    _draw_kinds(ax, runs, "captured", lambda rows: rows.mean(0))
    ax.set_ylabel("captured fraction ‖UUᵀA‖/‖A‖")
    ax.set_ylim(0, 1.02)


def draw_error_norm(ax: Axes, runs: Sequence[RunData]) -> None:
    """Norm of the error buffer of all layers together, by kind of module."""
    _draw_kinds(ax, runs, "error_norm", lambda rows: np.sqrt((rows**2).sum(0)))
    ax.set_ylabel("norm of the error buffer ‖E‖")
    ax.set_yscale("log")


def draw_memory(ax: Axes, runs: Sequence[RunData]) -> None:
    """Bytes by category: counted from live tensors, and beside it the plan."""
    bars: list[tuple[str, float, dict[str, int]]] = []
    for run in runs:
        counted = run.memory["counted"]
        shared = {"weights": counted["weights"], "gradients": counted["gradients"]}
        bars.append((f"{run.name}\ncounted", 0.0, {**shared, **counted["optimizer"]}))
        if run.memory["planned"]:
            # Drawn under the state that it predicts.
            bars.append((f"{run.name}\nplanned state", sum(shared.values()) / 2**20, run.memory["planned"]))
    labelled: set[str] = set()
    for row, (_, begin, parts) in enumerate(bars):
        left = begin
        for part, size in sorted(parts.items(), key=lambda item: list(PART_COLORS).index(item[0])):
            label = None if part in labelled or part == "step" else part
            labelled.add(part)
            ax.barh(row, size / 2**20, left=left, height=0.6, color=PART_COLORS[part], label=label)
            left += size / 2**20
        ax.text(left, row, f" {left - begin:.1f}", va="center", fontsize=9)
    ax.set_yticks(range(len(bars)), [name for name, _, _ in bars])
    ax.set_ylim(len(bars) + 0.2, -0.7)
    ax.margins(x=0.12)
    ax.set_xlabel("memory (MiB)")
    ax.grid(axis="y", visible=False)
    ax.legend(loc="lower right", ncols=3)


def low_rank_runs(runs: Sequence[RunData]) -> list[RunData]:
    """Runs whose optimizer has a subspace that was measured."""
    return [run for run in runs if run.per_name("captured")[0]]


def has(runs: Sequence[RunData], value: str | None) -> bool:
    """Whether any of the runs has recorded `value`."""
    return value is None or any(run.per_name(value)[0] for run in runs)


PANELS = (
    Panel(
        "Loss by step",
        "Validation loss is the mean over what was held out. Training loss is a trailing mean.",
        draw_loss_by_step,
    ),
    Panel("Scores", "The task's own scores on held-out examples.", draw_scores, needs="scores"),
    Panel(
        "Loss by time",
        "Evaluation, measuring the subspace and writing checkpoints are not counted.",
        draw_loss_by_time,
    ),
    Panel("Learning rate", "The rate that each step used.", draw_learning_rate),
    Panel("Time per step", "Mean over the run, with the optimizer's share.", draw_step_time),
    Panel(
        "Memory",
        "Counted: live tensors after the first step. Planned: what `describe(optimizer)` says before it.",
        draw_memory,
    ),
    Panel(
        "What the subspace captures, by module",
        "A = G + E is the gradient with the error feedback added; U is the basis. Mean over layers.",
        draw_captured_kinds,
        needs="captured",
    ),
    Panel(
        "What the subspace captures, every matrix",
        "One row per weight matrix, grouped by module, first layer on top of each group.",
        draw_captured_map,
        needs="captured",
    ),
    Panel(
        "Error buffer",
        "What the projection dropped and later steps will get back. All layers of a module together.",
        draw_error_norm,
        needs="captured",
    ),
)


def panels_for(runs: Sequence[RunData]) -> list[Panel]:
    """The panels that have something to show for these runs."""
    return [panel for panel in PANELS if has(runs, panel.needs)]


def panel_title(panel: Panel, runs: Sequence[RunData]) -> str:
    """The panel's title; with several runs it names the one that a single-run panel shows."""
    if panel.needs == "captured" and len(runs) > 1:
        return f"{panel.title} ({low_rank_runs(runs)[0].name})"
    return panel.title


def draw_one(panel: Panel, runs: Sequence[RunData]) -> Figure:
    """A figure with one panel."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        panel.draw(figure.subplots(), runs)
    return figure


def draw_all(runs: Sequence[RunData], title: str) -> Figure:
    """One figure with all panels, two beside each other."""
    panels = panels_for(runs)
    num_rows = -(-len(panels) // 2)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(14, 4.1 * num_rows), layout="constrained")
        figure.get_layout_engine().set(hspace=0.05, wspace=0.04)  # pyright: ignore
        axes = np.atleast_2d(figure.subplots(num_rows, 2)).ravel()
        for ax, panel in zip(axes, panels, strict=False):
            panel.draw(ax, runs)
            ax.set_title(panel_title(panel, runs))
        for ax in axes[len(panels) :]:
            ax.axis("off")
        figure.suptitle(title, fontsize=13, fontweight="bold")
    return figure
