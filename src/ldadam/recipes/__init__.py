"""Experiments of the papers, and small ones that need no network, each a function that returns its studies.

A recipe's name says model, data, rank and hardware.
"""

from __future__ import annotations

from collections.abc import Callable

from ldadam.comparison.study import Study
from ldadam.recipes import ablations, dense_rates, equal_seconds, finetuning, ideas, peers, pretraining, small
from ldadam.spelling import did_you_mean
from ldadam.training.errors import UsageError

Recipe = Callable[[], list[Study]]

RECIPES: dict[str, Recipe] = {
    function.__name__.replace("_", "-"): function
    for module in (pretraining, finetuning, small, ablations, ideas, peers, dense_rates, equal_seconds)
    for function in module.ALL
}


def find_recipe(name: str) -> Recipe:
    """The recipe called `name`.

    Raises:
        UsageError: there is none, with those that there are.
    """
    if name not in RECIPES:
        hint = did_you_mean(name, RECIPES, otherwise="`ldadam recipes` lists them", similarity=0.5)
        raise UsageError(f"there is no recipe {name!r}: {hint}")
    return RECIPES[name]


def about(recipe: Recipe) -> str:
    """The first sentence of its docstring."""
    return (recipe.__doc__ or "").strip().splitlines()[0]
