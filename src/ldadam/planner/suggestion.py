"""`suggest`: the best settings that fit a card, found by planning one after the other, and why."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from ldadam.optimizer import DEFAULTS
from ldadam.planner.footprint import RESERVED_BYTES
from ldadam.planner.models import LLAMAS, Model, Source, find_source
from ldadam.planner.parts import GIB, title
from ldadam.planner.planning import Plan, PlannedRun, Settings, find_run, footprint_without_peak, plan_of
from ldadam.training.presets import PRESETS

# Best first. A quarter is the rank of most of the papers' Llama runs.
RANKS = (1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64)

# The storage of E, best first, with why it is taken where those before it do not fit.
ERROR_DTYPES = {
    "float32": "it fits, and nothing that the subspace misses is rounded",
    "bfloat16": "float32 does not fit at this rank; on a small Llama the two cannot be told apart (docs/memory.md)",
    "int8": "floats do not fit at this rank; on a small Llama int8 cannot be told from float32 (docs/memory.md)",
    "int4": "nothing wider fits at this rank; on a small Llama int4 cannot be told from float32 (docs/memory.md); "
    "on a convex problem it is worse at this rank, but better than float32 at half of it (docs/rank-and-rho.md)",
}


@dataclass(frozen=True)
class Suggestion:
    """Settings that fit a budget; `print` it for the reasons.

    Attributes:
        rank: a fraction of each matrix's shorter side, as `LDAdamW` and `lowrank_param_groups` take it.
        error_dtype: storage of the error buffer.
        step_in_backward: whether to call `ldadam.step_in_backward`.
        lr_range: the ends of a grid to search the learning rate in; a start, not a tuned value.
        reasons: a sentence for each of these, and one about the memory, by name.
        plan: the plan of a run with these settings.
    """

    rank: float
    error_dtype: str
    step_in_backward: bool
    lr_range: tuple[float, float]
    reasons: Mapping[str, str]
    plan: Plan

    def __str__(self) -> str:
        """A line for each choice: its name, its value, and why."""
        values = {
            "rank": f"{self.rank:g}",
            "error_dtype": self.error_dtype,
            "step_in_backward": "yes" if self.step_in_backward else "no",
            "lr_range": "{:g} to {:g}".format(*self.lr_range),
            "memory": f"{self.plan.footprint.total / GIB:.2f} GiB",
        }
        width = max(map(len, values.values()))
        return "\n".join(f"{name:<16}  {value:<{width}}  {self.reasons[name]}" for name, value in values.items())


def suggest(
    model: Model,
    *,
    budget_gb: float,
    dtype: str | torch.dtype | None = None,
    batch: int | None = None,
    seq: int | None = None,
    checkpointing: bool = False,
    step_in_backward: bool | None = None,
    device: str = "cuda",
) -> Suggestion:
    """The best settings whose plan fits one device, with a reason for each.

    The largest rank wins, from a quarter of the shorter side down by halves; at that rank the widest error buffer, from
    float32 over bfloat16 and int8 to int4; then ordinary steps over `step_in_backward`. Candidates are planned one by
    one, which takes seconds.

    Args:
        model: as in `plan`: a module, the name of a Llama, a list of shapes, or a hub id.
        budget_gb: memory of the card in GB as cards are sold (2**30 bytes each); one of them stays free for
            CUDA itself.
        dtype: of weights and gradients; None means a module's own, else float32.
        batch: sequences at a time; None leaves activations out.
        seq: tokens of a sequence.
        checkpointing: whether each layer keeps its input only, and is computed anew in the backward pass.
        step_in_backward: True or False to fix it, such as False where the global norm is clipped; None to let the
            budget decide.
        device: "cuda" or "cpu", which need not exist here: where the step runs.

    Raises:
        ValueError: nothing fits (the message has the smallest plan), or an option is out of range.

    Examples:
        >>> from ldadam import suggest
        >>> found = suggest("20m", budget_gb=2, dtype="bfloat16", device="cpu")
        >>> found.rank, found.error_dtype, found.step_in_backward
        (0.25, 'float32', False)
    """
    if isinstance(budget_gb, bool) or not isinstance(budget_gb, (int, float)) or not 0 < budget_gb < math.inf:
        raise ValueError(f"budget_gb must be a positive number, the GB of the card; got {budget_gb!r}")
    modes = (False, True) if step_in_backward is None else (step_in_backward,)
    source = find_source(model)
    candidates = [
        _Candidate(
            source,
            dtype,
            Settings(
                {"rank": rank, "error_dtype": error_dtype, "error_feedback": True, "backend": DEFAULTS.backend},
                batch=batch,
                seq=seq,
                step_in_backward=mode,
                checkpointing=checkpointing,
                device=device,
            ),
        )
        for rank, error_dtype, mode in itertools.product(RANKS, ERROR_DTYPES, modes)
    ]
    budget = budget_gb * GIB - RESERVED_BYTES
    for candidate in candidates:
        if candidate.lower_bound <= budget and candidate.total <= budget:
            return _explained(candidate.plan, budget_gb=budget_gb, was_asked=step_in_backward is not None)
    raise ValueError(_what_else(_smallest(candidates), budget_gb=budget_gb))


@dataclass(frozen=True)
class _Candidate:
    """Settings, and their plan as soon as someone asks for it."""

    source: Source
    dtype: str | torch.dtype | None
    settings: Settings

    @cached_property
    def run(self) -> PlannedRun:
        return find_run(self.source, self.settings, dtype=self.dtype)

    @cached_property
    def lower_bound(self) -> int:
        """Bytes without the peak of the step, which takes longest to plan."""
        return footprint_without_peak("ldadamw", self.run).total

    @cached_property
    def plan(self) -> Plan:
        return plan_of(self.run)

    @property
    def total(self) -> int:
        return self.plan.footprint.total


def _smallest(candidates: Iterable[_Candidate]) -> _Candidate:
    """The one whose plan is smallest; those whose lower bound is above that are not planned."""
    by_bound = sorted(candidates, key=lambda candidate: candidate.lower_bound)
    smallest = by_bound[0]
    for candidate in by_bound[1:]:
        if candidate.lower_bound >= smallest.total:
            break
        smallest = min(smallest, candidate, key=lambda each: each.total)
    return smallest


def _what_else(smallest: _Candidate, *, budget_gb: float) -> str:
    """Why nothing fits, and what was not asked for yet."""
    settings, is_wide = smallest.settings, smallest.plan.dtype == "float32"
    ways = {
        "checkpointing=True": settings.batch is not None and not settings.checkpointing,
        "fewer tokens at a time": settings.batch is not None,
        'dtype="bfloat16"': is_wide,
        "step_in_backward=True": not settings.step_in_backward,
        "several devices (ldadam plan --devices)": True,
    }
    needed = (smallest.total + RESERVED_BYTES) / GIB
    return (
        f"nothing fits into {budget_gb:g} GB: the smallest plan needs {needed:.2f}, one of them for CUDA itself "
        f"({title(smallest.plan)}). Try {' or '.join(way for way, is_open in ways.items() if is_open)}"
    )


def _explained(plan: Plan, *, budget_gb: float, was_asked: bool) -> Suggestion:
    settings, footprint = plan.settings, plan.footprint
    rank, error_dtype = settings.options["rank"], settings.options["error_dtype"]
    preset, lr = _nearest_preset(plan.num_weights)
    return Suggestion(
        rank=rank,
        error_dtype=error_dtype,
        step_in_backward=settings.step_in_backward,
        lr_range=(lr / 2, 2 * lr),
        reasons={
            "rank": "of each matrix's shorter side: "
            + ("what most of the papers' Llama runs take" if rank == RANKS[0] else "the next larger does not fit"),
            "error_dtype": ERROR_DTYPES[error_dtype],
            "step_in_backward": _why_in_backward(footprint.step_in_backward, was_asked),
            "lr_range": f"half to twice the {lr:g} of the preset nearest in size, {preset}, which trains from scratch"
            f"{_how_it_was_found(preset)}; fine-tuning wants its own",
            "memory": f"of {budget_gb:g} GB, one of which is left for CUDA itself; {_what_of_activations(plan)}",
        },
        plan=plan,
    )


def _nearest_preset(num_weights: int) -> tuple[str, float]:
    """The name, and LDAdamW's learning rate, of the preset whose number of weights is nearest as a ratio."""
    sizes = {name: sum(math.prod(shape) for shape in LLAMAS[name].weights().values()) for name in PRESETS}
    name = min(sizes, key=lambda each: abs(math.log(sizes[each] / num_weights)))
    return name, PRESETS[name].lr["ldadamw"]


def _how_it_was_found(preset: str) -> str:
    """Where a preset's learning rate comes from, and what it goes with."""
    if (dense_lr := PRESETS[preset].dense_lr) is not None:
        return f": the best that was tried, with {dense_lr:g} for embeddings, head and vectors (docs/results.md)"
    return " and was not tuned"


def _why_in_backward(is_on: bool, was_asked: bool) -> str:
    if was_asked:
        return "as asked for"
    if is_on:
        return "all gradients at once do not fit; the numbers are the same, but the global norm cannot be clipped"
    return "the gradients fit, so that the global norm can be clipped"


def _what_of_activations(plan: Plan) -> str:
    if plan.footprint.activations is not None:
        return f"activations of {plan.settings.batch} x {plan.settings.seq} tokens estimated"
    missing = "give batch and seq" if plan.settings.batch is None else "known for Llama-like models only"
    return f"activations are not in it ({missing})"
