"""`compress_gradients`: ranks that keep the gradients of low-rank parameters move as one process with all batches."""

import functools
import math

import pytest
import torch
from torch import nn

from builders import distance, normal, quiet
from distributed import compressed_runs as runs
from distributed import engines
from distributed.processes import in_processes
from ldadam.distributed import clip_grad_norm_
from tolerances import TOLERANCES

FLOAT64 = TOLERANCES["float64 trajectory"]


@functools.cache
def alone(num_steps: int, **options) -> dict:
    return engines.run(None, "net", torch.float64, num_steps, num_micro=2, options=options)


def together(engine: str, num_steps: int, **options) -> list[dict]:
    """What each rank has, of micro-batches of which DDP averages the last alone; weights have the same bits on all."""
    job = functools.partial(engines.run, num_micro=2, options=options)
    of_ranks = in_processes(job, engines.ENGINES[engine].world_size, engine, "net", torch.float64, num_steps)
    for of_rank in of_ranks:
        for name, weight in of_rank["weights"][-1].items():
            assert torch.equal(weight, of_ranks[0]["weights"][-1][name]), name
    return of_ranks


@pytest.mark.parametrize(
    ("engine", "num_steps", "options"),
    [
        ("compressed, 2", 50, {}),
        ("compressed, 4", 50, {}),
        ("compressed, 2", 8, {"error_feedback": False}),
        ("compressed, 2", 8, {"update_interval": 3}),
        ("compressed, 2", 8, {"skip_nonfinite": True, "maximize": True}),
        ("compressed, 2", 8, {"proj_method": "svd", "proj_type": "reverse_std"}),
    ],
    ids=str,
)
def test_ranks_take_the_steps_of_one_process(engine, num_steps, options):
    expected = alone(num_steps, **options)
    actual = together(engine, num_steps, **options)[0]
    for step, (weights, whole) in enumerate(zip(actual["weights"], expected["weights"], strict=True)):
        for name, value in whole.items():
            assert distance(weights[name], value) <= FLOAT64, f"{name} after step {step + 1}"


@pytest.mark.parametrize(("kind", "rounding"), [("int8", "compressed, int8"), ("int4", "compressed, int4")])
def test_buffers_in_codes_round_on_each_rank_and_weights_stay_equal(kind, rounding):
    """Each rank rounds a buffer of its own, so that a run is not that of one process; it stays near exact buffers."""
    exact, coded = (together("compressed, 2", 8, error_dtype=dtype)[0]["weights"] for dtype in (None, kind))
    for name, weight in coded[-1].items():
        moved = exact[-1][name] - exact[0][name]
        assert (weight - exact[-1][name]).norm() <= TOLERANCES[rounding] * moved.norm(), name


@pytest.mark.parametrize("engine", [{}, {"find_unused_parameters": True}, {"static_graph": True}], ids=str)
def test_stacks_convolutions_and_shared_weights_under_every_ddp(engine):
    expected = runs.mixture_weights(1, 6)
    for weights in in_processes(functools.partial(runs.mixture_weights, **engine), 2, 2, 6):
        for weight, whole in zip(weights, expected, strict=True):
            assert distance(weight, whole) <= FLOAT64


def test_ddp_has_buckets_for_dense_parameters_alone():
    """What the module had on the list stays there; a weight is ignored by all its names."""
    names, num_entries = in_processes(runs.ignored, 2)[0]
    low_rank = [".weight", "conv.weight", "experts", ".experts", "first.weight", "second.weight", "weight"]
    assert names == sorted([*low_rank, "first.bias"])
    assert num_entries == 8 + 7


@pytest.mark.parametrize(("engine", "sharing"), [("compressed, 2", 1), ("compressed fsdp, 2 x 2", 2)])
def test_ranks_begin_with_the_weights_of_the_first(engine, sharing):
    """Also those that DDP takes for its own to broadcast."""
    of_ranks = in_processes(runs.first_weights, engines.ENGINES[engine].world_size, engine)
    for number, weights in enumerate(of_ranks):
        for weight, first in zip(weights, of_ranks[number % sharing], strict=True):
            assert torch.equal(weight, first)


@pytest.mark.parametrize("is_primed", [False, True], ids=["fresh", "primed"])
def test_a_first_gradient_of_zero_on_some_ranks_counts_on_all(is_primed):
    expected = runs.first_steps(None, is_primed=False)
    for weights in in_processes(functools.partial(runs.first_steps, is_primed=is_primed), 2, "compressed, 2"):
        for weight, whole in zip(weights, expected, strict=True):
            assert distance(weight, whole) <= FLOAT64


def test_a_step_that_one_rank_cannot_take_is_refused_on_all():
    of_ranks = in_processes(runs.skipped, 2)
    for weights, moved, num_skipped in of_ranks:
        assert [distance > 0 for distance in moved] == [True, False, True] and sorted(num_skipped) == [0, 0, 1]
        for weight, first in zip(weights, of_ranks[0][0], strict=True):
            assert torch.equal(weight, first)


# Parameters that join later, and stacks with no matrix on some ranks


@pytest.mark.parametrize("engine", ["compressed, 2", "compressed fsdp, 2 x 2"])
def test_a_layer_of_the_module_may_join_the_optimizer_later(engine):
    expected = runs.grown(None, 5)
    for weights in in_processes(runs.grown, engines.ENGINES[engine].world_size, engine, 5):
        for weight, whole in zip(weights, expected, strict=True):
            assert distance(weight, whole) <= FLOAT64


@pytest.mark.parametrize("kind", ["low-rank", "dense"])
def test_another_sharded_layer_is_refused_until_it_is_compressed_too(kind):
    of_ranks = in_processes(runs.forgotten_layer, 4, kind)
    for before, after, weight in of_ranks:
        assert before.startswith("weight is sharded over ranks [")
        assert "call compress_gradients for its module with that group" in before
        assert after == "" and torch.equal(weight, of_ranks[0][2])


@pytest.mark.parametrize("options", [{}, {"skip_nonfinite": True}, {"proj_method": "svd"}], ids=str)
@pytest.mark.parametrize("engine", ["fsdp, 4", "compressed fsdp, 2 x 2"])
def test_stacks_of_which_some_ranks_hold_nothing(engine, options):
    expected = runs.expert_weights(None, options)
    for weights in in_processes(runs.expert_weights, 4, engine, options):
        for weight, whole in zip(weights, expected, strict=True):
            assert distance(weight, whole) <= FLOAT64


# Weights that part


def test_the_first_step_finds_a_forgotten_wrap():
    for message in in_processes(runs.forgotten_wrap, 2):
        assert message.startswith("the weights of embedding.weight, and of ")
        assert "differ between ranks [0, 1] after step 1" in message and "DistributedDataParallel after" in message


@pytest.mark.parametrize(
    ("engine", "check_every", "level", "found_after"),
    [
        ("compressed, 2", 4, "OFF", 4),
        ("compressed, 2", None, "OFF", None),
        ("compressed fsdp, 2 x 2", 3, "OFF", 3),
        ("compressed, 2", None, "INFO", 100),
    ],
)
def test_a_changed_bit_is_found_by_the_next_comparison_on_every_rank(engine, check_every, level, found_after):
    num_steps = found_after or 6
    job = (runs.changed_weight, engines.ENGINES[engine].world_size, engine, check_every, level, num_steps + 1)
    for step, message in in_processes(*job):
        assert step == (found_after or num_steps + 1)
        assert message.startswith("the weights of up.weight, and of 0 other") == (found_after is not None)


# Checkpoints


@pytest.mark.parametrize("options", [{}, {"error_dtype": "int8"}, {"error_dtype": "bfloat16"}], ids=str)
def test_a_state_dict_leaves_each_rank_with_the_mean_buffer_and_a_run_that_a_resumed_one_repeats(options):
    of_ranks = in_processes(runs.saved_buffers, 2, options)
    for _, after, gone_on, resumed in of_ranks:
        for one, first in zip(after, of_ranks[0][1], strict=True):
            assert torch.equal(one, first)
        for one, other in zip(gone_on, resumed, strict=True):
            assert torch.equal(one, other)
    if not options:
        for first, second, mean in zip(of_ranks[0][0], of_ranks[1][0], of_ranks[0][1], strict=True):
            assert torch.equal((first + second) / 2, mean) and not torch.equal(first, second)


def test_a_state_dict_averages_all_buffers_in_one_message_or_as_many_as_its_bound_asks_for():
    for (whole,) in in_processes(runs.sent_by_state_dict, 2, 2**24):
        for bounded in in_processes(runs.sent_by_state_dict, 2, 300):
            assert sum(bounded) == whole and max(bounded) <= 300 and len(bounded) > 1


def test_a_state_dict_that_one_rank_alone_asks_for_says_what_is_missing():
    message, _ = in_processes(runs.saved_by_one_rank, 2)
    assert "average the error buffers for state_dict(), which every rank must call, over the 2 ranks" in message


# Clipping


@pytest.mark.parametrize("engine", ["compressed, 2", "compressed fsdp, 2 x 2", "fsdp and tp, 2 x 2", "tp, 2"])
def test_clipping_is_that_of_one_process_from_the_second_step(engine):
    """Before it there is no subspace to measure in: compressed ranks know a bound."""
    norms, weights = runs.clipped(None, 0.05, 5)
    assert all(norm > 0.05 for norm in norms[1:])
    for found, of_rank in in_processes(runs.clipped, engines.ENGINES[engine].world_size, engine, 0.05, 5):
        assert found[0] >= norms[0] - 1e-12
        for norm, expected in zip(found[1:], norms[1:], strict=True):
            assert distance(norm, expected) <= FLOAT64
        for weight, whole in zip(of_rank, weights, strict=True):
            assert distance(weight, whole) <= FLOAT64


def test_the_norm_is_that_of_dense_gradients_and_of_what_the_subspace_sees():
    model = nn.Linear(9, 12, dtype=torch.float64)
    optimizer = quiet(model.parameters(), rank=2)
    for step in range(2):
        model.weight.grad, model.bias.grad = (
            normal(*param.shape, seed=step, dtype=torch.float64) for param in model.parameters()
        )
        if step == 0:
            optimizer.step()
    basis = optimizer.state[model.weight]["basis"]  # of the columns, which are the shorter side
    expected = math.hypot((model.weight.grad @ basis).norm(), model.bias.grad.norm())
    before = model.weight.grad.clone()
    assert clip_grad_norm_(optimizer, math.inf).item() == pytest.approx(expected, rel=TOLERANCES["float64 formula"])
    assert torch.equal(model.weight.grad, before)
    clip_grad_norm_(optimizer, expected / 4)
    assert clip_grad_norm_(optimizer, math.inf).item() == pytest.approx(expected / 4, rel=1e-5)


def test_a_norm_that_is_no_bound_is_refused():
    with pytest.raises(ValueError, match=r"max_norm must be above 0, got 0"):
        clip_grad_norm_(quiet([nn.Parameter(normal(4, 4))], rank=2), 0)
    with pytest.raises(TypeError, match=r"needs an LDAdamW, got SGD"):
        clip_grad_norm_(torch.optim.SGD([nn.Parameter(normal(4, 4))]), 1.0)


# Refusals


def test_what_does_not_fit_is_refused_with_what_to_do():
    expected = {
        "adam": "needs an LDAdamW, got Adam",
        "wrapped": "call compress_gradients(ddp.module, optimizer), then wrap ddp.module again",
        "never": "check_every must be an int >= 1, or None, got 0",
        "elsewhere": "would reduce 0 parameters of the module",
        "twice": "3 of them are compressed already",
        "no group": 'group=mesh["replicate"].get_group()',
        "shards": "call fully_shard(module, mesh=mesh[",
        "drawn": 'proj_method="svd_lowrank" draws from the generator of each rank',
        "moved": "leave compress_gradients out, or set scaled_residual=False",
        "clipped": "clip_norm=1.0 needs the gradient of",
        "copied": "an optimizer of compress_gradients cannot be copied or pickled",
        "channels last": "weight of shape (6, 8, 3, 3) is not contiguous, as with channels_last",
    }
    for messages in in_processes(runs.refusals, 2):
        for word, part in expected.items():
            assert part in messages[word], word


def test_what_hsdp_averages_already_is_refused():
    for message in in_processes(runs.refused_hsdp, 4):
        assert "Replicate()" in message or "placement R " in message
        assert "call fully_shard(module, mesh=mesh[" in message
