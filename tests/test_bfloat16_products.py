"""Products of bfloat16 matrices as float32, with the instructions' result and without their absence's slowness."""

import pytest
import torch
from torch.optim import Muon

from ldadam.bfloat16_products import Float32Products, bfloat16_products
from ldadam.peers import PEERS, Weights
from tolerances import TOLERANCES


def bfloat16(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).bfloat16()


@pytest.mark.parametrize("product", ["matmul", "addmm", "bmm"])
def test_the_result_is_the_exact_one_rounded(product):
    shape = (3,) if product == "bmm" else ()
    first, second, added = bfloat16(*shape, 24, 40), bfloat16(*shape, 40, 16), bfloat16(24, 16)
    with Float32Products():
        found = torch.addmm(added, first, second, beta=-4.8, alpha=2.0) if product == "addmm" else first @ second
    exact = first.double() @ second.double()
    if product == "addmm":
        exact = -4.8 * added.double() + 2.0 * exact
    relative = TOLERANCES["bfloat16 product"]
    assert found.dtype == torch.bfloat16
    assert (
        (found.double() - exact).abs() <= relative * exact.abs() + TOLERANCES["bfloat16 product, where it cancels"]
    ).all()


def test_other_products_are_left_as_they_are():
    first, second = torch.randn(5, 7), torch.randn(7, 3)
    with Float32Products():
        assert torch.equal(first @ second, torch.mm(first, second))
        assert (first.double() @ second.double()).dtype == torch.float64


def test_muon_steps_as_torch_does_it():
    initial, grad = torch.randn(48, 32), torch.randn(48, 32)
    ours, theirs = (torch.nn.Parameter(initial.clone()) for _ in range(2))
    bias = torch.nn.Parameter(torch.zeros(4))
    options = {"lr": 1e-2, "weight_decay": 0.0, "adjust_lr_fn": "match_rms_adamw"}
    built, muon = PEERS["muon"].build(Weights([ours], [bias]), lr=1e-2, rank=4), Muon([theirs], **options)
    built.within = Float32Products()
    for param in (ours, theirs):
        param.grad = grad.clone()
    built.step(), muon.step()
    moved = (theirs - initial).abs().max()
    assert moved > 0 and (ours - theirs).abs().max() < TOLERANCES["bfloat16 iterations"] * moved


def test_instructions_are_used_where_there_are_any(monkeypatch):
    for has in (True, False):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda has=has: has)
        assert isinstance(bfloat16_products(), Float32Products) != has
