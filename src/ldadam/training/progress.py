"""The progress bar of a run: step, loss, tokens per second, time left."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from ldadam.training.clock import TrainingClock


class Progress:
    """A live bar on a terminal; elsewhere one line per evaluation."""

    def __init__(self, title: str, *, num_steps: int, clock: TrainingClock, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet)
        self.num_steps = num_steps
        self.clock = clock
        self._smooth_loss: float | None = None
        self._tokens_here = 0
        self._first_seconds = 0.0
        self._bar = RichProgress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TaskProgressColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[speed]} tokens/s  left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=quiet or not self.console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=num_steps, loss="-", speed="-")

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def begin(self, step: int) -> None:
        """Training starts, or goes on, after `step` steps."""
        self._first_seconds = self.clock.seconds()
        self._bar.update(self._task, completed=step)

    def speed(self) -> float:
        """Tokens per second of this process so far."""
        return self._tokens_here / max(self.clock.seconds() - self._first_seconds, 1e-9)

    def advance(self, step: int, loss: float, num_tokens: int) -> None:
        """One step of so many tokens is done."""
        self._tokens_here += num_tokens
        self._smooth_loss = loss if self._smooth_loss is None else 0.9 * self._smooth_loss + 0.1 * loss
        self._bar.update(self._task, completed=step, loss=f"{self._smooth_loss:.4f}", speed=f"{self.speed():,.0f}")

    def evaluated(self, step: int, loss: float, scores: Mapping[str, float]) -> None:
        """An evaluation is done."""
        found = "".join(f"{name} {score:.4f}  " for name, score in scores.items())
        self.console.print(
            f"step {step:>6}/{self.num_steps}  validation loss {loss:.4f}  {found}"
            f"{self.clock.seconds():7.1f} s  {self.speed():,.0f} tokens/s",
            highlight=False,
            soft_wrap=True,
        )
