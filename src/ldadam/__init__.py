"""LDAdam: Adam with moments in a moving low-rank subspace, and generalized error feedback (arXiv 2410.16103)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldadam.description import describe
    from ldadam.in_backward import step_in_backward
    from ldadam.optimizer import LDAdamW
    from ldadam.param_groups import LDAdamWarning, lowrank_param_groups
    from ldadam.planner import plan, suggest
    from ldadam.published import load_published_state

__all__ = [
    "LDAdamW",
    "LDAdamWarning",
    "describe",
    "load_published_state",
    "lowrank_param_groups",
    "plan",
    "step_in_backward",
    "suggest",
]
__version__ = "0.1.0"

_MODULE_OF = {
    "LDAdamW": "optimizer",
    "LDAdamWarning": "param_groups",
    "describe": "description",
    "load_published_state": "published",
    "lowrank_param_groups": "param_groups",
    "plan": "planner",
    "step_in_backward": "in_backward",
    "suggest": "planner",
}


def __getattr__(name: str) -> Any:
    """A public name, imported at its first use, so that the command line answers `--help` without loading torch."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'ldadam' has no attribute {name!r}")
    value = getattr(import_module(f"ldadam.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
