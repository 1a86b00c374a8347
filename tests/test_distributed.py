"""Parameters that are no whole matrix are refused by name, before anything is stepped."""

import pytest
import torch

from builders import normal, parameter
from ldadam import LDAdamW


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("_is_flat_param", r"parameter 1 of param group 0 is a flat parameter of FSDP1, .* use DDP"),
        ("placements", r"parameter 1 of param group 0 is a DTensor"),
    ],
)
def test_a_parameter_is_refused_that_is_marked(attribute, message):
    params = [parameter(12, 20), parameter(240)]
    setattr(params[1], attribute, True)
    for param in params:
        param.grad = normal(*param.shape)
    before = params[0].detach().clone()
    with pytest.raises(NotImplementedError, match=message):
        LDAdamW(params, rank=4).step()
    assert torch.equal(params[0], before)
