"""Does LDAdamW converge as fast as theory says, and where does it not? Eight replicates of small problems.

    python benchmarks/theory.py                   run what benchmarks/results/theory.json lacks
    python benchmarks/theory.py --only NAME       the same, of one experiment
    python benchmarks/theory.py --table NAME      print the table of docs/theory.md
    python benchmarks/theory.py --pictures        draw docs/images/theory_NAME.png

Each experiment trains one 16 x 24 matrix W in float64 for T = 256, 1024 and 4096 steps, with the learning rate that the
theorem wants for that T, and fits the slope of what it measures against T, both as logarithms, replicate by replicate.
Replicates differ in problem and noise. They are one stack of matrices, which `LDAdamW` trains as independent ones.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from ldadam import LDAdamW, provenance
from theory_problems import (
    RANK,
    REPLICATES,
    ROWS,
    SHAPE,
    Problem,
    gaussian,
    hidden_direction,
    least_squares,
    rare,
    robust_regression,
    student,
)

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/theory.json"
HORIZONS = (256, 1024, 4096)
# Student's t at 97.5 %, 7 degrees of freedom: of the mean of eight replicates.
T_QUANTILE = 2.365


class Subject(NamedTuple):
    """An optimizer with options; `clip` bounds the norm of each gradient, `lr` replaces the rule of the experiment."""

    optimizer: Callable[..., torch.optim.Optimizer]
    options: dict[str, Any]
    clip: float = math.inf
    lr: float | None = None


def ldadamw(*, clip: float = math.inf, lr: float | None = None, **options: Any) -> Subject:
    return Subject(LDAdamW, {"rank": RANK, **options}, clip, lr)


def adamw(*, clip: float = math.inf, **options: Any) -> Subject:
    """Dense Adam with the betas that `LDAdamW` has."""
    return Subject(torch.optim.AdamW, {"betas": (0.908, 0.99), "weight_decay": 0.0, **options}, clip)


class Outcome(NamedTuple):
    """By replicate: the mean over steps of |grad f|^2, and f - min f after the last step; and the last weights."""

    mean_square: Tensor
    gap: Tensor
    weight: Tensor


def train(problem: Problem, subject: Subject, *, num_steps: int, lr: float) -> Outcome:
    generator = Generator().manual_seed(1)
    weight = torch.nn.Parameter(torch.zeros(SHAPE, dtype=torch.float64))
    optimizer = subject.optimizer([weight], lr=lr if subject.lr is None else subject.lr, **subject.options)
    total = torch.zeros(REPLICATES, dtype=torch.float64)
    for _ in range(num_steps):
        gradient = problem.gradient(weight.detach())
        total += gradient.square().sum((1, 2))
        noisy = gradient + problem.noise(generator)
        norm = noisy.norm(dim=(1, 2), keepdim=True)
        weight.grad = noisy * (subject.clip / norm).clamp_max(1)
        optimizer.step()
    return Outcome(total / num_steps, problem.gap(weight.detach()), weight.detach())


class Experiment(NamedTuple):
    """A problem, the learning rate for T steps, what is measured of an outcome, and who is measured."""

    problem: Callable[[], Problem]
    lr: Callable[[int], float]
    measure: Callable[[Outcome, int], Tensor]
    measured: str
    subjects: dict[str, Subject]


def by_root(scale: float) -> Callable[[int], float]:
    return lambda num_steps: scale / math.sqrt(num_steps)


def mean_square(outcome: Outcome, num_steps: int) -> Tensor:
    return outcome.mean_square


def gap_by_log(outcome: Outcome, num_steps: int) -> Tensor:
    return outcome.gap / math.log(num_steps)


MEAN_SQUARE = "mean of ‖∇f‖²"
WITHOUT = "LDAdamW without error feedback"
PLAIN = {"LDAdamW": ldadamw(), WITHOUT: ldadamw(error_feedback=False), "AdamW": adamw()}
# The best approximation of the corrected gradient, and nothing else.
BEST = {"proj_method": "svd", "rho": 0.0}
HIDDEN = {
    "LDAdamW": ldadamw(),
    WITHOUT: ldadamw(error_feedback=False),
    "best approximation": ldadamw(**BEST),
    "best approximation, without error feedback": ldadamw(**BEST, error_feedback=False),
}
EXPERIMENTS = {
    "nonconvex": Experiment(
        robust_regression,
        by_root(0.15),
        mean_square,
        MEAN_SQUARE,
        {**PLAIN, "LDAdamW, learning rate 0.05 for every T": ldadamw(lr=0.05)},
    ),
    "pl": Experiment(
        lambda: least_squares(8, gaussian), lambda steps: math.log(steps) / steps, gap_by_log, "(f − f*) / log T", PLAIN
    ),
    "hidden": Experiment(hidden_direction, by_root(0.5), mean_square, MEAN_SQUARE, HIDDEN),
    "aligned": Experiment(
        lambda: hidden_direction(rotated=False),
        by_root(0.5),
        mean_square,
        MEAN_SQUARE,
        {title: HIDDEN[title] for title in ("LDAdamW", "best approximation")},
    ),
    "heavy": Experiment(
        lambda: robust_regression(student),
        by_root(0.15),
        mean_square,
        MEAN_SQUARE,
        {
            **PLAIN,
            "LDAdamW, clipped": ldadamw(clip=2.0),
            f"{WITHOUT}, clipped": ldadamw(error_feedback=False, clip=2.0),
            "AdamW, clipped": adamw(clip=2.0),
        },
    ),
    "rare": Experiment(
        lambda: least_squares(ROWS, rare),
        by_root(0.5),
        mean_square,
        MEAN_SQUARE,
        {
            "LDAdamW": ldadamw(),
            "LDAdamW, β₂ = 0.9999": ldadamw(betas=(0.908, 0.9999)),
            "AdamW": adamw(),
            "AdamW, AMSGrad": adamw(amsgrad=True),
        },
    ),
}


def measure(experiment: Experiment, subject: Subject, num_steps: int) -> list[float]:
    """What the experiment measures after `num_steps` steps, by replicate."""
    outcome = train(experiment.problem(), subject, num_steps=num_steps, lr=experiment.lr(num_steps))
    return experiment.measure(outcome, num_steps).tolist()


def slope(by_horizon: dict[int, list[float]]) -> tuple[float, float]:
    """The mean over replicates of the slope of log value against log T, and half of its 95 % interval."""
    logs = [math.log(num_steps) for num_steps in by_horizon]
    each = [
        statistics.linear_regression(logs, [math.log(value) for value in values]).slope
        for values in zip(*by_horizon.values(), strict=True)
    ]
    return statistics.mean(each), T_QUANTILE * statistics.stdev(each) / math.sqrt(len(each))


def run_missing(out: Path, names: list[str]) -> None:
    """Run what the file lacks; it is written after each subject."""
    torch.set_num_threads(1)
    found = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {"experiments": {}}
    made_by = {"versions": provenance.versions(["torch"]), "hardware": provenance.hardware()}
    for name in names:
        experiment, done = EXPERIMENTS[name], found["experiments"].setdefault(name, {})
        for title in (title for title in experiment.subjects if title not in done):
            values = {T: measure(experiment, experiment.subjects[title], T) for T in HORIZONS}
            done[title] = {"commit": made_by["versions"]["commit"], "values": values}
            print(f"{name}, {title}: {slope(values)}", flush=True)
            out.write_text(json.dumps({**made_by, **found}, indent=1) + "\n", encoding="utf-8")


def values_of(found: dict[str, Any], name: str, title: str) -> dict[int, list[float]]:
    return {int(steps): values for steps, values in found["experiments"][name][title]["values"].items()}


def table(found: dict[str, Any], name: str) -> str:
    """Markdown: the mean over replicates at each horizon, and the slope."""
    lines = [f"| {EXPERIMENTS[name].measured} | {' | '.join(f'T = {T}' for T in HORIZONS)} | slope |"]
    lines.append("|---|" + "---:|" * (len(HORIZONS) + 1))
    for title in EXPERIMENTS[name].subjects:
        values = values_of(found, name, title)
        mean, half = slope(values)
        cells = [title, *(f"{statistics.mean(values[T]):.3g}" for T in HORIZONS), f"{mean:.2f} ± {half:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(found: dict[str, Any], name: str, path: Path) -> None:
    """Each replicate as a thin line, and their mean as a thick one; the theorem's slope, dashed."""
    import matplotlib
    from matplotlib.figure import Figure

    from ldadam.report.figures import STYLE

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 3.6), layout="constrained")
        ax = figure.subplots()
        for index, title in enumerate(EXPERIMENTS[name].subjects):
            values = values_of(found, name, title)
            ax.loglog(HORIZONS, list(values.values()), color=f"C{index}", linewidth=0.5, alpha=0.5)
            means = [statistics.mean(values[T]) for T in HORIZONS]
            ax.loglog(HORIZONS, means, "o-", color=f"C{index}", label=title)
        exponent = -1 if name == "pl" else -0.5
        start = statistics.mean(values_of(found, name, "LDAdamW")[HORIZONS[0]]) / 2
        bound = [start * (T / HORIZONS[0]) ** exponent for T in HORIZONS]
        ax.loglog(HORIZONS, bound, "--", color="#444444", label=f"slope {exponent}")
        ax.set_xlabel("steps T")
        ax.set_ylabel(EXPERIMENTS[name].measured)
        ax.set_xticks(HORIZONS, [str(T) for T in HORIZONS], minor=False)
        figure.legend(loc="outside right upper")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=EXPERIMENTS)
    parser.add_argument("--table", choices=EXPERIMENTS)
    parser.add_argument("--pictures", action="store_true")
    args = parser.parse_args()
    if args.table:
        print(table(json.loads(RESULTS.read_text(encoding="utf-8")), args.table), end="")
    elif args.pictures:
        for name in ("nonconvex", "pl", "hidden", "heavy", "rare"):
            draw(json.loads(RESULTS.read_text(encoding="utf-8")), name, ROOT / f"docs/images/theory_{name}.png")
    else:
        run_missing(RESULTS, [args.only] if args.only else list(EXPERIMENTS))


if __name__ == "__main__":
    main()
