"""A plan as stacked bars, one for each optimizer, with lines where cards end."""

from __future__ import annotations

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ldadam.planner.footprint import CARDS
from ldadam.planner.parts import parts_at_peak, title, unit_of
from ldadam.planner.planning import Plan
from ldadam.report.figures import PART_COLORS, STYLE

COLORS = {
    "weights": PART_COLORS["weights"],
    "gradients": PART_COLORS["gradients"],
    "largest gradient": PART_COLORS["gradients"],
    "bases or projections": PART_COLORS["basis"],
    "low-rank moments": PART_COLORS["exp_avg"],
    "dense moments": PART_COLORS["exp_avg_sq"],
    "error buffer": PART_COLORS["error_buffer"],
    "counters": PART_COLORS["step"],
    "peak of the step": "#b03060",
    "packed messages": "#8a4fbf",
    "activations": "#8fc46a",
    "gathered by FSDP": "#5f6b75",
}


def draw(plan: Plan) -> Figure:
    """The figure of a plan."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 4.2), layout="constrained")
        ax = figure.subplots()
        _draw_bars(ax, plan)
        _draw_cards(ax, plan)
        ax.set_title(title(plan), fontsize=9)
        figure.legend(loc="outside lower center", ncols=4)
    return figure


def _draw_bars(ax: Axes, plan: Plan) -> None:
    name, unit = unit_of(plan)
    shown: set[str] = set()
    for row, footprint in enumerate(plan.footprints):
        left = 0.0
        for part, num_bytes in parts_at_peak(footprint).items():
            if not num_bytes:
                continue
            ax.barh(row, num_bytes / unit, left=left / unit, color=COLORS[part], label=None if part in shown else part)
            left += num_bytes
            shown.add(part)
        ax.text(footprint.total / unit, row, f" {footprint.total / unit:.1f}", va="center", fontsize=9)
    ax.set_yticks(range(len(plan.footprints)), [footprint.optimizer for footprint in plan.footprints])
    ax.invert_yaxis()
    ax.set_xlabel(name)


def _draw_cards(ax: Axes, plan: Plan) -> None:
    name, unit = unit_of(plan)
    if name != "GiB":
        return
    end = 1.12 * max(footprint.total for footprint in plan.footprints) / unit
    for card in CARDS:
        if card <= end:
            ax.axvline(card, color="#444444", linestyle=(0, (4, 3)), linewidth=1)
            ax.annotate(f"{card} GB", (card, 0), xycoords=("data", "axes fraction"), xytext=(2, 3),
                        textcoords="offset points", fontsize=8, color="#444444")  # fmt: skip
    ax.set_xlim(0, end)
