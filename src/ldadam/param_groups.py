"""From a model to param groups: which weights get a rank, which stay dense, and why."""

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ldadam.hyperparameters import check_lr
from ldadam.layout import matrix_dims, resolve_rank


class LDAdamWarning(UserWarning):
    """A choice of the optimizer that its user may not expect."""


# What is dense by the name of the parameter, and the reason that `describe` gives. Matched from the left, in order.
DENSE_NAMES = {
    "LoRA factor": r"(^|[._])(lora|loha|lokr|hada|oft|vera)_",
    "embedding": r"(^|[._])(embed\w*|embedding\w*|wte|wpe|wtt|tok_emb\w*|pos_emb\w*|shared"
    r"|relative_attention_bias)(\.|$)",
    "output head": r"(^|\.)(lm_head|embed_out|classifier|score|qa_outputs|cls|out_head)(\.|$)"
    r"|^((model|module|_orig_mod)\.)*(head|output)\.weight$",
    "router": r"(^|\.)(router|gate|gating|wg)(\.|$)",
    "norm": r"(^|[._])(norm\w*|\w*norm|ln_?\w{0,3})(\.|$)",
}


def lowrank_param_groups(
    model: nn.Module,
    *,
    rank: int | float | None = None,
    target_modules: str | Sequence[str] | None = None,
    rank_overrides: Mapping[str, int | float | None] | None = None,
    weight_decay: float | None = None,
    dense_lr: float | None = None,
) -> list[dict[str, Any]]:
    """Param groups for `LDAdamW`: one for each rank, and those of dense AdamW last.

    Dense are vectors and scalars, embeddings, output heads (tied to an embedding or not), norms, routers, one-
    dimensional convolutions and LoRA factors. Parameters with `requires_grad=False` are left out.

    Args:
        model: any module.
        rank: of the low-rank parameters; None leaves it to the optimizer's default.
        target_modules: a regular expression, or several, searched in parameter names; only what one of them finds is
            low-rank. None means every matrix but the dense ones above.
        rank_overrides: regular expression to rank, the first that is found in the name counts. An int is a rank, a
            float a factor on `rank`, None means dense. An override wins over the rules above, except for vectors.
        weight_decay: for tensors of at least two dimensions; vectors and scalars get 0. None leaves it to the
            optimizer's default, for all.
        dense_lr: learning rate of all that is dense by the rules above, whatever rank an override gives it; matrices
            keep the optimizer's `lr`, with a rank or without. None leaves all of them to that.

    Returns:
        Groups with `params`, `param_names`, `rank` and, where given, `weight_decay` and `lr`.

    Raises:
        TypeError: `model` is no module.
        ValueError: a pattern matches no parameter, a factor is given without `rank`, or `dense_lr` is no learning rate.

    Examples:
        >>> import torch
        >>> from ldadam import LDAdamW, lowrank_param_groups
        >>> model = torch.nn.Sequential(torch.nn.Embedding(100, 64), torch.nn.Linear(64, 64))
        >>> groups = lowrank_param_groups(model, rank=8, weight_decay=0.1)
        >>> [(group["param_names"], group["rank"]) for group in groups]
        [(['1.weight'], 8), (['0.weight'], None), (['1.bias'], None)]
        >>> optimizer = LDAdamW(groups, lr=1e-3)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"lowrank_param_groups takes the model itself, a torch.nn.Module; got {type(model).__name__}")
    if dense_lr is not None:
        check_lr(dense_lr, "dense_lr")
    patterns = [target_modules] if isinstance(target_modules, str) else target_modules
    named = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    for pattern in [*(patterns or ()), *(rank_overrides or ())]:
        _refuse_unmatched(pattern, [name for name, _ in named])
    by_module = _dense_by_module(model)
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, param in named:
        is_dense = param.ndim < 2 or id(param) in by_module or dense_reason(name) is not None
        chosen = _choose_rank(name, param, rank, patterns, rank_overrides or {}, is_dense)
        options: dict[str, Any] = {} if chosen == "default" else {"rank": chosen}
        if weight_decay is not None:
            options["weight_decay"] = weight_decay if param.ndim > 1 else 0.0
        if dense_lr is not None and is_dense:
            options["lr"] = dense_lr
        group = groups.setdefault(tuple(options.items()), {"params": [], "param_names": [], **options})
        group["params"].append(param)
        group["param_names"].append(name)
    return sorted(groups.values(), key=lambda group: group.get("rank", 0) is None)


def _choose_rank(
    name: str,
    param: Tensor,
    rank: int | float | None,
    patterns: Sequence[str] | None,
    overrides: Mapping[str, int | float | None],
    is_dense: bool,
) -> int | float | str | None:
    """The rank of one parameter; None for dense, "default" for the optimizer's."""
    if param.ndim < 2:
        return None
    for pattern, override in overrides.items():
        if re.search(pattern, name):
            return _scale(rank, override) if isinstance(override, float) else override
    targeted = patterns is None or any(re.search(pattern, name) for pattern in patterns)
    if is_dense or not targeted:
        return None
    return "default" if rank is None else rank


def _scale(rank: int | float | None, factor: float) -> int | float:
    if rank is None:
        raise ValueError(
            f"rank_overrides has the factor {factor}, which needs rank=...; give one, or an int as override"
        )
    return max(1, round(rank * factor)) if isinstance(rank, int) else rank * factor


def _dense_by_module(model: nn.Module) -> set[int]:
    """Ids of weights that are dense by what owns them, tied ones included."""
    # Asked of every module, for a wrapper (DistributedDataParallel) does not pass the question on.
    getters = [getattr(module, "get_output_embeddings", None) for module in model.modules()]
    heads = [head for head in (get_head() for get_head in getters if callable(get_head)) if head is not None]
    others = [module for module in model.modules() if isinstance(module, (nn.Embedding, nn.EmbeddingBag, nn.Conv1d))]
    return {id(param) for owner in [*heads, *others] for param in owner.parameters(recurse=False)}


def dense_reason(name: str) -> str | None:
    """Why a parameter of this name is dense: "embedding", "output head", "norm", "router", "LoRA factor", or None."""
    for reason, pattern in DENSE_NAMES.items():
        if re.search(pattern, name, flags=re.IGNORECASE):
            return reason
    return None


def _refuse_unmatched(pattern: str, names: Sequence[str]) -> None:
    if not any(re.search(pattern, name) for name in names):
        shown = ", ".join(names[:5])
        raise ValueError(
            f"the pattern {pattern!r} is in no name of the {len(names)} trainable parameters ({shown}, ...)"
        )


def split_named_group(group: Mapping[str, Any], *, default_rank: int | float | None) -> Iterable[dict[str, Any]]:
    """A group of (name, parameter) pairs as a low-rank and a dense group; any other group as it is."""
    if isinstance(group["params"], (Tensor, set)):
        return [dict(group)]  # torch wraps a single tensor, and refuses a set for its lack of order
    members = list(group["params"])
    named = bool(members) and all(isinstance(member, tuple) for member in members)
    if not named or group.get("rank", default_rank) is None:
        return [{**group, "params": members}]
    dense = [(name, param) for name, param in members if param.ndim < 2 or dense_reason(name)]
    low_rank = [(name, param) for name, param in members if param.ndim >= 2 and not dense_reason(name)]
    parts = ({**group, "params": low_rank}, {**group, "params": dense, "rank": None})
    return [part for part in parts if part["params"]]


def warn_about_dense_matrices(group: Mapping[str, Any], index: int) -> None:
    """Say once which matrices of a low-rank group get dense AdamW, because the rank is not below their shorter side."""
    rank = group["rank"]
    if rank is None:
        return
    matrices = [tuple(param.shape) for param in group["params"] if param.ndim >= 2 and param.numel() > 0]
    sides = {shape: min(matrix_dims(shape)[1:]) for shape in matrices}
    dense = [shape for shape in matrices if resolve_rank(rank, sides[shape]) >= sides[shape]]
    if dense:
        warnings.warn(
            f"{len(dense)} of the {len(matrices)} matrices of param group {index} have a side that does not exceed "
            f"rank={rank} and get dense AdamW, the first of shape {dense[0]}; describe(optimizer) lists them",
            LDAdamWarning,
            stacklevel=5,  # the caller of the constructor
        )
