"""Optimizers side by side on the same work: learning rates swept, seeds repeated, one process for each run."""
