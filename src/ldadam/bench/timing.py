"""Optimizers in turn on the same weights and gradients: A B C, A B C, ...

Where their states do not fit into memory together, each is made anew for each of a few visits and then takes several
steps in a row: AAA BBB CCC, AAA BBB CCC, ...
"""

from __future__ import annotations

import contextlib
import io
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from ldadam.bench.capture import CapturedStep
from ldadam.bench.clock import Duration, timed
from ldadam.bench.cost import Cost, state_bytes, step_cost
from ldadam.bench.memory import extra_memory, free_memory
from ldadam.bench.subjects import Entry, Stepper
from ldadam.bench.weights import fill_gradients_
from ldadam.peers import Weights

# Untimed steps before a visit: the first makes state and compiles, the third records a CUDA graph.
WARM_UP_STEPS = 3

# A slow optimizer takes no more steps once it has used these seconds, but at least so many steps.
SECONDS_EACH = 10.0
LEAST_STEPS = 3

# Visits to each optimizer where they do not fit into memory together.
VISITS_APART = 3

# State of an optimizer and memory of its step, at most, in sizes of the weights.
MOST_WEIGHTS_EACH = 3


@dataclass
class Timing:
    """One optimizer and what is known about it so far; `problem` says why there is no more."""

    entry: Entry
    stepper: Stepper | None = None
    problem: str | None = None
    first_seconds: float | None = None
    visits: list[list[Duration]] = field(default_factory=list)
    cost: Cost | None = None
    state_bytes: int | None = None
    extra_bytes: int | None = None
    projection_seconds: float | None = None

    @property
    def samples(self) -> list[float]:
        """Seconds of each step, in order."""
        return [duration.seconds for visit in self.visits for duration in visit]

    @property
    def median(self) -> float:
        """Of the samples."""
        return statistics.median(self.samples)

    @property
    def host_median(self) -> float:
        """Of the seconds until each step returned."""
        return statistics.median(duration.host_seconds for visit in self.visits for duration in visit)

    def ratio_to(self, reference: Timing) -> float | None:
        """The median over visits of the quotient with the reference's visit of the same round."""
        if self.problem or reference.problem:
            return None
        pairs = zip(self.visits, reference.visits, strict=False)
        return statistics.median(_median(mine) / _median(other) for mine, other in pairs)

    def fail(self, error: Exception) -> None:
        """Note why there is no more to know."""
        reason = (str(error).strip().splitlines() or ["no message"])[0]
        if isinstance(error, ImportError) and self.entry.install:
            self.problem = f"not installed: pip install {self.entry.install} ({reason})"
        else:
            self.problem = f"failed: {type(error).__name__}: {reason}"

    def has_had_enough(self) -> bool:
        """Whether this is a slow one that has been timed as long as is fair."""
        return len(self.samples) >= LEAST_STEPS and sum(self.samples) > SECONDS_EACH


def _median(visit: list[Duration]) -> float:
    return statistics.median(duration.seconds for duration in visit)


@dataclass(frozen=True)
class Bench:
    """Weights on a device, and how often each optimizer steps."""

    weights: Weights
    rank: int
    device: torch.device
    repeats: int

    def run(self, timings: Sequence[Timing], *, on_visit: Callable[[Timing], None]) -> bool:
        """Fill in the timings; whether they were all in memory together."""
        together = self.fit_together(len(timings))
        num_rounds = self.repeats if together else min(VISITS_APART, self.repeats)
        for number in range(num_rounds):
            num_steps = len(range(number, self.repeats, num_rounds))
            for timing in timings:
                if timing.problem is None and not timing.has_had_enough():
                    self._guard(timing, partial(self._visit, timing, num_steps, is_only=not together))
                on_visit(timing)
        for timing in timings:
            if timing.stepper is not None:
                self._guard(timing, partial(self._look_closer, timing, timing.stepper))
                self._put_away(timing)
        return together

    def fit_together(self, num_optimizers: int) -> bool:
        """Whether the states of all optimizers fit into what is free, judged by the size of the weights."""
        return num_optimizers * MOST_WEIGHTS_EACH * self.weights.num_bytes < free_memory(self.device)

    def _guard(self, timing: Timing, work: Callable[[], None]) -> None:
        """Do the work; an optimizer that cannot is told apart, and stops no other."""
        try:
            # Some optimizers print each parameter.
            with contextlib.redirect_stdout(io.StringIO()):
                work()
        except Exception as error:
            timing.fail(error)
            self._put_away(timing)

    def _visit(self, timing: Timing, num_steps: int, *, is_only: bool) -> None:
        """Timed steps, after untimed ones where the optimizer is new; it is put away where it is the only one."""
        stepper = timing.stepper or self._warm_up(timing)
        visit: list[Duration] = []
        timing.visits.append(visit)
        while len(visit) < num_steps and not (visit and timing.has_had_enough()):
            visit.append(timed(stepper.step, self.device))
        if timing.entry.overwrites_gradients:
            self._restore_gradients()
        if is_only:
            if timing.state_bytes is None:
                self._look_closer(timing, stepper)
            self._put_away(timing)

    def _warm_up(self, timing: Timing) -> Stepper:
        timing.stepper = stepper = timing.entry.build(self.weights, self.rank)
        seconds = [timed(stepper.step, self.device).seconds for _ in range(WARM_UP_STEPS)]
        timing.first_seconds = timing.first_seconds or seconds[0]
        return stepper

    def _look_closer(self, timing: Timing, stepper: Stepper) -> None:
        """What is no timing of a step: bytes, memory, and the projection that is left out of ordinary steps."""
        entry = timing.entry
        timing.state_bytes = state_bytes(stepper)
        if entry.counts_bytes:
            timing.cost = step_cost(stepper, self.weights.params)
        if entry.refresh is not None:
            timing.projection_seconds = self._projection_seconds(stepper, entry.refresh)
        timing.extra_bytes = _extra_memory_if_seen(stepper, self.device)
        if entry.overwrites_gradients:
            self._restore_gradients()

    def _projection_seconds(self, stepper: Stepper, refresh: Callable) -> float:
        """Of all matrices, from one of each shape: the decompositions of a large model take minutes."""
        by_shape: dict[torch.Size, list[torch.nn.Parameter]] = {}
        for param in self.weights.low_rank:
            by_shape.setdefault(param.shape, []).append(param)
        total = 0.0
        for params in by_shape.values():
            call = partial(refresh, stepper.state[params[0]]["projector"], params[0].grad)
            # The second call knows its libraries.
            total += len(params) * min(timed(call, self.device).seconds for _ in range(2))
        return total

    def _restore_gradients(self) -> None:
        with torch.no_grad():
            fill_gradients_(self.weights.params, seed=1)

    def _put_away(self, timing: Timing) -> None:
        timing.stepper = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _extra_memory_if_seen(stepper: Stepper, device: torch.device) -> int | None:
    """None for a CUDA graph, which keeps its memory, and for steps that cannot be followed."""
    if isinstance(stepper, CapturedStep):
        return None
    try:
        return extra_memory(stepper, device)
    except Exception:
        return None
