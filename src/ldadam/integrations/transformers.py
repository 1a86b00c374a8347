"""LDAdamW in the Trainer of Hugging Face Transformers, and in what is built on it: TRL, Axolotl.

The Trainer hands an optimizer of one's own nothing from its arguments, not even the learning rate: it has to be passed.
"""

import warnings
from typing import Any

from torch import nn
from torch.optim import Optimizer
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ldadam.in_backward import StepInBackward, step_in_backward
from ldadam.integrations.options import build_optimizer
from ldadam.monitor import SubspaceMonitor, names_in, summary
from ldadam.optimizer import LDAdamW
from ldadam.param_groups import LDAdamWarning


class LDAdamWFactory:
    """Builds `LDAdamW` when a Trainer asks for its optimizer; for transformers 5.2 and newer.

    It sees the model that is trained, with the adapters that TRL puts into it. Values may be text.

    Example:
        >>> import torch
        >>> from ldadam.integrations.transformers import LDAdamWFactory
        >>> optimizer = LDAdamWFactory()(torch.nn.Linear(64, 64), lr=1e-3, rank="8")
        >>> # in a Trainer: Trainer(model, args, optimizer_cls_and_kwargs=(LDAdamWFactory, {"lr": 1e-3, "rank": 8}))
    """

    def __call__(
        self,
        model: nn.Module,
        training_args: TrainingArguments | None = None,
        *,
        lr: Any = None,
        weight_decay: Any = None,
        **options: Any,
    ) -> LDAdamW:
        """The optimizer of a model.

        Args:
            model: the model to train.
            training_args: Axolotl passes it, the Trainer does not; only the learning rate and the weight decay are
                read, since its betas and epsilon have defaults that are not LDAdam's.
            lr: peak learning rate; by default that of `training_args`.
            weight_decay: decoupled, none on vectors and scalars; by default that of `training_args`, else 0.
            options: further arguments of `LDAdamW` and of `lowrank_param_groups`.

        Raises:
            ValueError: there is no learning rate, or a value is out of range.
            TypeError: an option that `LDAdamW` does not have.
        """
        if training_args is not None:
            lr = training_args.learning_rate if lr is None else lr
            weight_decay = training_args.weight_decay if weight_decay is None else weight_decay
        if lr is None:
            raise ValueError(
                "LDAdamWFactory got no lr: the Trainer does not hand over its learning_rate; pass "
                'optimizer_cls_and_kwargs=(LDAdamWFactory, {"lr": args.learning_rate, ...})'
            )
        return build_optimizer(model, lr=lr, weight_decay=0.0 if weight_decay is None else weight_decay, **options)


def optimizer_cls_and_kwargs(
    model: nn.Module, args: TrainingArguments, **options: Any
) -> tuple[type[LDAdamW], dict[str, Any]]:
    """What `Trainer(optimizer_cls_and_kwargs=...)` takes from transformers 4.47 on, where factories are unknown.

    Args:
        model: the one that the Trainer trains, adapters included: its parameters are sorted into groups here.
        args: where the learning rate and the weight decay come from, unless `options` has them.
        options: as in `LDAdamWFactory`.

    Returns:
        `LDAdamW` and its arguments, the param groups among them as "params".

    Raises:
        ValueError: a value is out of range.

    Example:
        >>> import torch
        >>> from transformers import TrainingArguments
        >>> from ldadam.integrations.transformers import optimizer_cls_and_kwargs
        >>> args = TrainingArguments(learning_rate=1e-3, use_cpu=True)
        >>> cls, kwargs = optimizer_cls_and_kwargs(torch.nn.Linear(64, 64), args, rank=8)
        >>> cls.__name__, kwargs["lr"]
        ('LDAdamW', 0.001)
    """
    optimizer = LDAdamWFactory()(model, args, **options)
    return LDAdamW, {**optimizer.defaults, "params": optimizer.param_groups}


def unwrap(optimizer: Optimizer) -> LDAdamW:
    """The LDAdamW that Accelerate has wrapped.

    Raises:
        TypeError: it is another optimizer.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    if not isinstance(inner, LDAdamW):
        raise TypeError(f"expected the Trainer to train with LDAdamW, got {type(inner).__name__}")
    return inner


class SubspaceCallback(TrainerCallback):
    """Logs what the subspace keeps, through the Trainer's own loggers: console, TensorBoard, Weights & Biases.

    `ldadam/captured` is the mean over matrices of ‖UUᵀA‖/‖A‖, `ldadam/captured_min` the smallest, `ldadam/error_norm`
    the norm of all error buffers, `ldadam/state_bytes` what the state takes on this rank. Sharded matrices are gathered
    in turn. Under `StepInBackwardCallback` the gradients are gone before they can be measured, and the bytes are left.

    Args:
        trainer: whose loggers to use; `trainer.add_callback(SubspaceCallback(trainer))`.
        every: steps from one measurement to the next, which costs a pass over gradients and error buffers; by default
            the Trainer's `logging_steps`.
    """

    def __init__(self, trainer: Trainer, *, every: int | None = None) -> None:
        self._trainer = trainer
        self._every = every
        self._monitor: SubspaceMonitor | None = None

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Gradients are final: clipped and accumulated."""
        if (state.global_step + 1) % (self._every or state.logging_steps) == 0:
            optimizer = unwrap(kwargs["optimizer"])
            self._monitor = SubspaceMonitor(optimizer, names_in(optimizer))
            self._monitor.before_step()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The record has the number of the step that it is about."""
        if self._monitor is not None:
            values = {f"ldadam/{name}": value for name, value in summary(self._monitor).items()}
            self._monitor = None
            # Not `trainer.log`: TRL's would write and forget the metrics that it averages until the next loss. Logging
            # counts as that of the step, though the loss of it may still be due.
            is_loss_due = control.should_log
            Trainer.log(self._trainer, values)
            control.should_log = is_loss_due


class StepInBackwardCallback(TrainerCallback):
    """Moves each parameter inside backward, so that one gradient is alive at a time: `ldadam.step_in_backward`.

    The Trainer's `gradient_accumulation_steps` are summed up in the error buffers. It cannot clip: with its default of
    `max_grad_norm=1.0` it would find no gradients, and a warning says so; set it to 0.
    """

    def __init__(self) -> None:
        self._handle: StepInBackward | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The optimizer is the one that is going to be used, its state loaded."""
        self.on_train_end(args, state, control)  # which an interrupted training has not reached
        if args.max_grad_norm:
            warnings.warn(
                f"max_grad_norm={args.max_grad_norm} clips nothing, since step_in_backward has used each gradient "
                "before the Trainer looks at it; set max_grad_norm=0",
                LDAdamWarning,
                stacklevel=2,
            )
        self._handle = step_in_backward(
            unwrap(kwargs["optimizer"]), accumulation_steps=args.gradient_accumulation_steps
        )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The optimizer steps after backward again."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
