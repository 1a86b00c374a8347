"""The ablations change one thing: with nothing changed they are LDAdamW, and each does what its name says."""

import pytest
import torch

from ldadam import LDAdamW
from ldadam.recipes import variants
from ldadam.recipes.ablations import ablations_demo_rank32_cpu
from ldadam.training.optimizers import find_optimizer
from tolerances import TOLERANCES

RANK, LR, STEPS = 4, 1e-2, 12


def trained(build, *, seed=0):
    """Parameters, wide, tall and dense, after steps on random gradients; and the optimizer."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    params = [torch.nn.Parameter(draw(*shape)) for shape in ((10, 16), (16, 10), (7,))]
    optimizer = build([{"params": params[:2], "rank": RANK}, {"params": params[2:], "rank": None}])
    for _ in range(STEPS):
        for param in params:
            param.grad = draw(*param.shape)
        optimizer.step()
    return params, optimizer


def distance(left, right):
    return max(float(((a - b).norm() / b.norm()).detach()) for a, b in zip(left, right, strict=True))


def of_variant(name):
    return trained(lambda groups: getattr(variants, name)(groups, lr=LR))


def test_with_nothing_changed_a_variant_is_ldadamw():
    expected, _ = trained(lambda groups: LDAdamW(groups, lr=LR, backend="eager"))
    assert distance(of_variant("Variant")[0], expected) < TOLERANCES["float64 trajectory"]


def test_without_feedback_a_variant_is_ldadamw_without_it():
    expected, _ = trained(lambda groups: LDAdamW(groups, lr=LR, backend="eager", error_feedback=False))
    assert distance(of_variant("WithoutFeedback")[0], expected) < TOLERANCES["float64 trajectory"]


CHANGES = ["WithoutCarrying", "GradientFeedback", "MomentumFeedback", "WithoutFeedback", "RangeFinderStart"]
CHANGES += ["ResidualOfCorrected"]


@pytest.mark.parametrize("name", CHANGES)
def test_each_change_changes_the_matrices_and_nothing_else(name):
    expected, _ = of_variant("Variant")
    found, _ = of_variant(name)
    assert distance(found[:2], expected[:2]) > 1e-3
    assert torch.equal(found[2], expected[2])


def test_the_two_halves_of_the_feedback_sum_to_the_whole():
    """After one step from the same state: E is linear in what is lost of the gradient and of the momentum."""
    errors = {}
    for name in ("Variant", "GradientFeedback", "MomentumFeedback", "WithoutFeedback"):
        _, optimizer = trained(lambda groups: variants.Variant(groups, lr=LR))
        optimizer.__class__ = getattr(variants, name)
        param = optimizer.param_groups[0]["params"][0]
        param.grad = torch.full_like(param, 0.5)
        optimizer.step()
        errors[name] = optimizer.state[param]["low_rank"].error_buffer
    assert errors["WithoutFeedback"].abs().max() == 0
    halves = errors["GradientFeedback"] + errors["MomentumFeedback"]
    assert float((halves - errors["Variant"]).norm() / halves.norm()) < TOLERANCES["float64 formula"]


def test_the_recipes_of_ablations_name_optimizers_that_can_be_built():
    model = torch.nn.Sequential(torch.nn.Linear(40, 48), torch.nn.Linear(48, 40))
    for contestant in ablations_demo_rank32_cpu()[0].contestants:
        choice = find_optimizer(contestant.optimizer)
        if choice.name != "ldadamw":
            config = type("Config", (), {"rank": 4, "lr": 1e-3, "target_modules": None, "dense_lr_scale": 1.0})
            optimizer = choice.build(model, config)
            assert [group["rank"] for group in optimizer.param_groups] == [4, None]
