"""How a parameter is seen as matrices."""

import pytest
import torch

from builders import normal
from ldadam.layout import MatrixLayout, math_dtype, matrix_dims, matrix_layout, resolve_rank


def layout_of(*shape: int, rank: int | float | None = 4, proj_type: str = "std") -> MatrixLayout | None:
    return matrix_layout(shape, rank=rank, proj_type=proj_type)


@pytest.mark.parametrize(
    ("proj_type", "shape", "side"),
    [
        ("std", (8, 20), "left"),
        ("std", (20, 8), "right"),
        ("std", (9, 9), "left"),
        ("reverse_std", (8, 20), "right"),
        ("reverse_std", (20, 8), "left"),
        ("reverse_std", (9, 9), "left"),
        ("left", (20, 8), "left"),
        ("right", (8, 20), "right"),
    ],
)
def test_proj_type_picks_the_projected_side(proj_type, shape, side):
    layout = layout_of(*shape, proj_type=proj_type)
    assert layout.side == side
    assert (layout.m, layout.n) == (shape if side == "left" else shape[::-1])


@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (3, 8, 20), (3, 20, 8), (8, 5, 3, 3), (6, 5, 2, 3, 2)], ids=str)
@pytest.mark.parametrize("proj_type", ["std", "reverse_std", "left", "right"])
def test_to_matrix_puts_the_projected_side_first_and_from_matrix_undoes_it(shape, proj_type):
    layout = layout_of(*shape, proj_type=proj_type)
    tensor = normal(*shape)
    matrix = layout.to_matrix(tensor)
    assert matrix.shape == (*layout.batch, layout.m, layout.n)
    assert torch.equal(layout.from_matrix(matrix), tensor)


def test_a_convolution_is_flattened_to_out_by_the_rest():
    weight = normal(8, 5, 3, 3)
    assert torch.equal(layout_of(8, 5, 3, 3).to_matrix(weight), weight.reshape(8, 45))


def test_three_dimensions_are_a_stack_of_matrices():
    layout = layout_of(3, 20, 8)
    weight = normal(3, 20, 8)
    assert layout.batch == (3,)
    assert torch.equal(layout.to_matrix(weight)[1], weight[1].mT)


def test_state_shapes_have_the_projected_side_first():
    assert layout_of(3, 20, 8).state_shapes() == {
        "exp_avg": (3, 4, 20),
        "exp_avg_sq": (3, 4, 20),
        "basis": (3, 8, 4),
    }


@pytest.mark.parametrize(
    ("shape", "why"),
    [
        ((), "scalar"),
        ((20,), "vector"),
        ((4, 20), "the rank is the shorter side"),
        ((20, 3), "the rank exceeds the shorter side"),
        ((0, 20), "no elements"),
        ((0, 8, 20), "an empty stack"),
        ((8, 0, 3, 3), "a convolution without input channels"),
        ((8, 20, 3), "the matrices of the stack are too thin"),
    ],
    ids=str,
)
def test_a_parameter_is_dense_when(shape, why):
    assert layout_of(*shape, rank=4) is None, why


def test_no_rank_is_dense():
    assert layout_of(8, 20, rank=None) is None


@pytest.mark.parametrize(
    ("fraction", "side", "rank"), [(0.25, 20, 5), (0.5, 9, 4), (0.3, 9, 3), (0.01, 20, 1), (0.99, 100, 99)]
)
def test_a_fraction_is_of_the_shorter_side_and_at_least_one(fraction, side, rank):
    assert resolve_rank(fraction, side) == rank
    assert layout_of(side, 200, rank=fraction).rank == rank


def test_matrix_dims():
    assert matrix_dims((8, 20)) == ((), 8, 20)
    assert matrix_dims((3, 8, 20)) == ((3,), 8, 20)
    assert matrix_dims((8, 5, 3, 2)) == ((), 8, 30)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
)
def test_arithmetic_is_float32_but_for_float64_parameters(dtype, expected):
    assert math_dtype(dtype) == expected
