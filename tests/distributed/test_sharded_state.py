"""The state of sharded parameters: asked for before the first step, loaded from elsewhere, and refused."""

import functools

import pytest
import torch

from builders import distance
from distributed.engines import ENGINES
from distributed.processes import in_processes
from distributed.state_runs import fresh, handed_over, primed, refusals, warm_up
from ldadam.subspace import random_basis
from tolerances import TOLERANCES


@pytest.mark.parametrize("engine", ["fsdp, 4", "hsdp, 2 x 2", "fsdp and tp, 2 x 2"])
def test_torch_gets_all_state_of_a_fresh_optimizer_and_nothing_moves(engine):
    model, _, _ = fresh(None)
    for weights, state, plain in in_processes(primed, ENGINES[engine].world_size, engine):
        assert not plain
        for name, param in model.named_parameters():
            assert torch.equal(weights[name], param)
            assert state[name].keys() >= {"step", "exp_avg", "exp_avg_sq"}
            for key, value in state[name].items():
                expected = random_basis(*value.shape).double() if key == "basis" else torch.zeros_like(value)
                assert torch.equal(value, expected), f"{key} of {name}"


@pytest.mark.parametrize("is_primed", [False, True], ids=["fresh", "primed"])
def test_a_first_step_without_learning_rate_counts_on_all_ranks_or_none(is_primed):
    """The gradient is zero on some ranks alone, each of which would take it for a request for state."""
    expected = warm_up(None, is_primed=False)
    for of_rank in in_processes(functools.partial(warm_up, is_primed=is_primed), 4, "fsdp, 4"):
        for weights, whole in zip(of_rank, expected, strict=True):
            for name, value in whole.items():
                assert distance(weights[name], value) <= TOLERANCES["float64 trajectory"], name


@pytest.mark.parametrize(
    ("source", "target", "options"),
    [
        ("fsdp, 4", "hsdp, 2 x 2", {"error_dtype": "int8"}),
        ("hsdp, 2 x 2", "fsdp, 4", {}),
        ("fsdp and tp, 2 x 2", "fsdp, 4", {}),
        ("fsdp, 4", "fsdp and tp, 2 x 2", {}),
        ("fsdp, 4", None, {"error_dtype": "int4"}),
    ],
    ids=str,
)
def test_the_state_dict_of_one_engine_loads_into_another(source, target, options):
    for expected, actual in in_processes(handed_over, 4, source, target, options):
        assert actual.keys() == expected.keys()
        for name, state in expected.items():
            for key, value in state.items():
                assert torch.equal(actual[name][key], value), f"{key} of {name}"


def test_codes_are_not_cut_within_their_blocks():
    messages = in_processes(refusals, 2)[0]
    assert messages.keys() == {"step", "load"}
    for message in messages.values():
        assert "down.weight" in message and "sharded by columns" in message and 'error_dtype="bfloat16"' in message
