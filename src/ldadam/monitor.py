"""What the subspace keeps: ‖UUᵀA‖/‖A‖ of each matrix, and the norm of its error buffer.

A = G + E exists inside the step only. ‖A‖ is taken before it, and UᵀA is recovered after it from the first moment:

    m = β₁ UᵀU₋ m₋ + (1-β₁) UᵀA     so     UᵀA = (m - β₁ UᵀU₋ m₋)/(1-β₁)

which needs copies of the small m₋ and U₋ only. At a parameter's first step m₋ = 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ldadam import error_buffer
from ldadam.distributed import is_sharded
from ldadam.optimizer import LDAdamW, param_name
from ldadam.storages import storage_bytes, tensors_in

LOW_RANK_STATE = ("exp_avg", "basis")


@dataclass
class _Before:
    """One parameter before the step."""

    name: str
    parameter: Tensor
    beta1: float
    step: float
    norm: Tensor  # ‖A‖
    exp_avg: Tensor | None
    basis: Tensor | None


class SubspaceMonitor:
    """Measures the steps between `before_step` and `after_step`; costs a pass over G and E, so call it now and then.

    Of sharded parameters each matrix is gathered in turn, on all ranks.
    """

    def __init__(self, optimizer: Optimizer, names: Mapping[Any, str]) -> None:
        self.optimizer = optimizer
        self.names = names
        self._before: dict[Tensor, _Before] = {}

    def before_step(self) -> None:
        """Record ‖A‖ and copy m₋ and U₋ of each matrix. Gradients are final: clipped, accumulated."""
        for index, group in enumerate(self.optimizer.param_groups):
            for parameter in group["params"]:
                self.before_step_of(parameter, index)

    @torch.no_grad()
    def before_step_of(self, parameter: Tensor, index: int) -> None:
        """The same for one parameter of param group `index`; a later call replaces an earlier one."""
        group, state = self.optimizer.param_groups[index], self.optimizer.state.get(parameter)
        # Groups of other optimizers may have a rank or a rho too.
        is_low_rank = {"rho", "rank", "proj_method"} <= group.keys() and group["rank"] is not None
        if is_low_rank and parameter.grad is not None and (not state or "basis" in state):
            self._before[parameter] = self._record(parameter, beta1=float(group["betas"][0]))

    def _record(self, parameter: Tensor, *, beta1: float) -> _Before:
        state = whole_state(self.optimizer.state.get(parameter, {}))
        corrected = whole(parameter.grad if parameter.grad is not None else parameter).float()
        if "error_buffer" in state:
            corrected = corrected + error_buffer.read(state, corrected.shape, corrected.dtype)
        exp_avg, basis = (state[key].clone() if key in state else None for key in LOW_RANK_STATE)
        norm = torch.linalg.vector_norm(corrected)
        return _Before(self.names[parameter], parameter, beta1, step_of(state), norm, exp_avg, basis)

    @torch.no_grad()
    def after_step(self) -> dict[str, dict[str, float]]:
        """`captured` and `error_norm`, each a number per matrix that was stepped: a GradScaler may have skipped it."""
        captured, error_norm = {}, {}
        for before in self._before.values():
            state = whole_state(self.optimizer.state.get(before.parameter, {}))
            if "basis" not in state or step_of(state) == before.step:
                continue
            kept = torch.linalg.vector_norm(low_rank_gradient(before, state["exp_avg"], state["basis"]))
            captured[before.name] = float(kept / before.norm) if before.norm > 0 else 1.0
            if "error_buffer" in state:
                error = error_buffer.read(state, before.parameter.shape, torch.float32)
                error_norm[before.name] = float(torch.linalg.vector_norm(error))
        self._before = {}
        return {"captured": captured, "error_norm": error_norm}


def step_of(state: Mapping[str, Tensor]) -> float:
    """How many steps made this state."""
    return float(state.get("step", 0))


def low_rank_gradient(before: _Before, exp_avg: Tensor, basis: Tensor) -> Tensor:
    """UᵀA (r×n), recovered from the first moment before and after the step."""
    if before.exp_avg is None or before.basis is None:
        return exp_avg / (1 - before.beta1)
    carried = (basis.mT @ before.basis) @ before.exp_avg
    return (exp_avg - before.beta1 * carried) / (1 - before.beta1)


def names_in(optimizer: LDAdamW) -> dict[Tensor, str]:
    """The name of each parameter, as far as the optimizer knows it."""
    return {
        parameter: param_name(group, index, position)
        for index, group in enumerate(optimizer.param_groups)
        for position, parameter in enumerate(group["params"])
    }


def summary(monitor: SubspaceMonitor) -> dict[str, float]:
    """After a step, a few numbers for a logger.

    Returns:
        `captured` and `captured_min`, the mean and the smallest of ‖UUᵀA‖/‖A‖ over matrices; `error_norm`, that of all
        error buffers together; `state_bytes` of the optimizer on this rank. What was not measured is left out.
    """
    measured, values = monitor.after_step(), {}
    if captured := measured["captured"].values():
        values |= {"captured": sum(captured) / len(captured), "captured_min": min(captured)}
    if norms := measured["error_norm"].values():
        values["error_norm"] = math.hypot(*norms)
    tensors = [value for state in monitor.optimizer.state.values() for value in state.values()]
    return {**values, "state_bytes": float(storage_bytes(tensors))}


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which each rank may hold a part, gathered; all ranks ask for it at the same time."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def whole_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a parameter, gathered."""
    return {key: whole(value) for key, value in state.items()}


def bytes_by_category(model: torch.nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Bytes of weights, gradients and optimizer state by kind on this rank, counted from storages of live tensors."""
    parameters = list(model.parameters())
    kinds: dict[str, list[Tensor]] = {}
    for state in optimizer.state.values():
        for kind, value in state.items():
            kinds.setdefault(kind, []).extend(tensors_in(value))
    return {
        "weights": storage_bytes(parameters),
        "gradients": storage_bytes([p.grad for p in parameters if p.grad is not None]),
        "optimizer": {kind: storage_bytes(tensors) for kind, tensors in sorted(kinds.items()) if tensors},
    }
