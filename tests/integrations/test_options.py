"""Options of an optimizer that arrive as text."""

import pytest
import torch

from ldadam import LDAdamW, lowrank_param_groups
from ldadam.integrations.options import build_optimizer

TEXTS = {
    "lr": ("1e-3", 1e-3),
    "betas": ("(0.9, 0.99)", (0.9, 0.99)),
    "eps": ("1e-6", 1e-6),
    "rank": ("0.25", 0.25),
    "error_feedback": ("False", False),
    "error_dtype": ("int8", "int8"),
    "backend": ("eager", "eager"),
    "update_interval": ("4", 4),
    "stochastic_rounding": ("true", True),
}


def model() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(32, 48), torch.nn.Linear(48, 32))


@pytest.mark.parametrize("name", TEXTS)
def test_text_is_read_as_what_the_option_takes(name):
    text, value = TEXTS[name]
    optimizer = build_optimizer(model(), **{"lr": 1e-3, name: text})
    assert optimizer.param_groups[0][name] == value
    assert optimizer.param_groups[0][name] == build_optimizer(model(), **{"lr": 1e-3, name: value}).defaults[name]


def test_patterns_and_overrides_are_read_as_text_too():
    optimizer = build_optimizer(model(), lr=1e-3, rank="8", target_modules=r"0\.", rank_overrides="{'1.weight': 0.5}")
    assert [(group["param_names"], group["rank"]) for group in optimizer.param_groups] == [
        (["0.weight"], 8),
        (["1.weight"], 4),
        (["0.bias", "1.bias"], None),
    ]


def test_embeddings_and_vectors_may_have_a_learning_rate_of_their_own():
    groups = build_optimizer(model(), lr="1e-3", dense_lr="0.03").param_groups
    assert [(group["param_names"], group["lr"]) for group in groups][-1] == (["0.bias", "1.bias"], 0.03)
    assert {group["lr"] for group in groups[:-1]} == {1e-3}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"rank": "sixteen"}, "rank must be a positive int.*rank='sixteen'"),
        ({"error_feedback": "maybe"}, "error_feedback must be True or False.*'maybe'"),
        ({"betas": "0.9"}, "betas must be two numbers"),
        ({"rank_overrides": "8"}, "rank_overrides must map regular expressions to ranks, got '8'"),
        ({"lr": "fast"}, "lr must be a finite number"),
    ],
    ids=str,
)
def test_text_that_is_no_value_of_the_option_is_refused_by_name(option, message):
    with pytest.raises(ValueError, match=message):
        build_optimizer(model(), **{"lr": 1e-3, **option})


def test_a_misspelt_option_is_refused():
    with pytest.raises(TypeError, match="rnak"):
        build_optimizer(model(), lr=1e-3, rnak="8")


def test_an_unknown_option_is_named_with_one_that_is_close():
    with pytest.raises(TypeError, match=r"LDAdamW has no option 'update_intervall': did you mean update_interval\?"):
        build_optimizer(model(), lr=1e-3, update_intervall=4)


def test_parameters_where_a_model_belongs_and_the_reverse_are_refused():
    with pytest.raises(TypeError, match=r"takes the model itself, a torch\.nn\.Module; got generator"):
        lowrank_param_groups(model().parameters(), rank=4)
    with pytest.raises(TypeError, match=r"takes parameters, got a module: give it lowrank_param_groups\(model"):
        LDAdamW(model())
    assert len(LDAdamW(torch.nn.ParameterList(model().parameters())).param_groups[0]["params"]) == 4
