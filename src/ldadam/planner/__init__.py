"""Bytes and traffic of a training run, before anything is allocated, from the layout that the optimizer uses."""

from ldadam.planner.footprint import Footprint, StateBytes
from ldadam.planner.planning import Plan, plan
from ldadam.planner.suggestion import Suggestion, suggest

__all__ = ["Footprint", "Plan", "StateBytes", "Suggestion", "plan", "suggest"]
