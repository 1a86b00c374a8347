"""Sharded parameters take the steps of whole ones, in every layout, from the first on."""

import pytest
import torch

from builders import distance
from distributed.processes import in_processes
from distributed.sharded_runs import LAYOUTS, OPTIONS, SHAPES, alone, together
from tolerances import TOLERANCES

NUM_STEPS = 5


def cases(world_size: int) -> list[tuple[str, str, torch.dtype, int]]:
    layouts = [name for name, (sizes, _) in LAYOUTS.items() if torch.tensor(sizes).prod() == world_size]
    every = [(layout, options, torch.float64, NUM_STEPS) for layout in layouts for options in OPTIONS]
    return [*every, *((layout, "defaults", torch.float32, 1) for layout in layouts)]


@pytest.fixture(scope="module")
def runs():
    """All runs of one number of processes, in one start of them."""
    made = {}

    def of(world_size: int):
        if world_size not in made:
            made[world_size] = in_processes(together, world_size, cases(world_size))
        return made[world_size]

    return of


@pytest.mark.parametrize(("world_size", "case"), [(size, case) for size in (2, 4) for case in cases(size)], ids=str)
def test_sharded_steps_equal_whole_ones(runs, world_size, case):
    _, options, dtype, num_steps = case
    expected = alone(dtype, options, num_steps)
    tolerance = TOLERANCES["float64 trajectory" if dtype == torch.float64 else "float32 step"]
    for of_rank in runs(world_size):
        for step, (weights, reference) in enumerate(zip(of_rank[case], expected, strict=True)):
            for shape, weight, whole in zip(SHAPES, weights, reference, strict=True):
                assert distance(weight, whole) <= tolerance, f"{shape} after step {step + 1}"
