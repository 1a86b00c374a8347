"""Parameters that are no whole matrix are refused by name, before anything is stepped."""

import re

import pytest
import torch
from torch.distributed.fsdp import FullyShardedDataParallel

from distributed.processes import in_processes
from ldadam import LDAdamW


def step_under_fsdp1(use_orig_params: bool) -> tuple[str, bool]:
    """The refusal, and whether a weight moved."""
    module = torch.nn.Sequential(torch.nn.Linear(20, 12), torch.nn.Linear(12, 20))
    module = FullyShardedDataParallel(module, use_orig_params=use_orig_params, device_id=torch.device("cpu"))
    before = [param.detach().clone() for param in module.parameters()]
    module(torch.ones(2, 20)).square().mean().backward()
    with pytest.raises(NotImplementedError) as refused:
        LDAdamW(module.parameters(), rank=4).step()
    return str(refused.value), not all(map(torch.equal, before, module.parameters()))


@pytest.mark.parametrize("use_orig_params", [False, True])
def test_fsdp1_is_refused_with_flat_parameters_and_with_their_slices(use_orig_params):
    for message, has_moved in in_processes(step_under_fsdp1, 2, use_orig_params):
        assert re.match(r"parameter \d of param group 0 is a flat parameter of FSDP1.*use FSDP2", message)
        assert not has_moved
