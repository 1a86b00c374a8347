"""Ways to run the page on a group's matrices: each equal to `ldadam.algorithm`, by test."""

from collections.abc import Callable, Sequence

from ldadam.backends import eager
from ldadam.backends.update import ParamUpdate

_STEPS: dict[str, Callable[[Sequence[ParamUpdate]], None]] = {"eager": eager.step_}


def step_(updates: Sequence[ParamUpdate], *, backend: str) -> None:
    """Move low-rank parameters and their state, in place, by one step each."""
    _STEPS["eager" if backend == "auto" else backend](updates)
