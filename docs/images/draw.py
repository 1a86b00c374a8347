"""Draws method.svg and layers.svg beside this file: `python docs/images/draw.py`.

The layers are those of tests/test_architecture.py, so that the picture cannot say anything else than the test.
"""

import ast
from pathlib import Path
from textwrap import fill

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, Rectangle

HERE = Path(__file__).parent
WHOLE, SMALL, INK = "#c5cae9", "#ffcc80", "#263238"
SAVED = {"metadata": {"Date": None}, "bbox_inches": "tight", "facecolor": "white"}

LAYER_TITLES = [
    "mathematics",
    "settings",
    "a step, and its state",
    "the optimizer",
    "around it",
    "measurement",
    "what watches it",
    "what people run",
]


def matrix(ax: Axes, x: float, y: float, width: float, height: float, name: str, below: str, *, color: str) -> None:
    """A matrix as a rectangle centred at (x, y), with its name inside and what it is below."""
    ax.add_patch(Rectangle((x - width / 2, y - height / 2), width, height, facecolor=color, edgecolor=INK))
    ax.text(x, y, name, ha="center", va="center", fontsize=13, color=INK)
    ax.text(x, y - height / 2 - 0.15, below, ha="center", va="top", fontsize=9, color=INK)


def sign(ax: Axes, x: float, y: float, text: str) -> None:
    """An operator between matrices."""
    ax.text(x, y, text, ha="center", va="center", fontsize=14, color=INK)


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], text: str, *, bend: float = 0) -> None:
    """An arrow with words at its middle."""
    style = {"arrowstyle": "-|>", "mutation_scale": 14, "color": INK, "connectionstyle": f"arc3,rad={bend}"}
    ax.add_patch(FancyArrowPatch(start, end, **style))
    x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
    ax.text(x + 0.15, y, text, ha="left", va="center", fontsize=9, color=INK)


def draw_method() -> None:
    """G + E = A; A = U a + rest; a to Adam and W; the rest back to E."""
    figure, ax = pyplot.subplots(figsize=(8.4, 4.6))
    wide, high, thin = 2.0, 1.3, 0.4
    top, bottom = 4.0, 0.6
    matrix(ax, 1.0, top, wide, high, "G", "gradient, m × n", color=WHOLE)
    sign(ax, 2.35, top, "+")
    matrix(ax, 3.7, top, wide, high, "E", "error buffer, m × n", color=WHOLE)
    sign(ax, 5.05, top, "=")
    matrix(ax, 6.2, top, thin, high, "U", "basis, m × r", color=SMALL)
    matrix(ax, 7.75, top + (high - thin) / 2, wide, thin, "a = UᵀA", "r × n", color=SMALL)
    sign(ax, 9.1, top, "+")
    matrix(ax, 10.4, top, wide, high, "A − U a", "what U misses, m × n", color=WHOLE)
    matrix(ax, 7.0, bottom + 0.3, wide, thin, "m, v", "Adam's moments, r × n", color=SMALL)
    matrix(ax, 3.7, bottom, wide, high, "W", "weights, m × n", color=WHOLE)
    arrow(ax, (7.75, 3.45), (7.2, 1.2), "Adam's update; m, v are\nrotated when U moves")
    arrow(ax, (5.9, 0.75), (4.8, 0.75), "")
    ax.text(5.35, 0.95, "lr U d", ha="center", va="bottom", fontsize=9, color=INK)
    arrow(ax, (10.4, 4.75), (3.7, 4.75), "", bend=0.16)
    ax.text(7.05, 5.6, "added to the next gradient", ha="center", va="bottom", fontsize=9, color=INK)
    ax.set(xlim=(-0.2, 11.6), ylim=(-0.7, 6.1))
    ax.axis("off")
    figure.savefig(HERE / "method.svg", **SAVED)


def layers() -> list[set[str]]:
    """LAYERS of tests/test_architecture.py, lowest first."""
    tree = ast.parse((HERE.parents[1] / "tests/test_architecture.py").read_text())
    assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
    [found] = [node.value for node in assigned if ast.unparse(node.targets[0]) == "LAYERS"]
    return ast.literal_eval(found)


def draw_layers() -> None:
    """One band for each layer, those that import on top."""
    sources = HERE.parents[1] / "src/ldadam"
    figure, ax = pyplot.subplots(figsize=(8.4, 4.4))
    for level, (title, names) in enumerate(zip(LAYER_TITLES, layers(), strict=True)):
        parts = sorted(name for name in names if (sources / name).is_dir() or (sources / f"{name}.py").exists())
        color = SMALL if level == LAYER_TITLES.index("the optimizer") else WHOLE
        ax.add_patch(Rectangle((0, level), 10, 0.8, facecolor=color, edgecolor=INK))
        ax.text(0.2, level + 0.4, title, va="center", fontsize=10, fontweight="bold", color=INK)
        ax.text(3.1, level + 0.4, fill(" · ".join(parts), width=60), va="center", fontsize=9.5, color=INK)
    arrow(ax, (10.35, len(LAYER_TITLES) - 0.3), (10.35, 0.1), "")
    ax.text(10.6, len(LAYER_TITLES) / 2, "imports", rotation=270, va="center", ha="center", fontsize=9, color=INK)
    ax.set(xlim=(-0.1, 10.9), ylim=(-0.1, len(LAYER_TITLES)))
    ax.axis("off")
    figure.savefig(HERE / "layers.svg", **SAVED)


if __name__ == "__main__":
    matplotlib.rcParams["svg.hashsalt"] = "ldadam"
    draw_method()
    draw_layers()
