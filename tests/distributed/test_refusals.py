"""Parameters that are no whole matrix are refused by name, before anything is stepped."""

import pytest
import torch

from builders import normal, parameter
from ldadam import LDAdamW


def test_a_flat_parameter_of_fsdp1_is_refused():
    params = [parameter(12, 20), parameter(240)]
    params[1]._is_flat_param = True
    for param in params:
        param.grad = normal(*param.shape)
    before = params[0].detach().clone()
    with pytest.raises(NotImplementedError, match=r"parameter 1 of param group 0 is a flat parameter.*use FSDP2"):
        LDAdamW(params, rank=4).step()
    assert torch.equal(params[0], before)
