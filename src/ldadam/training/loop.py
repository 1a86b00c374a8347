"""The training loop of any run, from a checkpoint or from nothing, to its last step or a signal."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from ldadam import LDAdamW
from ldadam.training import run_folder
from ldadam.training.errors import Interrupted
from ldadam.training.in_backward import stepping_in_backward
from ldadam.training.interrupts import StopOnSignal
from ldadam.training.progress import Progress
from ldadam.training.recorded_trainer import RecordedTrainer
from ldadam.training.recorder import STATE_FILE


def train_to_the_end(trainer: RecordedTrainer, stop: StopOnSignal, *, checkpoint: Path | None, title: str) -> None:
    """Train, showing progress; go on from `checkpoint` where there is one.

    Raises:
        Interrupted: a signal came, and the state has been saved.
    """
    recorder, ranks, num_steps = trainer.recorder, trainer.ranks, trainer.args.max_steps
    earlier_seconds = recorder.load_state(checkpoint / STATE_FILE) if checkpoint else 0.0
    progress = Progress(title, num_steps=num_steps, clock=recorder.clock, quiet=not ranks.is_first)
    with progress, stop, _stepping(trainer):
        recorder.begin(progress, seconds=earlier_seconds)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if stop.agreed is not None and trainer.state.global_step < num_steps:
        raise Interrupted(
            f"stopped by {stop.agreed.name} after step {trainer.state.global_step} of {num_steps}: "
            f"{run_folder.what_can_be_resumed(trainer.run_folder)}"
        )


def _stepping(trainer: RecordedTrainer) -> AbstractContextManager:
    """Where the optimizer steps: in backward, or where the trainer calls it."""
    config, optimizer = trainer.settings, trainer.optimizer
    if not config.step_in_backward:
        return nullcontext()
    assert isinstance(optimizer, LDAdamW) and config.grad_accum
    return stepping_in_backward(optimizer, trainer.recorder, accumulation_steps=config.grad_accum)
