"""State of other optimizers, in bytes: what their code allocates for the weights of one device.

Low-rank ones get the matrices and ranks of LDAdamW, so that they differ in what they keep only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor

from ldadam.layout import MatrixLayout
from ldadam.planner.footprint import StateBytes

_FULL = torch.float32.itemsize

# Weights of one device, each with its layout there; None for dense ones.
Weights = Iterable[tuple[Tensor, MatrixLayout | None]]


def adamw(weights: Weights) -> StateBytes:
    """torch.optim.AdamW: two moments in the parameter's dtype, and a float32 count."""
    params = [param for param, _ in weights]
    return StateBytes(dense_moments=2 * sum(param.nbytes for param in params), step=_FULL * len(params))


def _quantised(weights: Weights, *, bits: int, block: int) -> StateBytes:
    """torchao's AdamW8bit and AdamW4bit: codes, a float32 scale for each block, a table of all codes.

    Tensors below 4096 numbers, and those that no whole number of blocks fills, stay in the parameter's dtype.
    Source: torchao 0.18, optim/adam.py (`_new_buffer`), optim/subclass_8bit.py and subclass_4bit.py (`zeros`).
    """
    params = [param for param, _ in weights]
    fits = [param for param in params if param.numel() >= 4096 and param.numel() % block == 0]
    codes = sum(param.numel() * bits // 8 + param.numel() // block * _FULL + 2**bits * _FULL for param in fits)
    plain = sum(param.nbytes for param in params) - sum(param.nbytes for param in fits)
    return StateBytes(dense_moments=2 * (codes + plain), step=_FULL * len(params))


def adamw8bit(weights: Weights) -> StateBytes:
    """torchao.optim.AdamW8bit, in blocks of 256."""
    return _quantised(weights, bits=8, block=256)


def adamw4bit(weights: Weights) -> StateBytes:
    """torchao.optim.AdamW4bit, in blocks of 128."""
    return _quantised(weights, bits=4, block=128)


def galore(weights: Weights) -> StateBytes:
    """GaLoreAdamW: a projection (m x r) and two moments (r x n) in the parameter's dtype; dense weights as in AdamW.

    For float32 weights the projection is a view that keeps all singular vectors (m x m) alive, which is not counted.
    Source: galore-torch 1.0, galore_projector.py and adamw.py.
    """
    basis = moments = dense = 0
    for param, layout in weights:
        if layout is None:
            dense += 2 * param.nbytes
            continue
        shapes = layout.state_shapes()
        basis += param.itemsize * math.prod(shapes["basis"])
        moments += 2 * param.itemsize * math.prod(shapes["exp_avg"])
    return StateBytes(basis=basis, moments=moments, dense_moments=dense)


def apollo(weights: Weights) -> StateBytes:
    """APOLLOAdamW: tensors of GaLore's shapes, with a random projection, and the norm of each matrix's last update.

    Source: apollo-torch 1.0.3, random_projector.py and apollo.py.
    """
    weights = list(weights)
    norms = sum(param.itemsize for param, layout in weights if layout is not None)
    return replace(galore(weights), step=norms)


PEERS: dict[str, Callable[[Weights], StateBytes]] = {
    "adamw": adamw,
    "adamw8bit": adamw8bit,
    "adamw4bit": adamw4bit,
    "galore": galore,
    "apollo": apollo,
}
