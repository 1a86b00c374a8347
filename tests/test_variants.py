"""The ablations change one thing: with nothing changed they are LDAdamW, and each does what its name says."""

import pytest
import torch

from ldadam import LDAdamW
from ldadam.layout import matrix_layout
from ldadam.recipes import variants
from ldadam.recipes.ablations import ablations_demo_rank32_cpu
from ldadam.recipes.ideas import ideas_small_rank16_cpu
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
CHANGES += ["ResidualOfCorrected", "DctBasis", "BalancedRho", "NoiseRho", "SpectrumRanks", "SpectrumRanksOnce"]


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


@pytest.mark.parametrize("name", ["Variant", "DctBasis", "BalancedRho", "SpectrumRanks"])
def test_no_gradient_is_lost_however_the_basis_is_found(name):
    """Sum of G = sum of earlier U m + E + U m / (1 - beta1), also when a rank changes."""
    generator = torch.Generator().manual_seed(1)
    param = torch.nn.Parameter(torch.zeros(10, 16, dtype=torch.float64))
    other = torch.nn.Parameter(torch.zeros(12, 12, dtype=torch.float64))
    optimizer = getattr(variants, name)([{"params": [param, other], "rank": RANK}], lr=LR)
    total, moved = torch.zeros(10, 16, dtype=torch.float64), torch.zeros(10, 16, dtype=torch.float64)
    for _ in range(STEPS):
        # The other one's gradients have one direction each, so that its ranks go to the first.
        param.grad = torch.randn(10, 16, generator=generator, dtype=torch.float64)
        other.grad = torch.ones(12, 12, dtype=torch.float64)
        optimizer.step()
        now = optimizer.state[param]["low_rank"]
        total += param.grad
        kept = now.error_buffer + now.basis @ now.exp_avg / (1 - variants.DEFAULTS.betas[0])
        assert float((total - moved - kept).norm() / total.norm()) < TOLERANCES["float64 formula"]
        moved += now.basis @ now.exp_avg
        identity = torch.eye(now.basis.shape[1], dtype=torch.float64)
        assert float((now.basis.mT @ now.basis - identity).norm()) < TOLERANCES["float64 formula"]
    assert now.basis.shape[1] > RANK if name == "SpectrumRanks" else now.basis.shape[1] == RANK


def test_ranks_by_spectrum_go_where_the_energy_is_and_keep_the_budget():
    wide, square = (torch.nn.Parameter(torch.zeros(shape)) for shape in ((8, 24), (8, 8)))
    layouts = {p: matrix_layout(p.shape, rank=4, proj_type="std") for p in (wide, square)}
    steep, flat = torch.tensor([1.0] + 7 * [0.0]), torch.full((8,), 1 / 8)
    # A rank costs 56 and 24 numbers, the budget is 320: 8 x 24 + 2 x 56, where the last 56 are worth nothing.
    assert variants.ranks_of_spectra(layouts, {wide: steep, square: flat}) == {wide: 2, square: 8}
    assert variants.ranks_of_spectra(layouts, {wide: flat, square: steep}) == {wide: 5, square: 1}


def test_the_cosine_basis_is_orthonormal_and_its_best_columns_are_taken():
    cosines = variants.cosine_basis(12)
    assert torch.allclose(cosines.mT @ cosines, torch.eye(12, dtype=torch.float64), atol=1e-14)
    target = cosines[:, [2, 7, 11]] @ torch.randn(3, 20, dtype=torch.float64)
    found = variants.DctBasis([torch.nn.Parameter(torch.zeros(1))]).next_basis(target, cosines[:, :3])
    assert torch.equal(found, cosines[:, [2, 7, 11]])


def test_the_recipes_of_ablations_name_optimizers_that_can_be_built():
    model = torch.nn.Sequential(torch.nn.Linear(40, 48), torch.nn.Linear(48, 40))
    contestants = (*ablations_demo_rank32_cpu()[0].contestants, *ideas_small_rank16_cpu()[0].contestants)
    for contestant in contestants:
        choice = find_optimizer(contestant.optimizer)
        if choice.name != "ldadamw":
            config = type("Config", (), {"rank": 4, "lr": 1e-3, "target_modules": None, "dense_lr_scale": 1.0})
            optimizer = choice.build(model, config)
            assert [group["rank"] for group in optimizer.param_groups] == [4, None]
