"""Sharded parameters take the steps of whole ones, in every layout, from the first on."""

import functools
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist

from builders import distance
from distributed.processes import in_processes
from distributed.sharded_runs import LAYOUTS, OPTIONS, SHAPES, alone, together
from ldadam.backends import batched
from tolerances import TOLERANCES

DOUBLE = [name for name in OPTIONS if name != "stochastic rounding"]
REPRESENTATIVE = ["defaults", "int8", "range finder", "no error feedback"]
of_one_process = functools.cache(alone)


def world_size(layout: str) -> int:
    return int(torch.tensor(LAYOUTS[layout][0]).prod())


def cases() -> list[tuple[str, str]]:
    """Every option where two processes share rows or columns, and four share rows; elsewhere those that differ."""
    chosen = {layout: REPRESENTATIVE for layout in LAYOUTS}
    chosen |= {layout: DOUBLE for layout in ("fsdp, 2", "columns, 2", "fsdp, 4")}
    chosen |= {layout: ["defaults"] for layout in ("columns and rows, 2 x 2", "rows twice, 2 x 2")}
    return [
        pytest.param(layout, options, marks=() if options in chosen[layout] else pytest.mark.slow)
        for layout in LAYOUTS
        for options in DOUBLE
    ]


@pytest.mark.parametrize(("layout", "options"), cases())
def test_sharded_steps_equal_whole_ones(layout, options):
    num_steps = 10 if options == "defaults" else 5
    expected = of_one_process(torch.float64, options, num_steps)
    for of_rank in in_processes(together, world_size(layout), layout, options, torch.float64, num_steps):
        for step, weights, reference in zip(("first", "last"), of_rank, expected, strict=True):
            for shape, weight, whole in zip(SHAPES, weights, reference, strict=True):
                assert distance(weight, whole) <= TOLERANCES["float64 trajectory"], f"{shape} after the {step} step"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_sharded_first_step_equals_a_whole_one_in_float32(layout):
    (expected,) = of_one_process(torch.float32, "defaults", 1)
    for (weights,) in in_processes(together, world_size(layout), layout, "defaults", torch.float32, 1):
        for shape, weight, whole in zip(SHAPES, weights, expected, strict=True):
            assert distance(weight, whole) <= TOLERANCES["float32 step"], shape


@pytest.mark.parametrize("layout", ["fsdp, 2", "hsdp, 2 x 2"])
def test_shards_of_rows_round_by_the_noise_of_the_whole(layout):
    """Sums in another order move a few weights across a threshold; other noise would move half of them."""
    (expected,) = of_one_process(torch.bfloat16, "stochastic rounding", 1)
    for (weights,) in in_processes(together, world_size(layout), layout, "stochastic rounding", torch.bfloat16, 1):
        for shape, weight, whole in zip(SHAPES, weights, expected, strict=True):
            assert (weight != whole).float().mean() <= 0.01, shape


def each_in_its_own_way(layout: str, options: str) -> list[list[torch.Tensor]]:
    """As `together`, where ranks step other matrices together, in another order, as their blocks may make them."""
    of_rank = dist.get_rank() % 2
    chunks, scratch = batched.chunks, 2**20 if of_rank else 1

    def in_own_order(updates, **_):
        found = list(chunks(updates, max_scratch=scratch))
        return reversed(found) if of_rank else found

    with patch.object(batched, "chunks", in_own_order):
        return together(layout, options, torch.float64, 3)


@pytest.mark.parametrize("options", ["defaults", "range finder", "skip_nonfinite"])
@pytest.mark.parametrize("layout", ["fsdp, 2", "rows and columns, 2 x 2"])
def test_ranks_may_step_matrices_together_as_they_like(layout, options):
    expected = of_one_process(torch.float64, options, 3)
    for of_rank in in_processes(each_in_its_own_way, world_size(layout), layout, options):
        for weights, reference in zip(of_rank, expected, strict=True):
            for shape, weight, whole in zip(SHAPES, weights, reference, strict=True):
                assert distance(weight, whole) <= TOLERANCES["float64 trajectory"], shape
