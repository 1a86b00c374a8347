"""Defaults, ranges and messages: one param group, resolved into a frozen dataclass."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from ldadam.error_buffer import ERROR_DTYPES, error_dtype_name
from ldadam.layout import PROJ_TYPES
from ldadam.spelling import did_you_mean
from ldadam.subspace import PROJ_METHODS

BACKENDS = ("auto", "eager", "batched", "compiled", "triton")


@dataclass(frozen=True)
class Hyperparameters:
    """Every hyperparameter of a param group, with the published defaults; see `LDAdamW` for their meaning."""

    lr: float | Tensor = 1e-3
    betas: tuple[float, float] = (0.908, 0.99)
    eps: float = 1e-8
    weight_decay: float = 0.0
    rank: int | float | None = 16
    rho: float = 0.908
    proj_type: str = "std"
    proj_method: str = "power_iteration"
    error_feedback: bool = True
    error_dtype: str | None = None
    update_interval: int = 1
    scaled_residual: bool = False
    maximize: bool = False
    backend: str = "auto"
    capturable: bool = False
    skip_nonfinite: bool = False
    stochastic_rounding: bool = False

    @property
    def device_step(self) -> bool:
        """Whether `step` is kept on the parameter's device, since the host must not or cannot know it."""
        return self.capturable or self.skip_nonfinite

    @property
    def has_zero_lr(self) -> bool:
        """Whether the host knows the learning rate to be zero; it does not look at one that a device keeps."""
        return not (isinstance(self.lr, Tensor) and self.lr.device.type != "cpu") and float(self.lr) == 0


NAMES = tuple(field.name for field in fields(Hyperparameters))


def resolve(group: Mapping[str, Any], index: int) -> Hyperparameters:
    """The hyperparameters of a param group, checked.

    Args:
        group: a param group of the optimizer. Keys that are not ours belong to a scheduler or a trainer.
        index: its number, for messages.

    Raises:
        ValueError: a value is out of range, or a key looks like one of ours, misspelt.
    """
    _refuse_misspelt(group, index)
    values = {name: group[name] for name in NAMES}
    for name, (is_valid, expected) in _RULES.items():
        if not is_valid(values[name]):
            raise ValueError(f"{name} must be {expected}; param group {index} has {name}={values[name]!r}")
    values["betas"] = tuple(float(beta) for beta in values["betas"])
    if isinstance(values["lr"], Tensor):
        values["lr"] = values["lr"].reshape(())
    values["error_dtype"] = error_dtype_name(values["error_dtype"])
    return Hyperparameters(**values)


def check_lr(value: Any, name: str) -> None:
    """Refuse what is no learning rate.

    Raises:
        ValueError: with the name that it was given by.
    """
    is_valid, expected = _RULES["lr"]
    if not is_valid(value):
        raise ValueError(f"{name} must be {expected}, got {value!r}")


def _refuse_misspelt(group: Mapping[str, Any], index: int) -> None:
    for key in group:
        if key in NAMES or key in _KEYS_OF_TORCH or not isinstance(key, str):
            continue
        if hint := did_you_mean(key, NAMES, similarity=0.75):
            raise ValueError(f"unknown option {key!r} in param group {index}: {hint}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_lr(value: Any) -> bool:
    if isinstance(value, Tensor):
        # The value of one on a device is not read: that would wait for the device at each step.
        return value.numel() == 1 and (value.device.type != "cpu" or _is_lr(value.item()))
    return _is_number(value) and value >= 0


def _is_beta(value: Any) -> bool:
    return _is_number(value) and 0 <= value < 1


def _are_betas(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(_is_beta(beta) for beta in value)


def _is_rank(value: Any) -> bool:
    if value is None or isinstance(value, bool):
        return value is None
    return (isinstance(value, int) and value >= 1) or (isinstance(value, float) and 0 < value < 1)


def _is_error_dtype(value: Any) -> bool:
    return value is None or error_dtype_name(value) in ERROR_DTYPES


def _is_interval(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _one_of(names: tuple[str, ...]):
    return (lambda value: isinstance(value, str) and value in names), "one of " + ", ".join(map(repr, names))


_BOOL = ((lambda value: isinstance(value, bool)), "True or False")
_NON_NEGATIVE = ((lambda value: _is_number(value) and value >= 0), "a finite number >= 0")

_RULES = {
    "lr": (_is_lr, "a finite number >= 0, or a tensor with one element"),
    "betas": (_are_betas, "two numbers, each >= 0 and < 1"),
    "eps": _NON_NEGATIVE,
    "weight_decay": _NON_NEGATIVE,
    "rank": (_is_rank, "a positive int, a fraction of the shorter side between 0 and 1, or None for dense AdamW"),
    "rho": (_is_beta, "a number >= 0 and < 1"),
    "proj_type": _one_of(PROJ_TYPES),
    "proj_method": _one_of(tuple(PROJ_METHODS)),
    "error_feedback": _BOOL,
    "error_dtype": (_is_error_dtype, f"None (the parameter's dtype) or one of {', '.join(map(repr, ERROR_DTYPES))}"),
    "update_interval": (_is_interval, "an int >= 1"),
    "scaled_residual": _BOOL,
    "maximize": _BOOL,
    "backend": _one_of(BACKENDS),
    "capturable": _BOOL,
    "skip_nonfinite": _BOOL,
    "stochastic_rounding": _BOOL,
}

# Keys that torch, its schedulers and common trainers put into groups and that resemble ours.
_KEYS_OF_TORCH = ("params", "param_names", "name", "initial_lr", "max_lr", "min_lr", "swa_lr", "fused", "foreach")
