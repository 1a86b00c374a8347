"""Ctrl-C and SIGTERM: finish the step, save, stop. A second Ctrl-C stops at once."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

from transformers import TrainerCallback, TrainerControl

from ldadam.training.ranks import Ranks

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopOnSignal(TrainerCallback):
    """Inside `with`, a signal to any rank asks the training loop of all to save and stop at the next safe moment.

    Attributes:
        agreed: the signal that all ranks have stopped for.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.agreed: signal.Signals | None = None
        self._ranks = ranks
        self._received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopOnSignal:
        self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None and self._ranks.grouped:
            # torchrun ends all ranks as soon as one has failed, and this one has a sentence to say first.
            self._previous[signal.SIGTERM] = signal.SIG_IGN
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            raise KeyboardInterrupt
        self._received = signal.Signals(number)

    def _stop_if_asked(self, control: TrainerControl) -> None:
        if number := int(self._ranks.max(self._received or 0)):
            self.agreed = signal.Signals(number)
            control.should_save = True
            control.should_training_stop = True

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **_: Any) -> None:
        """The step is finished: weights, optimizer and schedule agree."""
        self._stop_if_asked(control)

    def on_evaluate(self, args: Any, state: Any, control: TrainerControl, **_: Any) -> None:
        """An evaluation may take longer than anyone wants to wait for the next step."""
        self._stop_if_asked(control)
