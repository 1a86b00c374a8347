"""LDAdam: Adam with moments in a moving low-rank subspace, and generalized error feedback (arXiv 2410.16103)."""

from ldadam.describe import describe
from ldadam.optimizer import LDAdamW
from ldadam.param_groups import LDAdamWarning, lowrank_param_groups
from ldadam.published import load_published_state

__all__ = ["LDAdamW", "LDAdamWarning", "describe", "load_published_state", "lowrank_param_groups"]
__version__ = "0.1.0"
