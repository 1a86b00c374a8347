"""`step_in_backward`: each parameter is moved as soon as backward has its gradient, which is freed at once."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakMethod

import torch
from torch import Tensor

from ldadam.distributed import refuse_local_gradients
from ldadam.optimizer import LDAdamW, param_name


def step_in_backward(
    optimizer: LDAdamW, *, accumulation_steps: int = 1, clip_norm: float | None = None
) -> "StepInBackward":
    """Move each parameter inside `loss.backward()`, so that one gradient is alive at a time, not all of them.

    The result is that of `optimizer.step()` after backward. Keep calling `step()` once per accumulation: closures,
    schedulers and trainers need it, and it moves what backward has not: parameters that got fewer gradients than
    `accumulation_steps`, that were added or unfrozen later, or whose `.grad` was set by hand. `zero_grad()` stays
    harmless after it.

    With `accumulation_steps` above 1, the gradients of micro-batches are added into the error buffers of low-rank
    parameters (rounded to the buffer's dtype) and freed; the last backward moves the parameter. What has no error
    buffer, and groups with `skip_nonfinite`, `capturable` or `scaled_residual`, accumulate in `.grad`.

    Not possible, since it needs all gradients at once or after backward:

    - Clipping by the global norm. `clip_grad_norm_` after backward finds no gradients and clips nothing, silently.
    - `torch.amp.GradScaler`: backward has the scaled gradient. Refused at the first `scaler.step(optimizer)`; use
      bfloat16, which needs no scaler.
    - Data parallelism, where gradients are averaged after the hook has seen them (`DistributedDataParallel`). Refused
      at the first gradient that some processes do not share. FSDP2 and HSDP reduce gradients first, and are exact;
      reduction points are then one parameter's, not one step's. So they are under `compress_gradients`, where DDP
      averages dense parameters, which `optimizer.step()` moves.
    - Using a graph twice (`retain_graph=True`), which torch refuses once weights have moved, and reentrant activation
      checkpointing of a parameter that several segments share, which `step()` refuses.

    Args:
        optimizer: its parameters that require a gradient get a hook.
        accumulation_steps: how many backward passes make one step; scale each loss accordingly, as usual.
        clip_norm: largest L2 norm of the gradient of one parameter, in units of the gradient; larger ones are scaled
            down to it. This is not the global norm. Only without accumulation.

    Returns:
        A handle: `remove()`, or leaving it as a context, brings the ordinary path back. It need not be kept.

    Raises:
        TypeError: not an `LDAdamW`, such as a wrapper around one.
        ValueError: an argument is out of range, or the optimizer already steps in backward.
        NotImplementedError: in backward, where other processes may have another gradient, or with `clip_norm` under
            `compress_gradients`.
        RuntimeError: in `step()`, where a parameter got two steps or a GradScaler is at work; in `state_dict()`,
            between the micro-batches of one step, since part of the gradient would be lost.

    Examples:
        >>> import torch
        >>> from ldadam import LDAdamW, step_in_backward
        >>> model = torch.nn.Linear(64, 32)
        >>> optimizer = LDAdamW(model.named_parameters(), lr=1e-3, rank=8)
        >>> handle = step_in_backward(optimizer)
        >>> model(torch.randn(4, 64)).square().mean().backward()
        >>> optimizer.step()
        >>> model.weight.grad is None, optimizer.state[model.weight]["step"].item()
        (True, 1.0)
    """
    if not isinstance(optimizer, LDAdamW):
        raise TypeError(f"step_in_backward needs an LDAdamW, got {type(optimizer).__name__}; unwrap it first")
    if isinstance(accumulation_steps, bool) or not isinstance(accumulation_steps, int) or accumulation_steps < 1:
        raise ValueError(f"accumulation_steps must be an int >= 1, got {accumulation_steps!r}")
    if clip_norm is not None and not (math.isfinite(clip_norm) and clip_norm > 0):
        raise ValueError(f"clip_norm must be a finite number > 0, or None for no clipping, got {clip_norm!r}")
    if clip_norm is not None and accumulation_steps > 1:
        raise ValueError(
            f"clip_norm={clip_norm} needs the whole gradient of a step, which does not exist with "
            f"accumulation_steps={accumulation_steps}; leave one of them out"
        )
    if getattr(optimizer, _TALKS_TO_GRAD_SCALER, False):
        raise ValueError("this optimizer already steps in backward; call remove() on its handle first")
    return StepInBackward(optimizer, accumulation_steps, clip_norm)


# With this attribute GradScaler calls `step` whether or not it found gradients, and sets `grad_scale` before.
_TALKS_TO_GRAD_SCALER = "_step_supports_amp_scaling"


@dataclass
class _Progress:
    """Where a parameter is in the optimizer's groups, and what it has seen since the last `optimizer.step()`."""

    index: int
    position: int
    num_summed: int = 0  # micro-batches that wait for their step
    in_buffer: bool = False  # whether their sum is in the error buffer
    num_steps: int = 0

    def forget_sum(self) -> None:
        """There is nothing that waits for its step."""
        self.num_summed, self.in_buffer = 0, False

    def forget(self) -> None:
        """Begin anew."""
        self.forget_sum()
        self.num_steps = 0


def _call_if_alive(method: WeakMethod[Any], progress: _Progress, param: Tensor) -> None:
    """The optimizer keeps the handle alive. Hooks must not: Python cannot collect a cycle through those of a tensor."""
    alive = method()
    if alive is not None:
        alive(progress, param)


class StepInBackward:
    """What `step_in_backward` returns: `remove()`, or leave it as a context, to step after backward again."""

    def __init__(self, optimizer: LDAdamW, accumulation_steps: int, clip_norm: float | None):
        self._optimizer = optimizer
        self._accumulation_steps = accumulation_steps
        self._clip_norm = clip_norm
        self._progress: dict[Tensor, _Progress] = {}
        self._handles = [
            optimizer.register_step_pre_hook(self._refuse_grad_scaler),
            optimizer.register_step_post_hook(self._finish),
            optimizer.register_state_dict_pre_hook(self._refuse_partial_sums),
            optimizer.register_load_state_dict_post_hook(self._forget),
        ]
        for index, group in enumerate(optimizer.param_groups):
            for position, param in enumerate(group["params"]):
                if param.requires_grad:
                    progress = self._progress[param] = _Progress(index, position)
                    hook = partial(_call_if_alive, WeakMethod(self._on_gradient), progress)
                    self._handles.append(param.register_post_accumulate_grad_hook(hook))
        setattr(optimizer, _TALKS_TO_GRAD_SCALER, True)

    def remove(self) -> None:
        """Step after backward again. Sums of micro-batches stay where they are and enter the next step."""
        for handle in self._handles:
            handle.remove()
        if self._handles:
            delattr(self._optimizer, _TALKS_TO_GRAD_SCALER)
        self._handles = []

    def __enter__(self) -> "StepInBackward":
        """The handle itself; it is active already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the hooks."""
        self.remove()

    @torch.no_grad()
    def _on_gradient(self, progress: _Progress, param: Tensor) -> None:
        """Backward has added to `param.grad`: sum it up, or take the step."""
        replicas = self._optimizer.replicas
        if replicas and param not in replicas:
            return  # DistributedDataParallel averages it after this hook, so that `optimizer.step()` moves it
        refuse_local_gradients(param, replicas=replicas.get(param, ()))
        self._refuse_local_norm(param, progress)
        progress.num_summed += 1
        if progress.num_summed < self._accumulation_steps:
            progress.in_buffer = self._optimizer.accumulate_(progress.index, progress.position)
            if progress.in_buffer:
                param.grad = None
            return
        if self._clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(param, self._clip_norm)
        self._step(param, progress)

    def _step(self, param: Tensor, progress: _Progress) -> None:
        self._optimizer.step_params({progress.index: [progress.position]})
        param.grad = None
        progress.forget_sum()
        progress.num_steps += 1

    def _refuse_local_norm(self, param: Tensor, progress: _Progress) -> None:
        if self._clip_norm is not None and param in self._optimizer.replicas:
            raise NotImplementedError(
                f"clip_norm={self._clip_norm} needs the gradient of {self._name(progress)} averaged over ranks, which "
                "compress_gradients never forms: leave it out, or step after backward and call "
                "ldadam.distributed.clip_grad_norm_ before"
            )

    def _refuse_grad_scaler(self, optimizer: Any, *_: Any) -> None:
        if hasattr(optimizer, "grad_scale"):
            raise RuntimeError(
                "a GradScaler cannot work with step_in_backward: backward has moved the parameters by gradients of the "
                "scaled loss already. Start again with bfloat16, which needs no scaler, or without step_in_backward"
            )

    @torch.no_grad()
    def _finish(self, *_: Any) -> None:
        """After `optimizer.step()`, which has moved what still had a gradient: move what is summed up in buffers."""
        for param, progress in self._progress.items():
            self._refuse_second_step(param, progress)
            if progress.in_buffer and param.grad is None:
                param.grad = torch.zeros_like(param)
                self._step(param, progress)
            param.grad = None
            progress.forget()

    def _refuse_second_step(self, param: Tensor, progress: _Progress) -> None:
        is_pending = param.grad is not None or progress.in_buffer
        if progress.num_steps + is_pending <= 1:
            return
        reason = (
            "its gradient was set after backward had moved it, by hand or by DistributedDataParallel; call remove() on "
            "the handle of step_in_backward to step after backward"
            if is_pending and not progress.num_summed
            else f"backward ran more often than accumulation_steps={self._accumulation_steps} times; give "
            "step_in_backward the number of backward passes of one step, and call step() once after them"
        )
        raise RuntimeError(f"{self._name(progress)} was to move more than once before step(): {reason}")

    def _refuse_partial_sums(self, *_: Any) -> None:
        for progress in self._progress.values():
            if progress.num_summed:
                raise RuntimeError(
                    f"state_dict() between micro-batches: {self._name(progress)} has seen {progress.num_summed} of "
                    f"{self._accumulation_steps}, and their sum would be mistaken for error feedback; save after "
                    "optimizer.step(), which also takes an unfinished step"
                )

    def _forget(self, *_: Any) -> None:
        """The loaded error buffers have no sums in them."""
        for progress in self._progress.values():
            progress.forget()

    def _name(self, progress: _Progress) -> str:
        return param_name(self._optimizer.param_groups[progress.index], progress.index, progress.position)
