"""`step_in_backward` under FSDP2, HSDP and compressed data parallelism: its hooks see shards, or local gradients."""

import functools

import pytest
import torch

from builders import distance
from distributed import engines
from distributed.engines import ENGINES
from distributed.processes import in_processes
from tolerances import TOLERANCES

NUM_STEPS = 4


def run(engine: str, **options) -> list:
    job = functools.partial(engines.run_in_backward, **options)
    return in_processes(job, ENGINES[engine].world_size, engine, NUM_STEPS)


def assert_same_weights(actual: list, expected: list) -> None:
    for step, (weights, whole) in enumerate(zip(actual, expected, strict=True)):
        for name, value in whole.items():
            assert distance(weights[name], value) <= TOLERANCES["float64 trajectory"], f"{name} after step {step + 1}"


@pytest.mark.parametrize("engine", ["fsdp, 2", "hsdp, 2 x 2", "compressed fsdp, 2 x 2"])
@pytest.mark.parametrize(
    ("num_micro", "sync_each", "accumulation_steps"),
    [(1, True, 1), (2, False, 1), (2, True, 2)],
    ids=["no accumulation", "FSDP2 accumulates", "error buffers accumulate"],
)
def test_stepping_in_backward_equals_stepping_after_it(engine, num_micro, sync_each, accumulation_steps):
    expected = engines.run(None, "net", torch.float64, NUM_STEPS, num_micro=num_micro)["weights"]
    for of_rank in run(engine, num_micro=num_micro, sync_each=sync_each, accumulation_steps=accumulation_steps):
        assert_same_weights(of_rank, expected)


@pytest.mark.parametrize("num_micro", [1, 2])
def test_ranks_with_gradients_of_their_own_step_in_backward(num_micro):
    """Micro-batches are summed in the buffer of each rank; DDP has averaged dense gradients before `step()`."""
    expected = engines.run(None, "net", torch.float64, NUM_STEPS, num_micro=num_micro)["weights"]
    for of_rank in run("compressed, 2", num_micro=num_micro, sync_each=False, accumulation_steps=num_micro):
        assert_same_weights(of_rank, expected)


@pytest.mark.parametrize(
    ("num_micro", "options"),
    [(1, {"clip_norm": 0.05}), (2, {"accumulation_steps": 2, "error_dtype": "int8"})],
    ids=["clipped", "accumulated in int8"],
)
def test_shards_step_in_backward_as_one_process_does(num_micro, options):
    expected = engines.run_in_backward(None, NUM_STEPS, num_micro=num_micro, sync_each=True, **options)
    for of_rank in run("fsdp, 4", num_micro=num_micro, sync_each=True, **options):
        assert_same_weights(of_rank, expected)


@pytest.mark.parametrize(
    ("engine", "num_sharing"), [("ddp, 2", "1 of 2"), ("tp, 2", "1 of 2"), ("fsdp and tp, 2 x 2", "2 of 4")]
)
def test_gradients_that_other_processes_may_not_share_are_refused(engine, num_sharing):
    """Parameters outside the tensor-parallel plan are known to the ranks of one mesh axis alone."""
    assert in_processes(refusal, ENGINES[engine].world_size, engine) == [num_sharing] * ENGINES[engine].world_size


def refusal(engine: str) -> str:
    with pytest.raises(NotImplementedError, match=r"a gradient that (\d of \d) processes share") as caught:
        engines.run_in_backward(engine, 1, num_micro=1, sync_each=True)
    return str(caught.value).split(" processes")[0].removeprefix("stepping in backward sees a gradient that ")
