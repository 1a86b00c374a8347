"""Watches a run and writes what it sees: loss, speed, subspace and memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState

from ldadam.monitor import SubspaceMonitor, bytes_by_category
from ldadam.training.clock import OptimizerTimer, TrainingClock
from ldadam.training.layouts import SHARDED
from ldadam.training.metrics import METRICS_FILE, MetricsFile
from ldadam.training.ranks import Ranks
from ldadam.training.run_config import RunConfig

if TYPE_CHECKING:
    from ldadam.training.progress import Progress

STATE_FILE = "ldadam_state.json"


class Recorder(TrainerCallback):
    """Makes one record per logged step and keeps what is needed to go on with it after a resume.

    Every rank measures, since some of it takes all of them; rank 0 writes.
    """

    def __init__(
        self,
        config: RunConfig,
        run: Path,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        ranks: Ranks,
    ) -> None:
        self.config = config
        self.run = run
        self.ranks = ranks
        self.metrics = MetricsFile(run / METRICS_FILE)
        self.clock = TrainingClock()
        self.timer = OptimizerTimer(optimizer, next(model.parameters()).device)
        names = {parameter: name for name, parameter in model.named_parameters()}
        self.monitor = SubspaceMonitor(optimizer, names)
        self.model = model
        self.optimizer = optimizer
        self._progress: Progress | None = None
        self._earlier_seconds = 0.0
        self.lr = 0.0
        self.loss_sum = 0.0
        self.num_losses = 0
        self.num_tokens = 0
        self.tokens_at_last_record = 0
        self.seconds_at_last_record = 0.0
        self._new_losses: list[Tensor] = []
        self._new_tokens: list[int | Tensor] = []
        self._measured: dict[str, dict[str, float]] = {}
        self._pending: dict[str, Any] | None = None
        self._memory_written = False
        self._step = 0

    # What the trainer tells

    def add_loss(self, loss: Tensor, num_tokens: int | Tensor) -> None:
        """One micro-batch's share of the loss of the current step, and its tokens on this rank."""
        self._new_losses.append(loss)
        self._new_tokens.append(num_tokens)

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold for the record to continue as if nothing had happened."""
        return {
            "loss_sum": self.loss_sum,
            "num_losses": self.num_losses,
            "num_tokens": self.num_tokens,
            "tokens_at_last_record": self.tokens_at_last_record,
            "seconds": self.clock.seconds(),
            "seconds_at_last_record": self.seconds_at_last_record,
        }

    def load_state(self, path: Path) -> float:
        """Take over the state of a checkpoint; returns the seconds that were spent before it."""
        state = json.loads(path.read_text(encoding="utf-8"))
        self.loss_sum, self.num_losses = state["loss_sum"], state["num_losses"]
        self.num_tokens, self.tokens_at_last_record = state["num_tokens"], state["tokens_at_last_record"]
        self.seconds_at_last_record = state["seconds_at_last_record"]
        return state["seconds"]

    def begin(self, progress: Progress, *, seconds: float) -> None:
        """Where to show progress, and the seconds spent before this process."""
        self._progress = progress
        self._earlier_seconds = seconds

    # What the training loop calls

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Everything is loaded: the clock starts."""
        self.clock.start(self._earlier_seconds)
        if self._progress is not None:
            self._progress.begin(state.global_step)

    def _monitored(self, step: int) -> bool:
        every = 0 if self.config.parallel == "compressed" else self.config.monitor_every
        return bool(every) and (step == 1 or step % every == 0)

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The step that the next gradients belong to."""
        self._step = state.global_step + 1
        self.ranks.waiting_for = f"the gradients of step {self._step}"

    def before_step_in_backward(self, index: int, parameter: Tensor) -> None:
        """Backward has the gradient of a parameter of param group `index`, and will move the parameter."""
        if self._monitored(self._step):
            with self.clock.paused():
                self.monitor.before_step_of(parameter, index)
        self.timer.begin()

    def after_step_in_backward(self, parameter: Tensor) -> None:
        """It has moved it, or kept the gradient of a micro-batch."""
        self.timer.end()

    def on_pre_optimizer_step(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Gradients are final; the learning rate is the one that this step uses."""
        self.lr = float(self.optimizer.param_groups[0]["lr"])
        self.ranks.waiting_for = f"the optimizer in step {state.global_step + 1}"
        if self._monitored(state.global_step + 1):
            with self.clock.paused():
                self.monitor.before_step()

    def on_optimizer_step(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """State is new, gradients are still there: the moment to measure both."""
        if self._monitored(state.global_step + 1):
            with self.clock.paused():
                self._measured = self.monitor.after_step()
        if not self._memory_written and self.ranks.is_first:
            with self.clock.paused():
                self._write_memory()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Make a record when it is due; it waits for the validation loss if one is coming."""
        assert self.config.log_every
        self.ranks.waiting_for = f"the loss of step {state.global_step}"
        step_loss = self.ranks.mean(torch.stack(self._new_losses).sum().item())
        step_tokens = int(sum(self._new_tokens)) * self.ranks.size
        self._new_losses, self._new_tokens = [], []
        self.num_tokens += step_tokens
        self.loss_sum += step_loss
        self.num_losses += 1
        if self._progress is not None:
            self._progress.advance(state.global_step, step_loss, step_tokens)
        if state.global_step % self.config.log_every == 0 or control.should_evaluate or self._measured:
            self._pending = self._record(state.global_step)
        if not control.should_evaluate:
            self._write_pending()

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **event: Any) -> None:
        """Complete the record of this step with the validation loss, and the task's own scores where it has some."""
        loss, scores = event["metrics"]["eval_loss"], event["metrics"].get("eval_scores", {})
        if self._pending is not None:
            self._pending |= {"val_loss": loss, **({"scores": scores} if scores else {})}
        if self._progress is not None:
            self._progress.evaluated(state.global_step, loss, scores)
        self._write_pending()

    # Records

    def _record(self, step: int) -> dict[str, Any]:
        seconds, optimizer_seconds, steps = self.clock.seconds(), self.timer.take(), self.num_losses
        step_seconds = (seconds - self.seconds_at_last_record) / steps
        record = {
            "step": step,
            "loss": self.loss_sum / steps,
            "lr": self.lr,
            "tokens": self.num_tokens,
            "seconds": seconds,
            "step_seconds": step_seconds,
            "optimizer_seconds": optimizer_seconds / steps,
            "tokens_per_second": (self.num_tokens - self.tokens_at_last_record) / (steps * step_seconds),
            **self._measured,
        }
        self.loss_sum, self.num_losses, self._measured = 0.0, 0, {}
        self.seconds_at_last_record, self.tokens_at_last_record = seconds, self.num_tokens
        return record

    def _write_pending(self) -> None:
        if self._pending is not None and self.ranks.is_first:
            self.metrics.append(self._pending)
        self._pending = None

    def _write_memory(self) -> None:
        """Bytes after the first step of this process, beside the optimizer's own plan where it has one for a rank."""
        from ldadam import LDAdamW, describe

        counted: dict[str, Any] = {"counted": bytes_by_category(self.model, self.optimizer), "planned": None}
        if isinstance(self.optimizer, LDAdamW) and self.config.parallel not in SHARDED:
            counted["planned"] = describe(self.optimizer).state_bytes
        (self.run / "memory.json").write_text(json.dumps(counted, indent=1), encoding="utf-8")
        self._memory_written = True
