"""Measurements: `ldadam bench step` times one step of optimizers on the matrices of real models."""
