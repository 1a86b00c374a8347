"""Ctrl-C and SIGTERM: finish the step, save, stop. A second Ctrl-C stops at once."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

from transformers import TrainerCallback, TrainerControl

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopOnSignal(TrainerCallback):
    """Inside `with`, a signal asks the training loop to save and stop at the next safe moment."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopOnSignal:
        self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)

    def _stop_if_asked(self, control: TrainerControl) -> None:
        if self.received is not None:
            control.should_save = True
            control.should_training_stop = True

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **_: Any) -> None:
        """The step is finished: weights, optimizer and schedule agree."""
        self._stop_if_asked(control)

    def on_evaluate(self, args: Any, state: Any, control: TrainerControl, **_: Any) -> None:
        """An evaluation may take longer than anyone wants to wait for the next step."""
        self._stop_if_asked(control)
