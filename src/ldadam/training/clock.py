"""Where the seconds of a run go."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch


class TrainingClock:
    """Seconds spent training. Evaluating, measuring the subspace and writing checkpoints pause it."""

    def __init__(self) -> None:
        self._elapsed = 0.0
        self._started: float | None = None

    def start(self, elapsed: float = 0.0) -> None:
        """Begin at `elapsed` seconds: what earlier parts of a resumed run took."""
        self._elapsed, self._started = elapsed, time.perf_counter()

    def seconds(self) -> float:
        """Seconds so far."""
        running = 0.0 if self._started is None else time.perf_counter() - self._started
        return self._elapsed + running

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside is not counted. May be nested."""
        was_running = self._started is not None
        self._elapsed, self._started = self.seconds(), None
        try:
            yield
        finally:
            if was_running:
                self._started = time.perf_counter()


class OptimizerTimer:
    """Seconds inside `optimizer.step`, by its step hooks; on CUDA by events, without waiting for the device."""

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._begun: Any = None
        self._spans: list[tuple[Any, Any]] = []
        optimizer.register_step_pre_hook(self.begin)
        optimizer.register_step_post_hook(self.end)

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def begin(self, *_: Any) -> None:
        """A step, or that of one parameter in backward, begins."""
        self._begun = self._now()

    def end(self, *_: Any) -> None:
        """It has ended."""
        self._spans.append((self._begun, self._now()))

    def take(self) -> float:
        """Seconds since the last call, summed over steps."""
        spans, self._spans = self._spans, []
        if not self._cuda:
            return sum(end - begin for begin, end in spans)
        torch.cuda.synchronize()
        return sum(begin.elapsed_time(end) for begin, end in spans) / 1000
