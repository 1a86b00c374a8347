"""From a model and the options that a trainer hands over, some of them as text, to an optimizer."""

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ldadam.hyperparameters import NAMES
from ldadam.optimizer import DEFAULTS, LDAdamW
from ldadam.param_groups import lowrank_param_groups
from ldadam.spelling import did_you_mean

# Options that are words, and regular expressions: everything else that arrives as text is a number, a switch or a pair.
_WORDS = ("proj_type", "proj_method", "error_dtype", "backend", "target_modules")
_CONSTANTS = {"true": True, "false": False, "none": None, "null": None}


def build_optimizer(
    model: nn.Module,
    *,
    lr: Any,
    rank: Any = DEFAULTS.rank,
    weight_decay: Any = DEFAULTS.weight_decay,
    target_modules: str | Sequence[str] | None = None,
    rank_overrides: Any = None,
    dense_lr: Any = None,
    **options: Any,
) -> LDAdamW:
    """`LDAdamW` over `lowrank_param_groups(model)`; every value may be text, as trainers pass it from a command line.

    Args:
        model: any module; parameters with `requires_grad=False` are left out.
        lr: as in `LDAdamW`.
        rank: as in `lowrank_param_groups`.
        weight_decay: as in `lowrank_param_groups`: none on vectors and scalars.
        target_modules: as in `lowrank_param_groups`.
        rank_overrides: as in `lowrank_param_groups`.
        dense_lr: as in `lowrank_param_groups`: of embeddings, heads and vectors.
        options: further arguments of `LDAdamW`.

    Raises:
        ValueError: a value is out of range, or text that is none.
        TypeError: an option that `LDAdamW` does not have.

    Example:
        >>> import torch
        >>> from ldadam.integrations.options import build_optimizer
        >>> optimizer = build_optimizer(torch.nn.Linear(64, 64), lr="1e-3", rank="8", error_feedback="true")
        >>> optimizer.param_groups[0]["rank"], optimizer.defaults["error_feedback"]
        (8, True)
    """
    for name in options:
        if name not in NAMES:
            known = (*NAMES, "target_modules", "rank_overrides", "dense_lr")
            hint = did_you_mean(name, known, otherwise=f"expected some of {', '.join(known)}")
            raise TypeError(f"LDAdamW has no option {name!r}: {hint}")
    overrides = _parse("rank_overrides", rank_overrides)
    if not (overrides is None or isinstance(overrides, Mapping)):
        raise ValueError(f"rank_overrides must map regular expressions to ranks, got {rank_overrides!r}")
    parsed = {"lr": lr, "rank": rank, "weight_decay": weight_decay, **options}
    parsed = {name: _parse(name, value) for name, value in parsed.items()}
    groups = lowrank_param_groups(
        model,
        rank=parsed["rank"],
        target_modules=_parse("target_modules", target_modules),
        rank_overrides=overrides,
        weight_decay=parsed["weight_decay"],
        dense_lr=_parse("dense_lr", dense_lr),
    )
    return LDAdamW(groups, **parsed)


def _parse(name: str, value: Any) -> Any:
    """What a text stands for. Text that is no Python literal stays what it is, for the check of the option to name."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.lower() in _CONSTANTS:
        return _CONSTANTS[text.lower()]
    if name in _WORDS:
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return value
