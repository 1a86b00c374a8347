"""The runs of test_resume.py; as a script, the fresh process that finishes them."""

import sys
from pathlib import Path

import torch
from torch.nn import Parameter

from builders import grads_of, mixed_params, parameter, quiet, run
from ldadam import LDAdamW

NUM_STEPS = 30
VARIANTS = {
    "defaults": {},
    "no error feedback": {"error_feedback": False},
    "bfloat16 buffer": {"error_dtype": "bfloat16"},
    "int8 buffer": {"error_dtype": "int8"},
    "int4 buffer": {"error_dtype": "int4"},
    "interval": {"update_interval": 4},
    "skipping": {"skip_nonfinite": True},
    "stochastic rounding": {"stochastic_rounding": True},
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CASES = [(variant, dtype) for variant in VARIANTS for dtype in DTYPES]


def build(variant: str, dtype: str) -> tuple[list[Parameter], LDAdamW]:
    """Low-rank, dense, convolution and experts, in two groups."""
    params = [*mixed_params(DTYPES[dtype]), parameter(14, 10, seed=9, dtype=DTYPES[dtype])]
    groups = [{"params": params[:4]}, {"params": params[4:], "rank": None, "betas": (0.9, 0.95)}]
    return params, quiet(groups, lr=0.01, rank=4, weight_decay=0.1, **VARIANTS[variant])


def train(params: list[Parameter], optimizer: LDAdamW, first: int, last: int) -> None:
    """Steps `first` to `last`, of a learning rate that changes at each."""
    for step, grads in enumerate(grads_of(params, NUM_STEPS)[first:last], start=first):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (1 - step / NUM_STEPS)
        run(optimizer, params, [grads])


def checkpoint(params: list[Parameter], optimizer: LDAdamW) -> dict:
    return {"params": [param.detach() for param in params], "optimizer": optimizer.state_dict()}


def finish(folder: Path) -> None:
    """Load the checkpoints that are half-way, and write the finished ones."""
    for index, case in enumerate(CASES):
        saved = torch.load(folder / f"half-{index}.pt", weights_only=True, map_location="cpu")
        params, optimizer = build(*case)
        for param, value in zip(params, saved["params"], strict=True):
            param.data.copy_(value)
        optimizer.load_state_dict(saved["optimizer"])
        train(params, optimizer, NUM_STEPS // 2, NUM_STEPS)
        torch.save(checkpoint(params, optimizer), folder / f"end-{index}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    finish(Path(sys.argv[1]))
