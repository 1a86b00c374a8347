"""Bad input: an error that says what was expected, what came, and in which group."""

import math
import re

import pytest
import torch

from builders import parameter
from ldadam import LDAdamW, LDAdamWarning
from ldadam.hyperparameters import NAMES, Hyperparameters, resolve

NAN, INF = float("nan"), math.inf
BAD_VALUES = {
    "lr": [-1e-3, NAN, INF, "1e-3", None, True, torch.ones(2), torch.tensor(-1.0), torch.tensor(NAN)],
    "betas": [(1.0, 0.99), (0.9, 1.0), (-0.1, 0.99), (0.9,), (0.9, 0.99, 0.999), 0.9, "0.9,0.99", (0.9, NAN), None],
    "eps": [-1e-8, NAN, INF, "1e-8", None],
    "weight_decay": [-0.1, NAN, INF, "0.1", None],
    "rank": [0, -1, 1.0, 1.5, 0.0, -0.5, NAN, True, "16"],
    "rho": [1.0, -0.1, NAN, "0.9", None],
    "proj_type": ["standard", "", None, 1, ["std"]],
    "proj_method": ["qr", None, 1],
    "error_feedback": ["false", 1, None],
    "error_dtype": ["float8", "int7", "int16", torch.int64, 32],
    "update_interval": [0, -1, 1.0, True, "2", None],
    "maximize": [1, "no", None],
    "backend": ["cuda", None, True],
    "capturable": [1, "yes", None],
    "skip_nonfinite": [1, "yes", None],
    "stochastic_rounding": [1, "yes", None],
    "scaled_residual": [1, "yes", None],
}
KEYS_OF_OTHERS = (
    *("initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr", "lr_scale"),  # schedulers
    *("fused", "foreach", "differentiable", "decoupled_weight_decay", "amsgrad"),  # torch's Adam
    *("name", "group_name", "layer_index"),  # trainers
)
CASES = [(name, value) for name, values in BAD_VALUES.items() for value in values]


def test_every_hyperparameter_has_bad_values_here():
    assert BAD_VALUES.keys() == set(NAMES)


@pytest.mark.parametrize(("name", "value"), CASES, ids=[f"{name}={value!r}" for name, value in CASES])
def test_a_bad_value_is_refused_with_its_name_itself_and_its_group(name, value):
    expected = rf"^{name} must be .+; param group 0 has {name}={re.escape(repr(value))}$"
    with pytest.raises(ValueError, match=expected):
        LDAdamW([parameter(8, 20)], **{"rank": 4, name: value})


def test_the_message_names_the_group_it_came_from():
    groups = [{"params": [parameter(8, 20)]}, {"params": [parameter(8, 20)], "rho": 2.0}]
    with pytest.raises(ValueError, match=r"rho must be a number >= 0 and < 1; param group 1 has rho=2\.0"):
        LDAdamW(groups, rank=4)


def test_a_value_changed_between_steps_is_checked_as_well():
    param = parameter(8, 20)
    optimizer = LDAdamW([param], rank=4)
    optimizer.param_groups[0]["lr"] = -1.0
    param.grad = torch.ones_like(param)
    with pytest.raises(ValueError, match=r"lr must be .*; param group 0 has lr=-1\.0"):
        optimizer.step()


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [("rnak", "rank"), ("weight_deacy", "weight_decay"), ("update_intervall", "update_interval"), ("beta", "betas")],
)
def test_a_misspelt_option_of_a_group_fails_and_says_what_was_meant(misspelt, meant):
    with pytest.raises(ValueError, match=f"unknown option '{misspelt}' in param group 0: did you mean {meant}"):
        LDAdamW([{"params": [parameter(8, 20)], misspelt: 0.1}], rank=4)


def test_a_misspelt_argument_fails():
    with pytest.raises(TypeError, match="rnak"):
        LDAdamW([parameter(8, 20)], rnak=4)


@pytest.mark.parametrize("key", KEYS_OF_OTHERS)
def test_keys_of_schedulers_and_trainers_are_tolerated(key):
    optimizer = LDAdamW([{"params": [parameter(8, 20)], key: 0.1}], rank=4)
    assert optimizer.param_groups[0][key] == 0.1


@pytest.mark.parametrize(
    "good",
    [
        {"lr": 0},
        {"lr": torch.tensor([0.1])},
        {"betas": [0, 0.0]},
        {"rank": None},
        {"rank": 0.5},
        {"rho": 0},
        {"eps": 0},
        {"error_dtype": torch.bfloat16},
        {"error_dtype": "float32"},
        {"error_dtype": torch.int8},
        {"error_dtype": "int4"},
    ],
    ids=str,
)
def test_values_at_the_edge_of_what_is_allowed(good):
    LDAdamW([parameter(8, 20)], **{"rank": 4, **good})


def test_defaults_are_the_published_ones():
    defaults = Hyperparameters()
    assert (defaults.betas, defaults.rho, defaults.eps) == ((0.908, 0.99), 0.908, 1e-8)
    assert (defaults.rank, defaults.weight_decay, defaults.proj_type) == (16, 0.0, "std")
    assert (defaults.proj_method, defaults.error_feedback) == ("power_iteration", True)
    assert LDAdamW([parameter(20, 20)]).defaults == {name: getattr(defaults, name) for name in NAMES}


def test_an_error_dtype_may_be_a_torch_dtype_and_is_kept_by_name():
    optimizer = LDAdamW([parameter(8, 20)], rank=4, error_dtype=torch.bfloat16)
    assert optimizer.param_groups[0]["error_dtype"] == "bfloat16"


def test_resolve_makes_scalars_of_what_is_equivalent():
    group = {**LDAdamW([parameter(8, 20)], rank=4).param_groups[0], "lr": torch.tensor([0.5]), "betas": [0, 0.5]}
    hyper = resolve(group, 0)
    assert hyper.lr.shape == ()
    assert hyper.betas == (0.0, 0.5)


def test_a_rank_that_makes_matrices_dense_is_said_once():
    params = [parameter(8, 20), parameter(20, 30), parameter(5)]
    message = r"1 of the 2 matrices of param group 0 .* rank=8 .* shape \(8, 20\)"
    with pytest.warns(LDAdamWarning, match=message) as seen:
        LDAdamW(params, rank=8)
    assert len(seen) == 1
    assert seen[0].filename == __file__, "the warning should point at the caller"


def test_a_rank_below_every_side_warns_of_nothing(recwarn):
    LDAdamW([parameter(8, 20), parameter(3)], rank=7)
    assert not recwarn.list
