"""LDAdamW in Lightning: what `configure_optimizers` returns, and a callback that logs what the subspace keeps."""

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ldadam.integrations.options import build_optimizer
from ldadam.monitor import SubspaceMonitor, names_in, summary
from ldadam.optimizer import LDAdamW


def configure_ldadamw(
    module: LightningModule, *, lr: Any, schedule: Callable[[Optimizer], LRScheduler] | None = None, **options: Any
) -> dict[str, Any]:
    """What `LightningModule.configure_optimizers` returns for LDAdamW over the module's own parameters.

    Args:
        module: parameters with `requires_grad=False` are left out.
        lr: peak learning rate.
        schedule: from the optimizer to a scheduler, which is stepped after each optimizer step; Lightning's default
            would step it after each epoch. `module.trainer.estimated_stepping_batches` is the number of steps.
        options: further arguments of `LDAdamW` and of `lowrank_param_groups`; values may be text.

    Raises:
        ValueError: a value is out of range.
        TypeError: an option that `LDAdamW` does not have.

    Example:
        >>> import lightning, torch
        >>> from ldadam.integrations.lightning import configure_ldadamw
        >>> class Module(lightning.LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = torch.nn.Linear(64, 64)
        ...     def configure_optimizers(self):
        ...         return configure_ldadamw(self, lr=1e-3, rank=8)
        >>> Module().configure_optimizers()["optimizer"].param_groups[0]["rank"]
        8
    """
    configured: dict[str, Any] = {"optimizer": build_optimizer(module, lr=lr, **options)}
    if schedule is not None:
        configured["lr_scheduler"] = {"scheduler": schedule(configured["optimizer"]), "interval": "step"}
    return configured


class SubspaceCallback(Callback):
    """Logs what the subspace keeps to the Trainer's loggers: `ldadam.monitor.summary`, each name after `ldadam/`.

    Lightning shows gradients to callbacks before it clips them, so the fractions would be of other gradients than those
    of the step: with `gradient_clip_val` it is refused.

    Args:
        every: optimizer steps from one measurement to the next, which costs a pass over gradients and error buffers;
            by default the Trainer's `log_every_n_steps`.
    """

    def __init__(self, *, every: int | None = None) -> None:
        self._every = every
        self._monitor: SubspaceMonitor | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse clipping, of which this hook comes too early to see the result."""
        if trainer.gradient_clip_val:
            raise ValueError(
                f"SubspaceCallback sees gradients before gradient_clip_val={trainer.gradient_clip_val} changes them; "
                "leave one of the two out (LDAdam is published without clipping)"
            )

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Gradients are accumulated."""
        every = self._every or trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(optimizer, LDAdamW) and every and (trainer.global_step + 1) % every == 0:
            self._monitor = SubspaceMonitor(optimizer, names_in(optimizer))
            self._monitor.before_step()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The step of this batch has been taken."""
        if self._monitor is not None:
            values = {f"ldadam/{name}": value for name, value in summary(self._monitor).items()}
            for logger in trainer.loggers:
                logger.log_metrics(values, step=trainer.global_step)
            self._monitor = None
