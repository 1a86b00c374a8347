"""What a step allocates and frees again: the real step, run on meta tensors that answer for a device."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode

from ldadam.backends import pick
from ldadam.hyperparameters import resolve
from ldadam.live_bytes import LiveBytes
from ldadam.optimizer import LDAdamW, layout_of
from ldadam.param_groups import LDAdamWarning
from ldadam.state import create_state


class SeenAs(TorchFunctionMode):
    """Meta tensors say that they are on `device`, and what is made on `device` is made on meta.

    So the step takes the path that it takes there, whether or not this machine has such a device.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == Tensor.device.__get__ and args[0].is_meta:  # pyright: ignore[reportAttributeAccessIssue]
            return self.device
        if func == Tensor.is_cuda.__get__ and args[0].is_meta:  # pyright: ignore[reportAttributeAccessIssue]
            return self.device.type == "cuda"
        return func(*map(self._moved, args), **{key: self._moved(value) for key, value in (kwargs or {}).items()})

    def _moved(self, argument: Any) -> Any:
        return torch.device("meta") if isinstance(argument, torch.device) and argument == self.device else argument


def is_elsewhere(device: torch.device) -> bool:
    """Whether a plan for a device is one for another machine."""
    return device.type == "cuda" and not torch.cuda.is_available()


def step_peak(groups: Sequence[dict[str, Any]], *, device: torch.device) -> int:
    """Bytes at the peak of a step above those before it, for param groups of an `LDAdamW` over meta tensors.

    Parameters of different shapes are never stepped together, so each shape is run alone. Equal ones are: their number
    is doubled until the peak no longer grows.

    Args:
        groups: of an `LDAdamW`.
        device: where the step would run: "cpu" or "cuda".
    """
    return max((max(_peaks_of_equals(group, count, device)) for group, count in _kinds(groups, device)), default=0)


def single_step_peak(groups: Sequence[dict[str, Any]], *, device: torch.device) -> int:
    """The same where each parameter is stepped alone, as inside of the backward pass."""
    return max((max(_peaks(group, 1, device)) for group, _ in _kinds(groups, device)), default=0)


def _kinds(groups: Sequence[dict[str, Any]], device: torch.device) -> list[tuple[dict[str, Any], int]]:
    """For each group and shape, a group of one parameter, and how many there are."""
    kinds = Counter((index, p.shape, p.dtype) for index, group in enumerate(groups) for p in group["params"])
    options = [{key: value for key, value in group.items() if key not in ("params", "param_names")} for group in groups]
    for option in options:
        if option["backend"] == "auto":
            option["backend"] = pick(device, elsewhere=is_elsewhere(device))
    return [
        ({**options[index], "params": [torch.empty(shape, dtype=dtype, device="meta")]}, count)
        for (index, shape, dtype), count in kinds.items()
    ]


def _peaks_of_equals(group: dict[str, Any], count: int, device: torch.device) -> tuple[int, int]:
    number, peaks = 1, _peaks(group, 1, device)
    while number < count:
        number = min(2 * number, count)
        before, peaks = peaks, _peaks(group, number, device)
        if peaks == before:
            break
    return peaks


def _peaks(group: dict[str, Any], number: int, device: torch.device) -> tuple[int, int]:
    """Of `number` parameters like that of the group, in a first and in a second step.

    A first step finds its bases in another way. A start basis is computed on the host, hence once for all.
    """
    (like,) = group["params"]
    params = [Parameter(torch.empty_like(like)) for _ in range(number)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LDAdamWarning)  # the groups' own optimizer has given it
        optimizer = LDAdamW([{**group, "params": params}])
    hyper = resolve(optimizer.param_groups[0], 0)
    with SeenAs(device):
        state = create_state(like, layout_of(like, hyper), hyper)
        for param in params:
            param.grad = torch.empty_like(param)
            optimizer.state[param] = {key: value.clone() for key, value in state.items()}
        return _peak_of_one(optimizer), _peak_of_one(optimizer)


def _peak_of_one(optimizer: LDAdamW) -> int:
    with LiveBytes("meta") as live:
        optimizer.step()
    return live.peak
