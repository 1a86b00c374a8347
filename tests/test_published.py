"""A checkpoint of the published class continues here, exactly."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from builders import assert_same_params, assert_same_state, copies, distance, grads_of, parameter, run
from ldadam import LDAdamW, error_buffer, load_published_state
from ldadam.hyperparameters import resolve
from ldadam.optimizer import layout_of
from tolerances import TOLERANCES

NUM_STEPS = 4
OPTIONS = {"lr": 0.01, "rank": 3, "weight_decay": 0.1, "rho": 0.8}


def build(params) -> LDAdamW:
    """Wide, tall and square low-rank matrices, and a dense group."""
    return LDAdamW([{"params": params[:3]}, {"params": params[3:], "rank": None, "betas": (0.9, 0.95)}], **OPTIONS)


def make_params() -> list[torch.nn.Parameter]:
    return [parameter(12, 20), parameter(20, 12), parameter(9, 9), parameter(7)]


def in_published_form(optimizer: LDAdamW) -> dict[str, Any]:
    """Our state dict as the published class writes it.

    Its moments have the parameter's orientation: r x n for a left projection, m x r for a right one, whose
    `ortho_matrix` is r x n.
    """
    state = {}
    for index, group in enumerate(optimizer.param_groups):
        for param in group["params"]:
            ours = optimizer.state[param]
            layout = layout_of(param, resolve(group, index))
            turn = (lambda value: value.mT) if layout and layout.transposed else (lambda value: value)
            beta1, beta2 = group["betas"]
            theirs = {"m": turn(ours["exp_avg"]), "v": turn(ours["exp_avg_sq"])}
            theirs |= {"lr": group["lr"], "beta1": beta1, "beta2": beta2, "eps": group["eps"]}
            if layout:
                theirs["previous_projector"] = SimpleNamespace(ortho_matrix=turn(ours["basis"]), rank=group["rank"])
            state[len(state)] = copy.deepcopy(theirs)
    keys = ("lr", "betas", "eps", "weight_decay", "rho", "proj_type", "proj_method", "error_feedback")
    groups, num_before = [], 0
    for group in optimizer.param_groups:
        size = len(group["params"])
        low_rank = group["rank"] is not None
        groups.append(
            {key: group[key] for key in keys}
            | {"params": list(range(num_before, num_before + size)), "enable_lowrank": low_rank}
            | ({"rank": group["rank"]} if low_rank else {})
        )
        num_before += size
    return {"state": state, "param_groups": groups}


def run_so_far() -> tuple[list[torch.nn.Parameter], LDAdamW, list[torch.Tensor | None]]:
    params = make_params()
    optimizer = build(params)
    run(optimizer, params, grads_of(params, NUM_STEPS))
    errors = [optimizer.state[param].get("error_buffer") for param in params]
    return params, optimizer, [None if error is None else error.clone() for error in errors]


def test_a_run_goes_on_exactly():
    params, optimizer, errors = run_so_far()
    others = copies(params)
    other = build(others)
    published = in_published_form(optimizer)
    load_published_state(other, published, completed_steps=NUM_STEPS, error_buffers=errors)
    assert_same_state(other, optimizer)
    more = grads_of(params, 3, seed=5)
    run(optimizer, params, more)
    run(other, others, more)
    assert_same_params(others, params)


def test_error_buffers_are_stored_in_the_optimizer_s_dtype():
    params, optimizer, errors = run_so_far()
    other = LDAdamW([{"params": params[:3], "rank": 3}, {"params": params[3:], "rank": None}], error_dtype="int8")
    load_published_state(other, in_published_form(optimizer), completed_steps=NUM_STEPS, error_buffers=errors)
    state = other.state[params[0]]
    assert state["error_buffer"].dtype == torch.int8
    loaded = error_buffer.read(state, params[0].shape, torch.float32)
    assert distance(loaded, errors[0]) <= TOLERANCES["stored error, int8"]


def test_its_hyperparameters_come_along():
    params, optimizer, _ = run_so_far()
    other = LDAdamW([{"params": params[:3], "rank": 3}, {"params": params[3:], "rank": None}], lr=0.5, rho=0.1)
    load_published_state(other, in_published_form(optimizer), completed_steps=NUM_STEPS)
    assert [(g["lr"], g["rho"], g["betas"]) for g in other.param_groups] == (
        [(0.01, 0.8, (0.908, 0.99)), (0.01, 0.8, (0.9, 0.95))]
    )


def test_a_group_without_low_rank_becomes_dense():
    params = [parameter(12, 20)]
    optimizer = LDAdamW(params, rank=None)
    run(optimizer, params, grads_of(params, NUM_STEPS))
    other = LDAdamW(copies(params), rank=3)
    load_published_state(other, in_published_form(optimizer), completed_steps=NUM_STEPS)
    assert other.param_groups[0]["rank"] is None
    assert_same_state(other, optimizer)


def test_without_error_buffers_the_feedback_starts_from_zero():
    params, optimizer, _ = run_so_far()
    other = build(copies(params))
    load_published_state(other, in_published_form(optimizer), completed_steps=NUM_STEPS)
    states = list(other.state.values())
    assert all(state["step"] == NUM_STEPS for state in states)
    assert all(state["error_buffer"].count_nonzero() == 0 for state in states[:3])


def test_its_bfloat16_state_is_widened():
    params, optimizer, _ = run_so_far()
    published = in_published_form(optimizer)
    for state in published["state"].values():
        state["m"], state["v"] = state["m"].bfloat16(), state["v"].bfloat16()
    other = build(copies(params))
    load_published_state(other, published, completed_steps=NUM_STEPS)
    for ours, theirs in zip(optimizer.state.values(), other.state.values(), strict=True):
        assert theirs["exp_avg"].dtype == torch.float32
        assert torch.equal(theirs["exp_avg"], ours["exp_avg"].bfloat16().float())


def test_a_parameter_that_had_no_gradient_starts_when_it_gets_one():
    params, optimizer, _ = run_so_far()
    published = in_published_form(optimizer)
    del published["state"][1]
    other = build(copies(params))
    load_published_state(other, published, completed_steps=NUM_STEPS)
    assert len(other.state) == 3


def assert_refused(other: LDAdamW, published: dict[str, Any], message: str, **arguments) -> None:
    before = copy.deepcopy(other)
    with pytest.raises(ValueError, match=message):
        load_published_state(other, published, completed_steps=NUM_STEPS, **arguments)
    assert_same_state(other, before)


def test_other_groups_are_refused():
    params, optimizer, _ = run_so_far()
    other = LDAdamW(copies(params[:3]), rank=3)
    message = r"param groups of \[3, 1\] parameters, the optimizer of \[3\]"
    assert_refused(other, in_published_form(optimizer), message)


def test_another_rank_is_refused():
    params, optimizer, _ = run_so_far()
    other = build(copies(params))
    other.param_groups[0]["rank"] = 4
    message = r"exp_avg of parameter 0 of param group 0 has shape \(3, 20\) .* expected \(4, 20\): use its rank"
    assert_refused(other, in_published_form(optimizer), message)


def test_a_low_rank_parameter_that_is_dense_here_is_refused():
    params, optimizer, _ = run_so_far()
    other = build(copies(params))
    other.param_groups[0]["rank"] = None
    message = "is low-rank in the published checkpoint and dense in the optimizer: give its group the same rank"
    assert_refused(other, in_published_form(optimizer), message)


def test_a_misfit_of_the_last_parameter_leaves_the_first_ones_alone_too():
    params, optimizer, _ = run_so_far()
    published = in_published_form(optimizer)
    published["state"][3]["v"] = torch.zeros(8)
    assert_refused(build(copies(params)), published, r"exp_avg_sq of parameter 0 of param group 1 has shape \(8,\)")


def test_a_wrong_number_of_error_buffers_is_refused():
    params, optimizer, errors = run_so_far()
    message = "error_buffers must have one entry for each of 4 parameters, got 3"
    assert_refused(build(copies(params)), in_published_form(optimizer), message, error_buffers=errors[:3])
